"""The gateway: the one way out of a sandbox. What is in which file: README.md."""
