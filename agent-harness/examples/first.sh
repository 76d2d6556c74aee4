#!/bin/bash
# A first harness: works for some seconds, listens while it does, leaves a file. Any program like this is a harness:
# it reads its environment and stdin, works in a directory, prints, exits.
steps=${STEPS:-8}
step_s=${STEP_S:-1}
echo "Hello. I am $EXECUTION_ID, attempt $EXECUTION_ATTEMPT, $(id -un) in $PWD, and I have this computer to myself."
heard=0
for ((step = 1; step <= steps; step++)); do
  echo "step $step of $steps"
  if read -r -t "$step_s" message; then # works a second, or less if somebody says something
    heard=$((heard + 1))
    echo "you said: $message"
  fi
done
printf 'steps %d\nmessages %d\n' "$steps" "$heard" >"$ARTIFACTS_DIR/report.txt"
echo "I leave artifacts/report.txt. Done."
