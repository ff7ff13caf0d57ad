# SPDX-License-Identifier: Apache-2.0
import faulthandler
import itertools
import os
from pathlib import Path
from typing import Iterator

import pytest

import draftflow

_numbers = itertools.count()


@pytest.fixture(scope="session")
def real_stderr(pytestconfig: pytest.Config) -> Iterator[int]:
    with pytestconfig.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        copy = os.dup(2)
    yield copy
    os.close(copy)


@pytest.fixture(autouse=True)
def bounded(real_stderr: int) -> Iterator[None]:
    """A test that hangs, also one that keeps Python's lock, ends the run with the threads' tracebacks."""
    faulthandler.dump_traceback_later(300, exit=True, file=real_stderr)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(params=["memory", "folder"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[draftflow.Store]:
    """A store of each kind that can be written to."""
    url = f"mem://s{next(_numbers)}" if request.param == "memory" else str(tmp_path / "store")
    with draftflow.Store.create(url) as made:
        yield made


@pytest.fixture
def folder_store(tmp_path: Path) -> Iterator[draftflow.Store]:
    with draftflow.Store.create(str(tmp_path / "store")) as made:
        yield made


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[draftflow.Ledger]:
    with draftflow.Ledger.open(str(tmp_path / "ledger.sqlite3")) as made:
        yield made
