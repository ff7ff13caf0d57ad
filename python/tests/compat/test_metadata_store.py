# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import threading
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Set, Tuple

import pytest
from compat_refs import make_ref, make_refs, real_data

from draftflow.compat.specforge.contracts import SampleRef
from draftflow.compat.specforge.control_plane import metadata_store
from draftflow.compat.specforge.control_plane.metadata_store import (
    InMemoryMetadataStore,
    MetadataStore,
    SQLiteMetadataStore,
    sample_ref_from_json,
    sample_ref_to_json,
)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "ledger.sqlite3")


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, path: str) -> Iterator[MetadataStore]:
    if request.param == "memory":
        yield InMemoryMetadataStore()
        return
    made = SQLiteMetadataStore(path)
    yield made
    made.close()


class ReferenceFile:
    """The file as the reference and `ledger import` take it: three tables, one durability for all acks."""

    def __init__(self, path: str) -> None:
        self.db = sqlite3.connect(path, isolation_level=None)

    def acked(self) -> Set[str]:
        return {row[0] for row in self.db.execute("SELECT sample_id FROM acked")}

    def marker(self, key: str) -> Any:
        row = self.db.execute("SELECT v FROM marker WHERE k = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def released(self) -> Set[str]:
        return self.acked() if self.marker("optimizer_durable") else set()

    def ack(self, ids: List[str], step: Optional[int], durable: bool) -> None:
        self.db.execute("BEGIN IMMEDIATE")
        self.db.executemany("INSERT OR IGNORE INTO acked (sample_id) VALUES (?)", [(each,) for each in ids])
        if step is not None:
            self.db.execute("INSERT OR REPLACE INTO marker (k, v) VALUES ('global_step', ?)", (json.dumps(step),))
        self.db.execute("INSERT OR REPLACE INTO marker (k, v) VALUES ('optimizer_durable', ?)", (json.dumps(durable),))
        self.db.execute("COMMIT")


# Both stores


def test_commits_are_kept_once_and_in_order(store: MetadataStore) -> None:
    refs = [make_ref(name) for name in ("z", "a", "m")]
    assert [store.commit_sample(ref) for ref in refs] == [True] * 3
    assert store.commit_sample(refs[0]) is False
    assert store.commit_sample(make_ref("z", generation=2)) is False
    assert store.committed_count() == 3
    assert store.all_committed_ids() == ["z", "a", "m"]
    assert store.is_committed("a") and not store.is_committed("b")
    assert store.get_committed("z") == refs[0] and store.get_committed("b") is None


def test_a_batch_of_commits(store: MetadataStore) -> None:
    store.commit_sample(make_ref("s1"))
    assert store.commit_samples([*make_refs(3), make_ref("s0")]) == [True, False, True, False]
    assert store.committed_count() == 3


def test_the_marker_before_and_after_acks(store: MetadataStore) -> None:
    assert store.durable_marker() == {"acked": set(), "global_step": None, "optimizer_durable": False}
    store.record_train_ack(["s0", "s1"], global_step=7, optimizer_durable=True)
    assert store.durable_marker() == {"acked": {"s0", "s1"}, "global_step": 7, "optimizer_durable": True}
    store.record_train_ack(["s1", "s2"], global_step=None, optimizer_durable=False)
    assert store.durable_marker() == {"acked": {"s0", "s1", "s2"}, "global_step": 7, "optimizer_durable": False}
    assert (store.acked_count(), store.global_step()) == (3, 7)
    store.record_train_ack([], global_step=9, optimizer_durable=False)
    assert store.global_step() == 9


def test_the_marker_is_the_callers_own(store: MetadataStore) -> None:
    store.record_train_ack(["s0"], global_step=1, optimizer_durable=True)
    store.durable_marker()["acked"].clear()
    store.durable_ids().clear()
    assert store.durable_marker()["acked"] == {"s0"} == store.durable_ids()


def test_durability_is_each_samples_own(store: MetadataStore) -> None:
    store.record_train_ack(["a", "b"], global_step=1, optimizer_durable=False)
    assert store.durable_ids() == set()
    store.record_train_ack(["a"], global_step=1, optimizer_durable=True)
    assert store.durable_ids() == {"a"}
    store.record_train_ack(["a", "c"], global_step=2, optimizer_durable=False)
    assert store.durable_ids() == {"a"}
    store.record_train_ack(["c"], global_step=None, optimizer_durable=True)
    assert store.durable_ids() == {"a", "c"}
    assert store.durable_marker() == {"acked": {"a", "b", "c"}, "global_step": 2, "optimizer_durable": True}
    assert store.acked_count() == 3


def test_an_abstract_store_needs_the_references_verbs_only() -> None:
    class Theirs(MetadataStore):
        def __init__(self) -> None:
            self.inner = InMemoryMetadataStore()

        def commit_sample(self, ref: SampleRef) -> bool:
            return self.inner.commit_sample(ref)

        def is_committed(self, sample_id: str) -> bool:
            return self.inner.is_committed(sample_id)

        def get_committed(self, sample_id: str) -> Optional[SampleRef]:
            return self.inner.get_committed(sample_id)

        def committed_count(self) -> int:
            return self.inner.committed_count()

        def all_committed_ids(self) -> List[str]:
            return self.inner.all_committed_ids()

        def record_train_ack(self, sample_ids: List[str], *, global_step: Optional[int], optimizer_durable: bool) -> None:
            self.inner.record_train_ack(sample_ids, global_step=global_step, optimizer_durable=optimizer_durable)

        def durable_marker(self) -> Dict[str, Any]:
            return self.inner.durable_marker()

    store = Theirs()
    assert store.commit_samples(make_refs(2)) == [True, True]
    store.record_train_ack(["s0"], global_step=3, optimizer_durable=False)
    assert (store.durable_ids(), store.acked_count(), store.global_step()) == (set(), 1, 3)
    store.record_train_ack(["s1"], global_step=4, optimizer_durable=True)
    assert store.durable_ids() == {"s0", "s1"}  # such a store knows no better
    with pytest.raises(TypeError):
        MetadataStore()  # type: ignore[abstract]


# JSON


def test_a_ref_survives_its_json() -> None:
    ref = make_ref("s0", task_id="t0", nested={"a": [1, None, "\u00e9"]})
    again = sample_ref_from_json(sample_ref_to_json(ref))
    assert again == ref
    assert again.feature_specs["hidden_state"].shape == (1, 8, 4)


def test_the_json_of_a_ref_is_the_references_byte_for_byte() -> None:
    ledger = real_data("reference-store/ledger.sqlite3")
    rows = sqlite3.connect(f"file:{ledger}?mode=ro&immutable=1", uri=True).execute("SELECT ref_json FROM committed").fetchall()
    assert len(rows) == 8
    for (blob,) in rows:
        assert sample_ref_to_json(sample_ref_from_json(blob)) == blob


def test_a_ref_needs_its_ids_and_takes_defaults_for_the_rest() -> None:
    least = {"sample_id": "s0", "run_id": "r", "feature_store_uri": "mem://st/s0", "strategy": "eagle3"}
    ref = sample_ref_from_json(json.dumps({**least, "of_tomorrow": 1}))
    assert (ref.schema_version, ref.source_task_id, ref.feature_specs, ref.num_tokens) == (1, None, {}, 0)
    for missing in least:
        with pytest.raises(KeyError, match=missing):
            sample_ref_from_json(json.dumps({key: value for key, value in least.items() if key != missing}))


def test_another_schema_version_is_read_as_it_is() -> None:
    blob = sample_ref_to_json(make_ref("s0")).replace('"schema_version": 1', '"schema_version": 2')
    assert sample_ref_from_json(blob).schema_version == 2


# The file


def test_what_was_said_survives_a_restart(path: str) -> None:
    store = SQLiteMetadataStore(path)
    store.commit_samples(make_refs(3))
    store.record_train_ack(["s0"], global_step=1, optimizer_durable=True)
    store.record_train_ack(["s1"], global_step=2, optimizer_durable=False)
    store.close()
    store.close()
    again = SQLiteMetadataStore(path)
    assert again.all_committed_ids() == ["s0", "s1", "s2"] and again.get_committed("s1") == make_ref("s1")
    assert again.durable_marker() == {"acked": {"s0", "s1"}, "global_step": 2, "optimizer_durable": False}
    assert again.durable_ids() == {"s0"}
    again.close()


def test_the_schema_is_the_references(path: str) -> None:
    ours = SQLiteMetadataStore(path)
    wanted = [
        "CREATE TABLE acked (sample_id TEXT PRIMARY KEY)",
        "CREATE TABLE committed (sample_id TEXT PRIMARY KEY, ref_json TEXT NOT NULL)",
        "CREATE TABLE marker (k TEXT PRIMARY KEY, v TEXT)",
    ]
    rows = ours._conn.execute("SELECT sql FROM sqlite_master WHERE type = 'table' ORDER BY name").fetchall()
    assert [row[0] for row in rows] == wanted
    assert ours._conn.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert ours._conn.execute("PRAGMA synchronous").fetchone()[0] == 2
    ours.close()
    theirs = real_data("reference-store/ledger.sqlite3")
    db = sqlite3.connect(f"file:{theirs}?mode=ro&immutable=1", uri=True)
    assert [row[0] for row in db.execute("SELECT sql FROM sqlite_master WHERE type = 'table' ORDER BY name")] == wanted


def test_the_references_ledger_opens(tmp_path: Path) -> None:
    copy = shutil.copy(real_data("reference-store/ledger.sqlite3"), tmp_path)
    store = SQLiteMetadataStore(copy)
    assert store.all_committed_ids() == [f"stories:{number:08d}" for number in range(8)]
    trained = {f"stories:{number:08d}" for number in range(3)}
    assert store.durable_marker() == {"acked": trained, "global_step": 2, "optimizer_durable": True}
    assert store.durable_ids() == trained
    ref = store.get_committed("stories:00000000")
    assert ref is not None and ref.feature_specs["aux_hidden_state"].shape == (1, 192, 192)
    store.record_train_ack(["stories:00000003"], global_step=3, optimizer_durable=False)
    assert store.durable_ids() == trained and store.acked_count() == 4
    store.close()
    assert ReferenceFile(copy).released() == trained


def test_nothing_durable_is_said_as_the_reference_says_it(path: str) -> None:
    SQLiteMetadataStore(path).record_train_ack(["a", "b"], global_step=4, optimizer_durable=False)
    theirs = ReferenceFile(path)
    assert (theirs.acked(), theirs.marker("optimizer_durable"), theirs.marker("global_step")) == ({"a", "b"}, False, 4)


Ack = Tuple[List[str], bool]


@pytest.mark.parametrize(
    "acks",
    [
        [(["a"], True), (["b"], False)],
        [(["a"], False), (["b"], True)],
        [(["a", "b"], False), (["a"], True), (["c"], False), (["b"], True), (["d"], False)],
        [(["a"], False), ([], True), (["b"], False)],
        [(["a:b", "acked_not_durable:a"], False), (["a:b"], True), (["", ";"], False)],
    ],
)
def test_the_reference_releases_exactly_what_is_durable(path: str, acks: List[Ack]) -> None:
    store, theirs = SQLiteMetadataStore(path), ReferenceFile(path)
    durable: Set[str] = set()
    acked: Set[str] = set()
    for step, (names, is_durable) in enumerate(acks, 1):
        store.record_train_ack(names, global_step=step, optimizer_durable=is_durable)
        acked.update(names)
        durable.update(names if is_durable else [])
        assert theirs.released() == durable == store.durable_ids()
        assert store.durable_marker() == {"acked": acked, "global_step": step, "optimizer_durable": is_durable}
        assert store.acked_count() == len(acked)
        aside = theirs.db.execute("SELECT COUNT(*) FROM marker WHERE k LIKE 'acked_not_durable:%'").fetchone()[0]
        assert aside == (len(acked - durable) if theirs.marker("optimizer_durable") else 0) or not durable
    store.close()


def test_what_the_reference_adds_takes_nothing_back(path: str) -> None:
    store, theirs = SQLiteMetadataStore(path), ReferenceFile(path)
    store.record_train_ack(["a"], global_step=1, optimizer_durable=True)
    store.record_train_ack(["b"], global_step=2, optimizer_durable=False)
    theirs.ack(["c"], 3, False)
    assert store.durable_ids() == {"a"}
    assert store.durable_marker() == {"acked": {"a", "b", "c"}, "global_step": 3, "optimizer_durable": False}
    store.record_train_ack(["d"], global_step=4, optimizer_durable=False)
    assert store.durable_ids() == {"a"} == theirs.released()
    theirs.ack(["b", "e"], 5, True)
    assert store.durable_ids() == {"a", "b", "e"}
    assert store.durable_marker() == {"acked": set("abcde"), "global_step": 5, "optimizer_durable": True}
    assert store.acked_count() == 5
    store.record_train_ack(["f"], global_step=6, optimizer_durable=True)
    assert store.durable_ids() == {"a", "b", "e", "f"} == theirs.released()
    store.close()


def test_vacuum_keeps_what_is_durable(path: str) -> None:
    store, theirs = SQLiteMetadataStore(path), ReferenceFile(path)
    store.record_train_ack(["x", "y"], global_step=1, optimizer_durable=False)
    store.record_train_ack(["y", "a"], global_step=1, optimizer_durable=True)
    theirs.ack(["c"], 3, False)
    store.record_train_ack(["d"], global_step=4, optimizer_durable=False)
    theirs.ack(["e"], 5, False)
    store._conn.execute("VACUUM")
    assert store.durable_ids() == {"y", "a"}
    store.close()


@pytest.mark.parametrize("failing", range(1, 9))
def test_an_ack_is_all_or_nothing(path: str, failing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SQLiteMetadataStore(path)
    store.record_train_ack(["a", "b"], global_step=1, optimizer_durable=False)
    before = (store.durable_marker(), store.durable_ids())

    class Failing:
        """Fails at one statement of a transaction, as a full disk does."""

        def __init__(self, inner: sqlite3.Connection) -> None:
            self.inner, self.left = inner, failing

        def run(self, call: Callable[..., Any], sql: str, *rest: Any) -> Any:
            if not sql.startswith(("BEGIN", "ROLLBACK")):
                self.left -= 1
                if self.left == 0:
                    raise sqlite3.OperationalError("database or disk is full")
            return call(sql, *rest)

        def execute(self, sql: str, *rest: Any) -> Any:
            return self.run(self.inner.execute, sql, *rest)

        def executemany(self, sql: str, *rest: Any) -> Any:
            return self.run(self.inner.executemany, sql, *rest)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

    real = store._conn
    monkeypatch.setattr(store, "_conn", Failing(real))
    with pytest.raises(sqlite3.OperationalError):
        store.record_train_ack(["b", "c"], global_step=2, optimizer_durable=True)
    monkeypatch.setattr(store, "_conn", real)
    assert (store.durable_marker(), store.durable_ids()) == before
    store.record_train_ack(["b", "c"], global_step=2, optimizer_durable=True)
    assert store.durable_ids() == {"b", "c"}
    store.close()


def test_a_batch_with_a_ref_that_is_no_json_commits_nothing(path: str) -> None:
    store = SQLiteMetadataStore(path)
    with pytest.raises(ValueError, match="'s1' is no JSON"):
        store.commit_samples([make_ref("s0"), make_ref("s1", score=float("nan"))])
    with pytest.raises(TypeError):
        store.commit_samples([make_ref("s0"), make_ref("s1", score=object())])
    assert store.committed_count() == 0
    store.close()


def test_a_file_that_is_no_ledger_is_named(tmp_path: Path) -> None:
    stranger = tmp_path / "notes.txt"
    stranger.write_bytes(b"not a database, " * 100)
    with pytest.raises(sqlite3.DatabaseError, match="notes.txt") as refused:
        SQLiteMetadataStore(str(stranger))
    assert refused.value.__traceback__ is not None  # which would keep a connection open that nobody closed
    opened = [os.path.realpath(f"/proc/self/fd/{each}") for each in os.listdir("/proc/self/fd")]
    assert str(stranger) not in opened
    assert stranger.read_bytes() == b"not a database, " * 100


def test_threads_share_a_store(store: MetadataStore) -> None:
    won: List[str] = []

    def commit(first: int) -> None:
        for number in range(first, first + 20):
            if store.commit_sample(make_ref(f"s{number}")):
                won.append(f"s{number}")
            store.record_train_ack([f"s{number}"], global_step=number, optimizer_durable=number % 2 == 0)

    threads = [threading.Thread(target=commit, args=(first,)) for first in (0, 10, 0, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(won) == sorted(f"s{number}" for number in range(30))
    assert store.durable_ids() == {f"s{number}" for number in range(0, 30, 2)}


def test_two_stores_share_a_file(path: str) -> None:
    one, two = SQLiteMetadataStore(path), SQLiteMetadataStore(path)
    assert one.commit_sample(make_ref("s0")) and not two.commit_sample(make_ref("s0"))
    two.record_train_ack(["s0"], global_step=1, optimizer_durable=True)
    one.record_train_ack(["s1"], global_step=2, optimizer_durable=False)
    assert one.durable_ids() == two.durable_ids() == {"s0"}
    one.close()
    two.close()


def test_draftflow_imports_the_file(path: str, tmp_path: Path) -> None:
    built = Path(__file__).resolve().parents[3] / "build" / "bin" / "draftflow"
    program = Path(os.environ.get("DRAFTFLOW_PROGRAM", built))
    if not program.exists():
        pytest.skip(f"{program} is not there: make build, or name another in DRAFTFLOW_PROGRAM")
    store = SQLiteMetadataStore(path)
    store.commit_samples(make_refs(4))
    store.record_train_ack(["s0"], global_step=1, optimizer_durable=True)
    store.record_train_ack(["s1"], global_step=2, optimizer_durable=False)
    store.close()
    command = [str(program), "ledger", "import", str(tmp_path / "new.sqlite3"), "--from", path, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["committed"], said["freed"]) == (4, 1)


def test_the_file_is_read_with_keys_that_only_we_know() -> None:
    assert metadata_store._ASIDE < metadata_store._ASIDE + "\U0010ffff" < metadata_store._ASIDE_END
