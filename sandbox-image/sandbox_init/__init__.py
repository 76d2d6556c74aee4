"""init: PID 1 of a sandbox. Standard library only; each room says in its first lines what it knows."""
