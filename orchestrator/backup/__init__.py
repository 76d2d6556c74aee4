"""Everything an installation knows, as one file, and back."""

from orchestrator.backup.format import Contents, Head
from orchestrator.backup.output import Output
from orchestrator.backup.reading import Verified, verified
from orchestrator.backup.restoring import Restored, restore
from orchestrator.backup.taking import Sources, Taken, take

__all__ = ["Contents", "Head", "Output", "Restored", "Sources", "Taken", "Verified", "restore", "take", "verified"]
