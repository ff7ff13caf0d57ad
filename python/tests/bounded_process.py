# SPDX-License-Identifier: Apache-2.0
"""A Python program of the tests, run to its end or killed with all that it started."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import signal
import subprocess
import sys
from typing import List, NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples" / "python"
TIMEOUT_S = 240


class Done(NamedTuple):
    returncode: int
    output: str  # both streams


def run_python(arguments: List[str], *, folder: pathlib.Path, stdin: str = "") -> Done:
    """With this process's draftflow and the examples' modules on its path. AssertionError, with its output, after TIMEOUT_S."""
    package = pathlib.Path(str(importlib.util.find_spec("draftflow").origin)).parents[1]
    path = os.pathsep.join([str(package), str(EXAMPLES)])
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "GLOO_SOCKET_IFNAME": "lo"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # a group of its own
    )
    try:
        output, _ = process.communicate(stdin, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        raise AssertionError(f"{arguments[0]} was at work for {TIMEOUT_S} s, and was killed; it said:\n{output}") from None
    return Done(process.returncode, output)
