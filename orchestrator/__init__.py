"""Carrel: every agent execution gets its own computer. See README.md in this folder for the rooms."""

__version__ = "0.1.0"
