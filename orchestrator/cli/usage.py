"""The error of a command line that is not understood: exit code 2, and where to read more. Knows no verb."""

from __future__ import annotations


class UsageError(Exception):
    """What was typed cannot be meant; the message says what can."""
