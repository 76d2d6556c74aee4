"""The actors that move executions, on the ports only: no Docker, no Redis, no HTTP in this room.

worker          one process's part: dispatcher, sweeper, heartbeat, drain
dispatcher      claims while there is room, one task group per claim
lease_keeper    renews one lease; its end ends the work
attempt         one execution from claim to end: the actor
  steps         what to do next, as a pure function of what is known
  watching      what is known of it now: record, sandbox, idleness
  doing         one step taken
  approach      the line to init, or somebody on the way to it
  arrival       the way to a greeted init: slot, sandbox, line, start
  way_out       the gateway: kept open, told, heard, closed
  relay         frames into the history, exactly once
  reading       what frames tell, pure (jsonl: parse)
  wishes        pause, resume, other resources, with their receipts
  steering      inbox to the harness's stdin
  placing       QUEUED to STARTING: the next attempt, by name, before anything is made
  stopping      how far an end has come, by the clock
  cutting       one consistent cut: stand still, told, named, on
  sleeping      HIBERNATING to HIBERNATED, or back
  idle, cadence since when nothing happens; when the next snapshot is due (pure)
  restoring     which snapshot the next attempt begins from
  disk          what a workspace takes, where its store cannot bound it
  closing       the ways an attempt is over, in the record first
  ending        outcome, pure
  leaving       artifacts onto the shelf
  scribe        the one pen: every append of one epoch
  recall        what only the history remembers
sweeper         sets right what a crash left (snapshot_sweep: of snapshots); sweep_plan decides, pure
  retention_sweep what has had its time
environment     what the harness is given, pure
"""
