"""Where histories, records and queues are kept: `redis` speaks to a server, `embedded` brings one along."""
