"""What makes sandboxes: `docker` for real work, `scripted` for engine tests and demos. They never see one another."""
