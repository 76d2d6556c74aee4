"""mini-swe-agent: its own command line, in its own interpreter, with an agent class of ours (`mini_class.py`).

The program has no protocol to speak to it while it works; `--agent-class` is the seam it has.
"""

from __future__ import annotations

import json
import os
import sys

from adapters.stage import NO_MODEL, stage_of

NAME = "mini-swe-agent"
COMMAND_S = 600  # the program's own 30 s end most test suites in the middle


def run() -> int:
    """The exit code."""
    stage = stage_of(NAME)
    if not stage.environment.get("MODEL"):
        stage.voice.say("error", text=NO_MODEL)
        return 78
    folder = stage.state / "mini"
    folder.mkdir(parents=True, exist_ok=True)
    steps = stage.environment.get("LIMIT_STEPS", "")
    settings = {
        # In a file: an argument has a limit.
        "run": {"task": stage.task()},
        "agent": {"step_limit": int(steps) if steps.isdigit() else 0, "cost_limit": 0.0},
        "environment": {"timeout": COMMAND_S},
    }
    (folder / "carrel.yaml").write_text(json.dumps(settings))
    # Read when the package is imported. Prices are the gateway's to know, and none are fetched from elsewhere.
    os.environ.update(MSWEA_CONFIGURED="true", MSWEA_COST_TRACKING="ignore_errors", MSWEA_SILENT_STARTUP="1")
    # The gateway asks a provider again; this is for a gateway that changes hands in the middle of an answer.
    os.environ.setdefault("MSWEA_MODEL_RETRY_STOP_AFTER_ATTEMPT", "5")
    os.environ.update(MSWEA_GLOBAL_CONFIG_DIR=str(folder), LITELLM_LOCAL_MODEL_COST_MAP="True")
    try:
        import litellm
        from minisweagent.models.litellm_model import LitellmModel
        from minisweagent.run.mini import app

        litellm.suppress_debug_info = True  # advertisements on stdout
        LitellmModel.abort_exceptions.append(litellm.exceptions.BadRequestError)  # it would be no better in a minute
    except ImportError as missing:
        stage.voice.say("error", text=f"{missing}; is this the image of `carrel image build --harness {NAME}`?")
        return 78
    sys.argv = ["mini", "-m", f"openai/{stage.environment['MODEL']}", "-c", "mini.yaml", "-c", f"{folder}/carrel.yaml"]
    sys.argv += ["-y", "-o", f"{folder}/trajectory.json", "--agent-class", "adapters.mini_class.CarrelAgent"]
    try:
        app(standalone_mode=False)
    except SystemExit as end:  # of our class: it knows how it went
        return int(end.code or 0)
    except Exception as failure:
        stage.voice.say("error", text=f"{type(failure).__name__}: {failure}")
        stage.voice.say("result", stop_reason="error", text=str(failure))
        return 1
    return 1
