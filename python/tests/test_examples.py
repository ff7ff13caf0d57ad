# SPDX-License-Identifier: Apache-2.0
"""The examples of examples/python, run as a person would, and what they leave on the books."""

from __future__ import annotations

import io
import os
import pathlib
import shutil
import re
import subprocess
import tokenize
from typing import Any, List

import pytest

import draftflow
from bounded_process import EXAMPLES, ROOT, run_python

DATA = pathlib.Path(os.environ.get("DRAFTFLOW_TEST_DATA", str(ROOT.parent / "shared" / "data")))


def run(name: str, folder: pathlib.Path, *arguments: Any) -> List[str]:
    done = run_python([str(EXAMPLES / name), *map(str, arguments)], folder=folder)
    assert done.returncode == 0, done.output
    return done.output.splitlines()


def check_books(path: pathlib.Path, group: str, trained: List[str]) -> draftflow.Ledger:
    """The group has trained these samples, each once, and the ledger holds together."""
    ledger = draftflow.Ledger.open(str(path), read_only=True)
    assert ledger.trained_ids(group) == trained
    assert ledger.status()["groups"][group]["durable"] == len(trained)
    assert ledger.check() == []
    return ledger


def steps_of(lines: List[str], pattern: str) -> List[int]:
    return [int(found[1]) for found in (re.match(pattern, line) for line in lines) if found]


def test_capture_and_train_goes_on_where_it_was(tmp_path: pathlib.Path) -> None:
    first = run("capture_and_train.py", tmp_path, tmp_path, 7)
    assert steps_of(first, r"step (\d+):") == [1, 2, 3, 4, 5, 6, 7]
    assert first[-1].startswith("step 7:")
    second = run("capture_and_train.py", tmp_path, tmp_path)
    assert second[0] == "resumed from the checkpoint of step 6"  # step 7 is in no checkpoint
    assert steps_of(second, r"step (\d+):") == [7, 8, 9, 10, 11, 12]
    assert second[-1] == "done: 96 samples trained, 0 in the store"
    losses = [float(re.search(r"loss (\d+\.\d+)", line)[1]) for line in first + second if line.startswith("step")]
    assert losses[-1] < losses[0] - 0.5
    # Step 7 trained the same samples again, from the same weights.
    assert losses[6] == losses[7]
    ledger = check_books(tmp_path / "ledger.sqlite3", "draft", [f"text:{i:08d}" for i in range(96)])
    status = ledger.status()
    assert (status["committed"], status["freed"], status["groups"]["draft"]["dropped"]) == (99, 99, 3)
    third = run("capture_and_train.py", tmp_path, tmp_path)
    assert third[0] == "resumed from the checkpoint of step 12"
    assert third[1:] == ["checkpoint of step 12: the bytes of 0 samples are freed", second[-1]]


def test_capture_and_train_is_short() -> None:
    """60 lines of code, the module's text, comments and blank lines aside."""
    source = (EXAMPLES / "capture_and_train.py").read_text()
    code = set()
    blank = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = [token for token in tokenize.generate_tokens(io.StringIO(source).readline) if token.type not in blank]
    for token in tokens[1:]:  # the first is the module's docstring
        code.update(range(token.start[0], token.end[0] + 1))
    assert len(code) <= 60


def test_ddp_trains_each_sample_once_whatever_the_width(tmp_path: pathlib.Path) -> None:
    lines = run("ddp.py", tmp_path, tmp_path)
    assert steps_of(lines, r"step (\d+) of 2 ranks:") == [1, 2, 3, 4, 5]
    assert steps_of(lines, r"step (\d+) of 1 ranks:") == [5, 6, 7, 8]  # step 5 was in no checkpoint
    # What the second rank lacked in window 1 is named by it; the step had the first rank's positions.
    assert [line.split(" has no weight")[0] for line in lines if " has no weight" in line] == [
        "rank 1: run:00000005",
        "rank 1: run:00000007",
    ]
    positions = [int(line.split()[-2]) for line in lines if line.startswith("step")]
    assert positions[1] < 0.7 * positions[0]
    lost = ["run:00000005", "run:00000007"]
    assert lines[-1] == f"done: 30 samples trained, 30 different ones; lost: {lost}"
    check_books(tmp_path / "ledger.sqlite3", "draft", [f"run:{i:08d}" for i in range(32) if i not in (5, 7)])


def test_what_the_command_line_takes_over_is_read(tmp_path: pathlib.Path) -> None:
    program = pathlib.Path(draftflow.__file__).parents[2] / "bin" / "draftflow"
    if not program.exists():
        pytest.skip(f"{program} is not built")
    run("move_offline_folder.py", tmp_path, tmp_path / "moved")
    moved, offline, taken = tmp_path / "moved", str(tmp_path / "offline.sqlite3"), str(tmp_path / "taken.sqlite3")
    subprocess.run([program, "ingest", moved / "features", "--ledger", offline], check=True, timeout=60)
    subprocess.run([program, "ledger", "import", taken, "--from", moved / "specforge.sqlite3"], check=True, timeout=60)

    in_place = draftflow.Stream(draftflow.Store.open("file://"), draftflow.Ledger.open(offline), window=5, timeout_s=60)
    assert sorted(name for batch in in_place for name in batch.sample_ids) == [f"offline:{i:08d}" for i in range(10)]
    stream = draftflow.Stream(draftflow.Store.open(str(moved / "st")), draftflow.Ledger.open(taken), window=4, timeout_s=60)
    for step, batch in enumerate(stream, start=1):
        assert not batch.failed
        stream.trained(step)
    stream.checkpointed(step)
    check_books(tmp_path / "taken.sqlite3", "train", [f"run:{i:08d}" for i in range(2, 10)])
    assert len(list((moved / "st").iterdir())) == 10  # whoever wrote them frees them


def check_moved(out: pathlib.Path, lines: List[str], files: int, left: List[str]) -> None:
    in_place = [line.split(" hidden_state")[0].split()[4:] for line in lines if line.startswith("in place: step")]
    windows = files // 4
    assert len(in_place) == 2 * windows
    epochs = [sum(in_place[:windows], []), sum(in_place[windows:], [])]
    assert all(len(set(epoch)) == 4 * windows for epoch in epochs)
    assert epochs[0] != epochs[1]
    check_books(out / "stream.sqlite3", "train", [f"offline:{i:08d}" for i in range(4 * windows)])
    with draftflow.Store.open(str(out / "store")) as store:
        assert store.health()["resident_samples"] == 0
    check_books(out / "taken-over.sqlite3", "train", left)


def test_move_offline_folder(tmp_path: pathlib.Path) -> None:
    out = tmp_path / "moved"
    lines = run("move_offline_folder.py", tmp_path, out)
    check_moved(out, lines, 10, [f"run:{i:08d}" for i in range(2, 10)])
    assert len(list((out / "features").iterdir())) == len(list((out / "st").iterdir())) == 10


def test_move_what_specforge_wrote(tmp_path: pathlib.Path) -> None:
    for needed in ("features-torch", "reference-store"):
        if not (DATA / needed).is_dir():
            pytest.skip(f"{DATA / needed} is not there")
    features, out = DATA / "features-torch", tmp_path / "moved"
    # A copy: SQLite writes beside what it reads.
    reference = pathlib.Path(shutil.copytree(DATA / "reference-store", tmp_path / "reference"))
    lines = run("move_offline_folder.py", tmp_path, out, features, reference / "st", reference / "ledger.sqlite3")
    # 8 were committed and 3 of them acked: of the 5 left, 4 make a window.
    check_moved(out, lines, 64, [f"stories:{i:08d}" for i in range(3, 7)])
