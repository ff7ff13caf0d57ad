# SPDX-License-Identifier: Apache-2.0
import itertools
from pathlib import Path
from typing import Iterator

import pytest

import draftflow

_numbers = itertools.count()


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
