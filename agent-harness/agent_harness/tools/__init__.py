"""What the agent can do, a file for each kind of tool. None knows the model or the journal."""
