# SPDX-License-Identifier: Apache-2.0
"""What the tests play on: samples, stores and ledgers with something in them, and processes that end by themselves."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Callable, Dict, List, Optional

import pytest
import torch

import draftflow

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent.parent
WIDTH = 8
LIMIT_S = 120  # of anything that is waited for; reached only by what hangs


def sample(number: int, length: Optional[int] = None) -> Dict[str, torch.Tensor]:
    """An EAGLE-3 sample whose first token is its number."""
    tokens = length if length is not None else 3 + number % 4
    return {
        "input_ids": torch.arange(number, number + tokens),
        "loss_mask": torch.ones(tokens, dtype=torch.int64),
        "hidden_state": torch.full((1, tokens, WIDTH), float(number), dtype=torch.bfloat16),
        "aux_hidden_state": torch.full((1, tokens, 3 * WIDTH), float(number), dtype=torch.bfloat16),
    }


def name(number: int) -> str:
    return f"run:{number:08d}"


def fill(
    store: draftflow.Store, ledger: draftflow.Ledger, count: int, *, first: int = 0, close: bool = True
) -> List[draftflow.SampleRef]:
    refs = [store.put(sample(number), name(number)) for number in range(first, first + count)]
    ledger.commit_samples(refs)
    if close:
        ledger.close_prompts()
    return refs


def data_folder(part: str) -> Path:
    """A part of the optional real data, or the test is skipped."""
    folder = Path(os.environ.get("DRAFTFLOW_TEST_DATA") or CHECKOUT.parent / "shared" / "data")
    if not (folder / part).exists():
        pytest.skip(f"{folder / part} is not there (DRAFTFLOW_TEST_DATA names the folder of the real data)")
    return folder / part


def run_script(script: str, *arguments: object, timeout_s: float = LIMIT_S) -> "subprocess.CompletedProcess[str]":
    """A Python process of its own, with the package and this module in reach."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=script_environment(),
    )


def start_script(script: str, *arguments: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=script_environment(),
    )


def script_environment() -> Dict[str, str]:
    package = str(Path(draftflow.__file__).parent.parent)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([package, str(HERE)]), "OMP_NUM_THREADS": "1"}


def in_forked_child(work: Callable[[], None]) -> int:
    """The exit code of a forked child that did `work`: 0, or 1 after an exception, which is printed."""
    return finish_fork(fork(work))


def fork(work: Callable[[], None]) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child != 0:
        return child
    code = 1
    try:
        import signal

        signal.alarm(LIMIT_S // 2)  # a child that hangs dies
        work()
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def finish_fork(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Thread(threading.Thread):
    """A thread whose exception comes out of join."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self.result: object = None
        self._failure: Optional[BaseException] = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self._work()
        except BaseException as failure:
            self._failure = failure

    def finish(self, timeout_s: float = LIMIT_S) -> object:
        self.join(timeout_s)
        assert not self.is_alive(), "the thread hangs"
        if self._failure is not None:
            raise self._failure
        return self.result
