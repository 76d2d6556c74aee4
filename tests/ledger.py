"""A harness for tests of sleep and forks: it goes on from its files, and what it prints says how many messages it has
ever read. The state beside the workspace counts its starts."""

from __future__ import annotations

from pathlib import Path

SCRIPT = """
echo start >> /state/starts
echo up $EXECUTION_ATTEMPT of $(wc -l < /state/starts)
while read m; do
  [ "$m" = end ] && exit 0
  echo "$m" >> log
  echo "got $m as $(wc -l < log)"
done
"""


def declare(folder: Path) -> Path:
    """Written as `ledger.toml`; the folder, for the setting `harness_dir`."""
    folder.mkdir(parents=True, exist_ok=True)
    script = SCRIPT.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    (folder / "ledger.toml").write_text(
        f'argv = ["/bin/bash", "-c", "{script}"]\nstdin = "text"\noutput = "bytes"\n'
        "resumes = true\nreads_task = false\n"
    )
    return folder
