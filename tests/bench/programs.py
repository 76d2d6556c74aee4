"""The harness programs that are measured: each prints the machine's monotonic clock, which host and sandbox share."""

ECHO_CLOCK = """
import sys, time
print("ready", flush=True)
for line in sys.stdin:
    print("got", time.monotonic_ns(), flush=True)
"""

INTERRUPTED = """
import signal, sys, time
def caught(number, frame):
    sys.stdout.write(f"int {time.monotonic_ns()}\\n"); sys.stdout.flush()
signal.signal(signal.SIGINT, caught)
print("ready", flush=True)
while True:
    time.sleep(1000)
"""

FLOOD = """
import os, sys
block = b"x" * 65535 + b"\\n"
for _ in range(int(sys.argv[1])):
    os.write(1, block)
"""

JSON_LINES = """
import json, sys
line = json.dumps({"type": "agent_message_chunk", "text": "x" * 150}) + "\\n"
chunk = line * 256
for _ in range(int(sys.argv[1]) // 256):
    sys.stdout.write(chunk)
sys.stdout.flush()
"""

TICKER = """
import sys, time
rate, count = float(sys.argv[1]), int(sys.argv[2])
sys.stdin.readline()
begin = time.monotonic()
for i in range(count):
    wait = begin + i / rate - time.monotonic()
    if wait > 0:
        time.sleep(wait)
    print(f"tick {i} {time.monotonic_ns()}", flush=True)
"""
