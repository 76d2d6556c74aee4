#!/bin/bash
# Asks half-way, is answered by `carrel send`, and finishes: ten lines are enough to be steered.
echo "Looking around: $(ls -A | wc -l) files here."
echo "What is your name?"
read -r name || { echo "Nobody will answer any more." >&2; exit 1; }
echo "Hello, $name. I go on now."
printf '%s\n' "$name" >"$ARTIFACTS_DIR/name.txt"
