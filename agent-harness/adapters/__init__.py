"""Real CLI agents as harnesses: each file speaks one program's own language on one side, CARREL/1 on the other.

Runs inside the sandbox, standard library only (and, for `mini`, in mini-swe-agent's own process). README.md has the
map.
"""
