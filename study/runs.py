"""Runs of train.py, or of another script that trains, each in a process of its own."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from experiment.errors import ExperimentError
from experiment.files import writing

ROOT = Path(__file__).parents[1]


def run_process(argv):
    """Run `python ARGV --out FOLDER`: (its metrics.json, seconds from start to exit)."""
    kept = {name: value for name, value in os.environ.items() if name not in ("WORLD_SIZE", "RANK", "LOCAL_RANK")}
    environment = {**kept, "PYTHONIOENCODING": "utf-8"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    options |= {"encoding": "utf-8", "errors": "replace", "env": environment}
    with writing("the temporary folder", "set TMPDIR to one that can be written"):
        folder = tempfile.TemporaryDirectory()
    with folder:
        out, start = Path(folder.name, "run"), time.perf_counter()
        with subprocess.Popen([sys.executable, "-P", *map(str, argv), "--out", str(out)], **options) as process:
            try:
                errors = process.communicate()[1].strip()
            finally:
                process.terminate()  # if this process is interrupted
        if process.returncode != 0:
            raise ExperimentError((errors or f"exit code {process.returncode}").splitlines()[-1])
        return json.loads((out / "metrics.json").read_text()), time.perf_counter() - start
