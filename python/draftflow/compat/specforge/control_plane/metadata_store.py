# SPDX-License-Identifier: Apache-2.0
"""MetadataStore: which samples are committed, which are acked, and which acks are durable.

``SQLiteMetadataStore`` reads and writes the reference's own file (docs/formats/reference.md): either program, and ``draftflow
ledger import``, may open what the other left.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import json
import sqlite3
import threading
from typing import Any, Dict, Iterable, Iterator, List, Optional, Set

from draftflow.compat.specforge.contracts import SCHEMA_VERSION, FeatureSpec, SampleRef
from draftflow.compat.specforge.limits import check_flag, check_ids, check_step

Marker = Dict[str, Any]  # {"acked": set of ids, "global_step": int or None, "optimizer_durable": of the last ack}


class MetadataStore(abc.ABC):
    """What a controller must not forget. Each call is one transaction, and harmless when made again. Thread-safe."""

    @abc.abstractmethod
    def commit_sample(self, ref: SampleRef) -> bool:
        """Whether the sample is new; a second ref of a committed sample changes nothing."""

    @abc.abstractmethod
    def is_committed(self, sample_id: str) -> bool: ...

    @abc.abstractmethod
    def get_committed(self, sample_id: str) -> Optional[SampleRef]: ...

    @abc.abstractmethod
    def committed_count(self) -> int: ...

    @abc.abstractmethod
    def all_committed_ids(self) -> List[str]:
        """In the order of their commits."""

    @abc.abstractmethod
    def record_train_ack(self, sample_ids: List[str], *, global_step: Optional[int], optimizer_durable: bool) -> None:
        """Acks the samples at the step (None: the step stays as it was).

        ``optimizer_durable``: a checkpoint that holds them is on disk. That is a fact about these samples for good: it says
        nothing about others, and a later ack without it takes nothing back.
        """

    @abc.abstractmethod
    def durable_marker(self) -> Marker:
        """``{"acked": every acked id, "global_step": the last one or None, "optimizer_durable": what the last ack said}``."""

    # Beyond the reference, with answers for stores that were written for it.
    def commit_samples(self, refs: List[SampleRef]) -> List[bool]:
        """``commit_sample`` for each; our own stores commit all of them or none."""
        return [self.commit_sample(ref) for ref in refs]

    def durable_ids(self) -> Set[str]:
        """The samples whose ack is durable."""
        marker = self.durable_marker()
        return set(marker["acked"]) if marker["optimizer_durable"] else set()

    def acked_count(self) -> int:
        return len(self.durable_marker()["acked"])

    def global_step(self) -> Optional[int]:
        step: Optional[int] = self.durable_marker()["global_step"]
        return step


class InMemoryMetadataStore(MetadataStore):
    """For runs that need not outlive their process."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._committed: Dict[str, SampleRef] = {}
        self._acked: Set[str] = set()
        self._durable: Set[str] = set()
        self._global_step: Optional[int] = None
        self._optimizer_durable = False

    def commit_sample(self, ref: SampleRef) -> bool:
        with self._lock:
            if ref.sample_id in self._committed:
                return False
            self._committed[ref.sample_id] = ref
            return True

    def commit_samples(self, refs: List[SampleRef]) -> List[bool]:
        check_ids("refs", (ref.sample_id for ref in refs))
        with self._lock:
            return [self.commit_sample(ref) for ref in refs]

    def is_committed(self, sample_id: str) -> bool:
        with self._lock:
            return sample_id in self._committed

    def get_committed(self, sample_id: str) -> Optional[SampleRef]:
        with self._lock:
            return self._committed.get(sample_id)

    def committed_count(self) -> int:
        with self._lock:
            return len(self._committed)

    def all_committed_ids(self) -> List[str]:
        with self._lock:
            return list(self._committed)

    def record_train_ack(self, sample_ids: List[str], *, global_step: Optional[int], optimizer_durable: bool) -> None:
        ids, step = check_ids("sample_ids", sample_ids), check_step(global_step)
        durable = check_flag("optimizer_durable", optimizer_durable)
        with self._lock:
            self._acked.update(ids)
            if durable:
                self._durable.update(ids)
            if step is not None:
                self._global_step = step
            self._optimizer_durable = durable

    def durable_marker(self) -> Marker:
        with self._lock:
            return {
                "acked": set(self._acked),
                "global_step": self._global_step,
                "optimizer_durable": self._optimizer_durable,
            }

    def durable_ids(self) -> Set[str]:
        with self._lock:
            return set(self._durable)

    def acked_count(self) -> int:
        with self._lock:
            return len(self._acked)

    def global_step(self) -> Optional[int]:
        with self._lock:
            return self._global_step


def sample_ref_to_json(ref: SampleRef) -> str:
    """One line, fields in their order. ValueError, naming the sample, for what JSON has no number for (NaN, infinity)."""
    try:
        return json.dumps(dataclasses.asdict(ref), allow_nan=False)
    except ValueError as error:
        text = f"the ref of sample {ref.sample_id!r} is no JSON: {error}; leave that value out of its metadata"
        raise ValueError(text) from error


def sample_ref_from_json(blob: str) -> SampleRef:
    """KeyError for a missing field; fields that the record does not have are passed over."""
    fields = json.loads(blob)
    if not isinstance(fields, dict):
        raise ValueError(f"a sample ref is a JSON object, not a {type(fields).__name__}: {blob[:80]!r}")
    specs = fields.get("feature_specs", {})
    return SampleRef(
        sample_id=fields["sample_id"],
        run_id=fields["run_id"],
        source_task_id=fields.get("source_task_id"),
        feature_store_uri=fields["feature_store_uri"],
        feature_keys=fields.get("feature_keys", {}),
        feature_specs={name: _spec_from_json(spec) for name, spec in specs.items()},
        strategy=fields["strategy"],
        schema_version=fields.get("schema_version", SCHEMA_VERSION),
        target_model_version=fields.get("target_model_version", "unknown"),
        draft_weight_version=fields.get("draft_weight_version"),
        tokenizer_version=fields.get("tokenizer_version", "unknown"),
        num_tokens=fields.get("num_tokens", 0),
        estimated_bytes=fields.get("estimated_bytes", 0),
        metadata=fields.get("metadata", {}),
    )


def _spec_from_json(fields: Dict[str, Any]) -> FeatureSpec:
    return FeatureSpec(
        name=fields["name"],
        shape=tuple(fields["shape"]),
        dtype=fields["dtype"],
        device_hint=fields.get("device_hint"),
        required=fields.get("required", True),
        target_repr=fields.get("target_repr"),
        target_meta=fields.get("target_meta", {}),
    )


# The reference's file knows one durability for all that is in `acked`. So that it and `ledger import` take each sample for what
# it is, `acked` holds the durable ones only as soon as there is one, with `optimizer_durable` true, and what is acked without
# being durable waits in `marker` under keys of its own. Neither of the others looks at keys it does not know.
_ASIDE = "acked_not_durable:"  # + sample id
_ASIDE_END = "acked_not_durable;"  # the first key behind all of those
_DURABLE_ROWS = "durable_rows"  # n: the first n rows of `acked` are durable, whatever the reference adds and says afterwards
_LAST_ACK = "last_ack_durable"  # "false" while the last ack was not durable though optimizer_durable is true

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS committed (sample_id TEXT PRIMARY KEY, ref_json TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS acked (sample_id TEXT PRIMARY KEY)",
    "CREATE TABLE IF NOT EXISTS marker (k TEXT PRIMARY KEY, v TEXT)",
)

_COMMIT = "INSERT OR IGNORE INTO committed VALUES (?, ?)"


class SQLiteMetadataStore(MetadataStore):
    """The reference's SQLite file at ``path`` (made if it is not there). Every call that returned survives a power cut.

    One connection, used by any thread in turn; other processes may have the file open, and wait for each other up to 30 s.
    sqlite3.DatabaseError, naming the path, for a file that is none.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._conn = sqlite3.connect(path, timeout=30.0, isolation_level=None, check_same_thread=False)
        try:
            self._conn.execute("PRAGMA journal_mode=WAL")
            self._conn.execute("PRAGMA synchronous=FULL")
            with self._transaction("IMMEDIATE"):
                for statement in _SCHEMA:
                    self._conn.execute(statement)
        except sqlite3.DatabaseError as error:
            self._conn.close()
            text = f"the ledger {path}: {error}; name a ledger of this kind, or a file that is not there yet"
            raise type(error)(text) from error

    def commit_sample(self, ref: SampleRef) -> bool:
        row = (ref.sample_id, sample_ref_to_json(ref))
        with self._lock:
            return self._conn.execute(_COMMIT, row).rowcount == 1  # a statement of its own is a transaction

    def commit_samples(self, refs: List[SampleRef]) -> List[bool]:
        rows = [(ref.sample_id, sample_ref_to_json(ref)) for ref in refs]
        with self._transaction("IMMEDIATE") as db:
            return [db.execute(_COMMIT, row).rowcount == 1 for row in rows]

    def is_committed(self, sample_id: str) -> bool:
        with self._lock:
            return self._conn.execute("SELECT 1 FROM committed WHERE sample_id = ?", (sample_id,)).fetchone() is not None

    def get_committed(self, sample_id: str) -> Optional[SampleRef]:
        with self._lock:
            row = self._conn.execute("SELECT ref_json FROM committed WHERE sample_id = ?", (sample_id,)).fetchone()
        return sample_ref_from_json(row[0]) if row else None

    def committed_count(self) -> int:
        with self._lock:
            return int(self._conn.execute("SELECT COUNT(*) FROM committed").fetchone()[0])

    def all_committed_ids(self) -> List[str]:
        with self._lock:
            return [row[0] for row in self._conn.execute("SELECT sample_id FROM committed ORDER BY rowid")]

    def record_train_ack(self, sample_ids: List[str], *, global_step: Optional[int], optimizer_durable: bool) -> None:
        ids, step = check_ids("sample_ids", sample_ids), check_step(global_step)
        durable = check_flag("optimizer_durable", optimizer_durable)
        with self._transaction("IMMEDIATE") as db:
            state = _AckState(db)
            if durable:
                state.set_aside_what_is_not_durable()
                db.executemany("INSERT OR IGNORE INTO acked VALUES (?)", [(each,) for each in ids])
                db.executemany("DELETE FROM marker WHERE k = ?", [(_ASIDE + each,) for each in ids])
                db.execute("DELETE FROM marker WHERE k = ?", (_LAST_ACK,))
                state.say(durable=True)
            elif state.durable_rows == 0:
                db.executemany("INSERT OR IGNORE INTO acked VALUES (?)", [(each,) for each in ids])
                state.say(durable=False)
            else:
                state.set_aside_what_is_not_durable()
                _set_aside(db, ids)
                _mark(db, _LAST_ACK, False)
                state.say(durable=True)
            if step is not None:
                _mark(db, "global_step", step)

    def durable_marker(self) -> Marker:
        with self._transaction("DEFERRED") as db:
            state = _AckState(db)
            acked = {row[0] for row in db.execute("SELECT sample_id FROM acked")}
            aside = db.execute("SELECT k FROM marker WHERE k >= ? AND k < ?", (_ASIDE, _ASIDE_END))
            acked.update(row[0][len(_ASIDE) :] for row in aside)
            step = _marked(db, "global_step", None)
            return {"acked": acked, "global_step": step, "optimizer_durable": state.last_ack_durable()}

    def durable_ids(self) -> Set[str]:
        with self._transaction("DEFERRED") as db:
            rows = db.execute("SELECT sample_id FROM acked WHERE rowid <= ?", (_AckState(db).durable_rows,))
            return {row[0] for row in rows}

    def acked_count(self) -> int:
        with self._transaction("DEFERRED") as db:
            acked = db.execute("SELECT COUNT(*) FROM acked").fetchone()[0]
            aside = "SELECT COUNT(*) FROM marker WHERE k >= ? AND k < ? AND substr(k, ?) NOT IN (SELECT sample_id FROM acked)"
            return int(acked + db.execute(aside, (_ASIDE, _ASIDE_END, len(_ASIDE) + 1)).fetchone()[0])

    def global_step(self) -> Optional[int]:
        with self._lock:
            step: Optional[int] = _marked(self._conn, "global_step", None)
            return step

    def close(self) -> None:
        with self._lock:
            self._conn.close()

    @contextlib.contextmanager
    def _transaction(self, kind: str) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._conn.execute(f"BEGIN {kind}")
            try:
                yield self._conn
                self._conn.execute("COMMIT")
            except BaseException:
                if self._conn.in_transaction:
                    self._conn.execute("ROLLBACK")
                raise


class _AckState:
    """What the rows of ``acked`` mean, in a transaction. Rows are never taken away but from the end: rowids are 1, 2, 3 ..."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self.rows = int(db.execute("SELECT IFNULL(MAX(rowid), 0) FROM acked").fetchone()[0])
        self.flag = bool(_marked(db, "optimizer_durable", False))
        self._recorded = int(_marked(db, _DURABLE_ROWS, 0))
        self.durable_rows = self.rows if self.flag else min(self._recorded, self.rows)

    def last_ack_durable(self) -> bool:
        # Rows beyond the recorded ones were acked by the reference since, durably, or its flag would be false.
        return self.flag and (self.rows > self._recorded or bool(_marked(self._db, _LAST_ACK, True)))

    def set_aside_what_is_not_durable(self) -> None:
        rows = self._db.execute("SELECT sample_id FROM acked WHERE rowid > ?", (self.durable_rows,)).fetchall()
        self._db.execute("DELETE FROM acked WHERE rowid > ?", (self.durable_rows,))
        _set_aside(self._db, (row[0] for row in rows))

    def say(self, *, durable: bool) -> None:
        _mark(self._db, "optimizer_durable", durable)
        rows = "SELECT IFNULL(MAX(rowid), 0) FROM acked"
        _mark(self._db, _DURABLE_ROWS, int(self._db.execute(rows).fetchone()[0]) if durable else 0)


def _set_aside(db: sqlite3.Connection, ids: Iterable[str]) -> None:
    missing = "INSERT OR IGNORE INTO marker SELECT ?, 'true' WHERE NOT EXISTS (SELECT 1 FROM acked WHERE sample_id = ?)"
    db.executemany(missing, [(_ASIDE + each, each) for each in ids])


def _mark(db: sqlite3.Connection, key: str, value: Any) -> None:
    db.execute("INSERT OR REPLACE INTO marker VALUES (?, ?)", (key, json.dumps(value)))


def _marked(db: sqlite3.Connection, key: str, default: Any) -> Any:
    row = db.execute("SELECT v FROM marker WHERE k = ?", (key,)).fetchone()
    return default if row is None else json.loads(row[0])


__all__ = ["MetadataStore", "InMemoryMetadataStore", "SQLiteMetadataStore", "sample_ref_to_json", "sample_ref_from_json"]
