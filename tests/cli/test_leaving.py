"""Ctrl-C where Python loses it: the process ends all the same, with the same code."""

from __future__ import annotations

import subprocess
import sys

# A finalizer is one of the places where KeyboardInterrupt is printed and dropped.
LOSES_IT = """
import os, signal, sys, time
from orchestrator.cli.leaving import by_ctrl_c

class Last:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)

with by_ctrl_c(130):
    Last()
    print("still here", flush=True)
    while True:
        time.sleep(60)
"""


def test_an_interrupt_that_is_lost_still_ends_it() -> None:
    done = subprocess.run([sys.executable, "-c", LOSES_IT], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (130, "still here\n"), done.stderr


def test_an_interrupt_that_arrives_is_the_usual_one() -> None:
    program = (
        "import signal, os\nfrom orchestrator.cli.leaving import by_ctrl_c\n"
        "try:\n    with by_ctrl_c(130):\n        os.kill(os.getpid(), signal.SIGINT)\n"
        "except KeyboardInterrupt:\n    print(signal.getitimer(signal.ITIMER_REAL)[0])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "0.0\n"), done.stderr
