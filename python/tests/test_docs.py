# SPDX-License-Identifier: Apache-2.0
"""The Python in the documents runs.

Each ```python block of a document runs, in order, in one namespace and a temporary folder; an error names the document's own
line. ```python compat is one that needs draftflow.compat.specforge. What must not run is ```text or ```sh.
"""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import json
import pathlib
import re
from typing import List, NamedTuple

import pytest

import draftflow
from bounded_process import ROOT, Done, run_python

DOCUMENTS = ["README.md", "docs/python.md", "docs/from-specforge.md", "docs/walkthrough.md"]
PLAIN = {"text", "sh", "json", "yaml"}

# What runs the blocks: [[line, source], ...] of a document, as JSON on standard input.
RUNNER = """
import json, sys
name, blocks = json.load(sys.stdin)
namespace = {"__name__": "__main__"}
for line, source in blocks:
    print(f"{name}:{line}", flush=True)
    exec(compile("\\n" * line + source, name, "exec"), namespace)
"""


class Block(NamedTuple):
    line: int  # of its fence
    info: str
    source: str


def blocks_of(text: str) -> List[Block]:
    blocks, fence = [], None
    lines = text.splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.startswith("```"):
            continue
        if fence is None:
            fence = number
            continue
        blocks.append(Block(fence, lines[fence - 1][3:].strip(), "\n".join(lines[fence : number - 1]) + "\n"))
        fence = None
    assert fence is None, f"line {fence}: a block without an end"
    return blocks


def has_compat() -> bool:
    return importlib.util.find_spec("draftflow.compat") is not None


def run(name: str, blocks: List[Block], folder: pathlib.Path) -> Done:
    story = json.dumps([name, [[block.line, block.source] for block in blocks]])
    return run_python(["-c", RUNNER], folder=folder, stdin=story)


def check(name: str, kinds: List[str], folder: pathlib.Path) -> None:
    blocks = [block for block in blocks_of((ROOT / name).read_text()) if block.info in kinds]
    assert blocks
    done = run(name, blocks, folder)
    assert done.returncode == 0, f"{name}: the last of these blocks failed\n{done.output}"
    ran = [line for line in done.output.splitlines() if line.startswith(f"{name}:")]
    assert ran == [f"{name}:{block.line}" for block in blocks]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_blocks_run(name: str, tmp_path: pathlib.Path) -> None:
    check(name, ["python"], tmp_path)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_blocks_that_need_the_compatibility_layer_run(name: str, tmp_path: pathlib.Path) -> None:
    if not any(block.info == "python compat" for block in blocks_of((ROOT / name).read_text())):
        return
    if not has_compat():
        pytest.skip(f"the blocks of {name} marked 'compat' need draftflow.compat.specforge, which is not there yet")
    check(name, ["python", "python compat"], tmp_path)


def test_the_table_of_imports_holds() -> None:
    if not has_compat():
        pytest.skip("the table of docs/from-specforge.md needs draftflow.compat.specforge, which is not there yet")
    text = (ROOT / "docs/from-specforge.md").read_text()
    rows = re.findall(r"^\| (`[^|]*) \| (`[^|]*|the same) \| (`[^|]*) \|$", text, re.MULTILINE)
    imported = 0
    for here, there, names in rows:
        if here not in (there, "`training.backend`, `.strategy`, `.trainer`"):
            continue
        first, *rest = re.findall(r"`([^`]*)`", here)
        modules = [first, *(first.partition(".")[0] + other for other in rest)]
        places = [importlib.import_module(f"draftflow.compat.specforge.{module}") for module in modules]
        for name in re.findall(r"`([^`]*)`", names):
            assert any(hasattr(place, name) for place in places), f"{name} is in none of {modules}"
            imported += 1
    assert imported >= 40


@pytest.mark.parametrize("name", DOCUMENTS)
def test_each_block_says_whether_it_runs(name: str) -> None:
    for block in blocks_of((ROOT / name).read_text()):
        known = {"python", "python compat", *PLAIN} | ({""} if name == "README.md" else set())  # its diagram
        assert block.info in known, f"{name}:{block.line}: ```{block.info}: {', '.join(sorted(known))} are known"


def test_the_table_of_errors_holds() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \|", (ROOT / "docs/python.md").read_text(), re.MULTILINE)
    assert len(rows) == 8
    for name, also in rows:
        kinds = getattr(draftflow, name).__mro__
        assert draftflow.Error in kinds and getattr(builtins, also) in kinds


def test_importing_needs_the_standard_library_alone(tmp_path: pathlib.Path) -> None:
    story = "import sys, draftflow; draftflow.Store.create('mem://x'); print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    assert run_python(["-c", story], folder=tmp_path) == (0, "[]\n")


def test_an_error_names_the_line_of_the_document(tmp_path: pathlib.Path) -> None:
    first, second = "```python\nkept = 1\n```\n", "```python\nassert kept == 1\nassert kept == 2\n```\n"
    text = f"words\n\n{first}\n```text\nraise SystemExit(3)\n```\n\n{second}"
    blocks = [block for block in blocks_of(text) if block.info == "python"]
    done = run("planted.md", blocks, tmp_path)
    assert done.returncode == 1
    assert 'File "planted.md", line 13, in <module>' in done.output
    assert "AssertionError" in done.output
