"""Ways to what is alive: `local` for executions whose sandbox is on this host."""
