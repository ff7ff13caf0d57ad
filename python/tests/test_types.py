# SPDX-License-Identifier: Apache-2.0
"""The stubs say what the module has, and a typed program is checked against them."""

import ast
import inspect
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import draftflow
from draftflow import _core
from stage import CHECKOUT, script_environment

STUB = Path(_core.__file__).parent / "_core.pyi"


def mypy(tmp_path, *arguments):
    if subprocess.run([sys.executable, "-c", "import mypy"], capture_output=True).returncode != 0:
        pytest.skip("mypy is not installed (Debian's mypy)")
    environment = {**script_environment(), "MYPY_CACHE_DIR": str(tmp_path / "cache")}
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300
    )


def test_the_stub_has_what_the_module_has(tmp_path):
    done = mypy(tmp_path, "mypy.stubtest", "--concise", "draftflow._core", "--mypy-config-file", CHECKOUT / "pyproject.toml")
    of_the_binding = ("metaclass differs", '__init__ is inconsistent, stub does not have *args argument "args"')
    found = [line for line in done.stdout.splitlines() if not line.endswith(of_the_binding)]
    assert [line for line in found if not line.startswith("Found ")] == [] and done.stderr == ""
    assert done.stdout.count("metaclass differs") > 10  # it has looked


def arguments_of(given):
    """[(argument, its default or None)], with "*" before those that are named."""
    shown = lambda value: None if value is None else ast.unparse(value)  # noqa: E731
    defaults = [None] * (len(given.args) - len(given.defaults)) + given.defaults
    found = [(argument.arg, shown(value)) for argument, value in zip(given.args, defaults)]
    if given.kwonlyargs:
        found.append(("*", None))
    return found + [(argument.arg, shown(value)) for argument, value in zip(given.kwonlyargs, given.kw_defaults)]


def stub_signatures():
    """{name or Class.name: its arguments}"""
    found = {}

    def visit(nodes, prefix):
        for node in nodes:
            if isinstance(node, ast.ClassDef):
                visit(node.body, node.name + ".")
            elif isinstance(node, ast.FunctionDef):
                found[prefix + node.name] = arguments_of(node.args)

    visit(ast.parse(STUB.read_text()).body, "")
    return found


def module_signatures():
    """The same from the first line of the docstrings, which the binding makes of what it binds."""
    found = {}
    places = [(name + ".", value) for name, value in vars(_core).items() if inspect.isclass(value)] + [("", _core)]
    for prefix, place in places:
        for name, value in vars(place).items():
            value = getattr(value, "__func__", value)
            special = name.startswith("__") and name != "__init__"
            if special or not callable(value) or inspect.isclass(value) or not value.__doc__:
                continue
            given = re.fullmatch(rf"{name}\((.*)\) -> .*", value.__doc__.splitlines()[0])
            if given is not None:
                text = re.sub(r": [A-Za-z_][\w.]*(\[[^=]*?\])?(?=,| =|$)", "", given.group(1))  # its types
                found[prefix + name] = arguments_of(ast.parse(f"def f({text}): ...").body[0].args)
    return found


def test_the_stub_has_the_modules_arguments_and_defaults():
    theirs, ours = module_signatures(), stub_signatures()
    assert len(theirs) > 80
    for name, arguments in theirs.items():
        assert len(ours[name]) == len(arguments), name
        named = [mine if theirs[0].startswith("arg") else theirs for theirs, mine in zip(arguments, ours[name])]
        assert ours[name] == named, name


PROGRAM = """
    from typing import Dict, Optional
    import draftflow
    from draftflow import Batch, Ledger, Store, Stream

    def main(folder: str, state: Optional[Dict[str, int]]) -> int:
        with Store.create(folder + "/store", kind="ledgered") as store, Ledger.open(folder + "/ledger.sqlite3") as ledger:
            ref = store.put({"x": [1]}, "s", run_id="run", metadata={"a": 1})
            ledger.commit_samples([ref])
            with store.get(ref, zero_copy=True) as tensors:
                print(tensors["x"], ref.num_tokens + 1)
            found = ledger.get_committed("s")
            if found is not None:
                print(found.sample_id.upper())
            leases, finished = ledger.lease_prompts("me")
            for lease in leases:
                store.put({"x": [1]}, lease.task.task_id, fence=ledger.fence(lease))
            stream = Stream(store, ledger, group="g", window=2)
            if state is not None:
                stream.load_state_dict(state)
            step = 0
            for batch in stream:
                step += len(batch.sample_ids)
                take(batch)
            stream.trained(step)
            try:
                return stream.checkpointed(step) + draftflow.sweep(store, ledger)
            except draftflow.NotFound as error:
                print(error)
                return 1

    def take(batch: Batch) -> None:
        print(batch.window + 1, batch.failed.get("s", "").upper(), batch["x"])
"""


def test_a_typed_program_is_checked(tmp_path):
    (tmp_path / "right.py").write_text(textwrap.dedent(PROGRAM))
    wrong = [
        ('kind="ledgered"', 'kind="sometimes"', "create"),
        ("ref.num_tokens + 1", 'ref.num_tokens + "1"', "operand"),
        ("found.sample_id.upper()", "found.sample_idd", "sample_idd"),
        ("if found is not None:", "if True:", "Optional"),
        ("fence=ledger.fence(lease)", "fence=lease", "fence"),
        ("batch.window + 1", "batch.windows", "windows"),
        ("group=\"g\", window=2", "group=7, window=2", "group"),
    ]
    for number, (old, new, _) in enumerate(wrong):
        assert old in PROGRAM
        (tmp_path / f"wrong{number}.py").write_text(textwrap.dedent(PROGRAM.replace(old, new)))
    shutil.copy(CHECKOUT / "pyproject.toml", tmp_path)
    # As a user has it: the package beside the program, its types found by py.typed.
    done = mypy(tmp_path, "mypy", "--strict", *sorted(path.name for path in tmp_path.glob("*.py")))
    errors = done.stdout.splitlines()
    assert [line for line in errors if line.startswith(("right.py", "draftflow", "..", "/"))] == [], done.stdout
    for number, (_, _, part) in enumerate(wrong):
        mine = [line for line in errors if line.startswith(f"wrong{number}.py") and "error" in line]
        assert len(mine) == 1 and part in mine[0], done.stdout


def test_the_package_says_that_it_is_typed():
    assert (Path(draftflow.__file__).parent / "py.typed").exists() and STUB.exists()
    public = {name for name in vars(draftflow) if not name.startswith("_")} - {"compat", "Any", "TYPE_CHECKING"}
    assert public - set(draftflow.__all__) == set()
    assert os.fspath(STUB).endswith("_core.pyi")
