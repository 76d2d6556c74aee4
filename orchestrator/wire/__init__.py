"""Nouns as JSON and back: the only room that knows pydantic. Import the file you need:

submission   the body of a submit → Spec           record     Execution → its JSON
event        Event ⇄ JSON, pages                   steering   messages, wishes, receipts
channel      frames of WS …/channel                command    exec
files        entries, uploads, artifacts           operate    health, readiness, stats
snapshot     snapshots, forks, the tree they make
way_out      allowlist, budget, spend, intents
problem      CarrelError ⇄ RFC 9457                limits     how much of everything, and the checks
invalid      pydantic's findings → BadInput        base       times, strictness
"""
