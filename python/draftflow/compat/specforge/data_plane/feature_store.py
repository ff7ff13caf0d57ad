# SPDX-License-Identifier: Apache-2.0
"""FeatureStore, what every store offers, and LocalFeatureStore, which keeps samples in this process's memory.

    store = LocalFeatureStore("st")
    ref = store.put({"x": torch.ones(1, 4)}, sample_id="s0", metadata={"run_id": "run"})
    tensors, handle = store.get(ref)
    store.release(handle)  # the last release frees the sample

A store owns its bytes: it copies what is put, and what it hands out is a copy. All functions may be called from any thread.
"""

from __future__ import annotations

import abc
import hashlib
import itertools
import logging
import math
import os
import re
import secrets
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any, Callable, Iterable, Optional
from urllib.parse import quote

from draftflow.compat.specforge.contracts import SCHEMA_VERSION, FeatureHandle, FeatureSpec, SampleRef
from draftflow.compat.specforge.data_plane.put_ref import make_ref, record
from draftflow.compat.specforge.limits import check_clock, check_count, check_limit, check_time, one_of

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_DTYPE_BYTES = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "int16": 2,
    "float16": 2,
    "bfloat16": 2,
    "int32": 4,
    "float32": 4,
    "int64": 8,
    "float64": 8,
    "complex64": 8,
    "complex128": 16,
}
_MAX_ID_BYTES = 1024

# Numbers of generations and of leases: greater with each, shared by all stores of the process, and from a random start, so
# that a ref or a handle of another store, or of a process before this one, never fits. 2**52 leaves room below 2**53.
_numbers = itertools.count(secrets.randbits(52))


def _leave_parents_numbers() -> None:
    global _numbers
    _numbers = itertools.count(next(_numbers) + 1 + secrets.randbits(44))


os.register_at_fork(after_in_child=_leave_parents_numbers)


def spec_from_tensor(name: str, tensor: torch.Tensor, **others: Any) -> FeatureSpec:
    """What a record says of a tensor: its shape and its dtype ("bfloat16"); `others` are further fields of the spec."""
    return FeatureSpec(name=name, shape=tuple(tensor.shape), dtype=str(tensor.dtype).replace("torch.", ""), **others)


class FeatureFile(dict):  # type: ignore[type-arg]
    """The tensors of a feature file by name. TypeError, naming its type, for a value of the file's that is none."""

    path: str
    other_types: dict[str, str]

    def __missing__(self, key: Any) -> Any:
        if key in self.other_types:
            raise TypeError(f"{self.path}: {key!r} is a {self.other_types[key]}: tensors are read, and nothing else")
        raise KeyError(key)


def load_feature_file(path: str) -> dict[str, torch.Tensor]:
    """The tensors of one `.ckpt`, `.ckpt.gz` or `.safetensors` file, read as data: nothing in it is ever executed.

    Other plain values are left out; to ask for one (`loaded["layers"]`) is a TypeError. ValueError for a file that holds objects
    of any other kind.
    """
    from draftflow import _core

    path = os.fsdecode(path)
    tensors, other_types = _core._read_feature_file(path)
    loaded = FeatureFile(tensors)
    loaded.path, loaded.other_types = path, other_types
    return loaded


def check_keys(path: str, tensors: dict[str, Any], keys: Iterable[str]) -> None:
    """KeyError for a feature file without all of the keys; TypeError for one where a key's value is no tensor."""
    others = getattr(tensors, "other_types", {})
    missing = [key for key in keys if key not in tensors and key not in others]
    if missing:
        raise KeyError(f"{path} lacks {missing}: it has {[*tensors, *others]}, and needs {list(keys)}")
    for key in keys:
        tensors[key]


def get_returns_copies(store: Any) -> bool:
    """Whether what `store.get` returns shares no memory with the store, so that nobody needs to clone it again."""
    return getattr(getattr(type(store), "get", None), "returns_copies", False)


class FeatureStore(abc.ABC):
    """Owns the bytes of samples. A generation of a sample, once put, never changes; its number is never used again."""

    @abc.abstractmethod
    def put(self, tensors: dict[str, torch.Tensor], *, sample_id: str, metadata: dict[str, Any]) -> SampleRef:
        """Stores a new generation, which replaces earlier ones. ValueError without tensors; MemoryError over the budget."""

    @abc.abstractmethod
    def get(
        self,
        sample_ref: SampleRef = None,  # type: ignore[assignment]
        *,
        device: torch.device | str = "cpu",
        names: Optional[list[str]] = None,
        ref: Optional[SampleRef] = None,
    ) -> tuple[dict[str, torch.Tensor], FeatureHandle]:
        """The ref's own generation under a lease; `names`: those tensors only. KeyError if it is not there any more.

        `ref` is another name for `sample_ref`.
        """

    @abc.abstractmethod
    def release(self, handle: FeatureHandle, *, reason: str = "consumed") -> None:
        """Ends the lease; the last one frees the generation. A handle that is unknown or was released does nothing."""

    @abc.abstractmethod
    def abort(self, sample_id: str, *, reason: str = "aborted") -> None:
        """Every generation of the sample is at once not gettable. An unknown sample is fine."""

    @abc.abstractmethod
    def health(self) -> dict[str, Any]:
        """Scalars about the store, `resident_bytes` and `resident_samples` among them."""

    def gc(self, *, now: Optional[float] = None) -> dict[str, int]:
        """Frees what nobody took in time and retries frees that failed: {force_freed, force_freed_bytes, release_pending}."""
        return {"force_freed": 0, "force_freed_bytes": 0, "release_pending": 0}

    def estimate_bytes(self, specs: dict[str, FeatureSpec]) -> int:
        """The bytes that tensors of these specs take; an unknown dtype counts as 4 bytes an element."""
        total = 0
        for spec in specs.values():
            elements = 1
            for extent in spec.shape:
                elements *= int(extent)
            total += elements * _DTYPE_BYTES.get(spec.dtype, 4)
        return total


class _Entry:
    """One resident generation. `attempts` counts the failed frees that gc made; None until a free was asked for."""

    __slots__ = ("tensors", "generation", "put_ns", "nbytes", "leases", "consumed", "attempts")

    def __init__(self, tensors: dict[str, torch.Tensor], generation: int, put_ns: int, nbytes: int) -> None:
        self.tensors = tensors
        self.generation = generation
        self.put_ns = put_ns
        self.nbytes = nbytes
        self.leases = 0
        self.consumed = False
        self.attempts: Optional[int] = None


class LocalFeatureStore(FeatureStore):
    """Samples in this process's memory, consumed once; also reads feature files in place, by refs with a file:// URI.

    `dump_dir` also gets each sample as `{sample_id}.ckpt`, best effort. `max_resident_bytes` bounds what is resident: a put
    over it is a MemoryError and changes nothing. gc frees samples without a lease that are older than `max_hold_age_s` by
    `clock`. A subclass whose bytes lie elsewhere overrides `_try_physical_free`; a release whose free failed is tried again by gc,
    and after `max_release_attempts` the store drops its own part; abort, and gc of what is too old, do so at once.
    `clone_on_get` changes nothing: get always copies.
    """

    def __init__(
        self,
        store_id: Optional[str] = None,
        *,
        dump_dir: Optional[str] = None,
        clone_on_get: bool = False,
        max_resident_bytes: Optional[int] = None,
        max_hold_age_s: Optional[float] = None,
        max_release_attempts: int = 3,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_limit("max_resident_bytes", max_resident_bytes, "bytes")
        check_limit("max_hold_age_s", max_hold_age_s, "seconds")
        check_count("max_release_attempts", max_release_attempts)
        check_clock(clock)
        self.store_id = store_id or uuid.uuid4().hex[:8]
        self.dump_dir = dump_dir
        self.clone_on_get = clone_on_get
        self.max_resident_bytes = max_resident_bytes
        self.max_hold_age_s = max_hold_age_s
        self.max_release_attempts = max_release_attempts
        self._clock = clock
        self._lock = threading.RLock()
        # Guarded by the lock. Entries stand in the order in which they were put.
        self._entries: dict[str, _Entry] = {}
        self._leases: dict[str, Optional[_Entry]] = {}  # token: what it holds; None for a file
        self._pending: dict[str, _Entry] = {}
        self._resident_bytes = 0  # and what puts in progress have reserved
        self._put_ns_sum = 0
        self._force_freed = 0
        if dump_dir:
            os.makedirs(dump_dir, exist_ok=True)

    def put(self, tensors: dict[str, torch.Tensor], *, sample_id: str, metadata: dict[str, Any]) -> SampleRef:
        sample_id = check_sample_id(sample_id)
        fields = vars(make_ref(sample_id, "", tensors, metadata))
        nbytes = fields["estimated_bytes"]
        self._reserve(nbytes, sample_id)
        try:
            staged = {name: tensor.detach().clone() for name, tensor in tensors.items()}
            with self._lock:
                generation = next(_numbers)
                uri = f"mem://{self.store_id}/{quote(sample_id, safe='')}?generation={generation}"
                ref: SampleRef = record(SampleRef, {**fields, "feature_store_uri": uri})
                entry = _Entry(staged, generation, _to_ns(self._clock()), nbytes)
                previous = self._entries.get(sample_id)
                if previous is not None:
                    self._drop(sample_id, previous)
                self._entries[sample_id] = entry
                self._put_ns_sum += entry.put_ns
        except BaseException:
            with self._lock:
                self._resident_bytes -= nbytes
            raise
        if self.dump_dir:
            try:
                self._dump(sample_id, staged)
            except Exception:
                logger.warning("store %s: sample %r is stored, but was not dumped", self.store_id, sample_id, exc_info=True)
        return ref

    def get(
        self,
        sample_ref: SampleRef = None,  # type: ignore[assignment]
        *,
        device: torch.device | str = "cpu",
        names: Optional[list[str]] = None,
        ref: Optional[SampleRef] = None,
    ) -> tuple[dict[str, torch.Tensor], FeatureHandle]:
        ref = one_of("get", sample_ref=sample_ref, ref=ref)
        assert ref is not None
        wanted = check_names(names, ref) or list(ref.feature_keys)
        uri = ref.feature_store_uri
        if uri.startswith("file://"):
            tensors = _read_file(uri[len("file://") :], ref, wanted)
            if str(device) != "cpu":
                tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
            return tensors, self._lease(ref.sample_id, None)
        with self._lock:
            entry = self._find(ref)
            missing = [name for name in wanted if name not in entry.tensors]
            if missing:
                raise KeyError(
                    f"sample {ref.sample_id!r} in store {self.store_id} has no tensor {missing}: it has {list(entry.tensors)}"
                )
            handle = self._lease(ref.sample_id, entry)
        try:
            return {name: entry.tensors[name].to(device, copy=True) for name in wanted}, handle
        except BaseException:
            self._end_lease(handle, consume=False)
            raise

    get.returns_copies = True  # type: ignore[attr-defined]

    def release(self, handle: FeatureHandle, *, reason: str = "consumed") -> None:
        self._end_lease(handle, consume=True)

    def abort(self, sample_id: str, *, reason: str = "aborted") -> None:
        with self._lock:
            entry = self._entries.get(sample_id)
            if entry is not None:
                self._give_up(sample_id, entry)

    def gc(self, *, now: Optional[float] = None) -> dict[str, int]:
        if now is not None:
            now = check_time("now", now)
        with self._lock:
            old, old_bytes = self._free_old(_to_ns(self._clock() if now is None else now))
            freed, freed_bytes = self._retry_frees()
            self._force_freed += freed + old
            return {
                "force_freed": freed + old,
                "force_freed_bytes": freed_bytes + old_bytes,
                "release_pending": len(self._pending),
            }

    def health(self) -> dict[str, Any]:
        with self._lock:
            now_ns = _to_ns(self._clock())
            count = len(self._entries)
            oldest_ns = now_ns - next(iter(self._entries.values())).put_ns if count else 0
            return {
                "store_id": self.store_id,
                "backend": "local",
                "root": None,
                "resident_samples": count,
                "active_leases": len(self._leases),
                "resident_bytes": self._resident_bytes,
                "max_resident_bytes": self.max_resident_bytes,
                "release_pending": len(self._pending),
                "auth_required": False,
                "oldest_age_s": oldest_ns / 1e9,
                "avg_age_s": (now_ns - self._put_ns_sum / count) / 1e9 if count else 0.0,
                "force_freed_total": self._force_freed,
            }

    def _try_physical_free(self, sample_id: str) -> bool:
        """Frees the sample's bytes; False, or an exception, if that failed. Called with the store's lock held."""
        self._free_sample_locked(sample_id)
        return True

    def _free_sample_locked(self, sample_id: str) -> int:
        """Drops what the store itself has of the sample; its bytes. Called with the store's lock held."""
        entry = self._entries.get(sample_id)
        if entry is None:
            return 0
        self._drop(sample_id, entry)
        return entry.nbytes

    def _dump(self, sample_id: str, tensors: dict[str, torch.Tensor]) -> None:
        import torch

        assert self.dump_dir is not None
        path = os.path.join(self.dump_dir, dump_name(sample_id))
        temporary = os.path.join(self.dump_dir, f"{uuid.uuid4().hex}.tmp")
        try:
            torch.save({name: tensor.cpu() for name, tensor in tensors.items()}, temporary)
            os.replace(temporary, path)
        except BaseException:
            if os.path.lexists(temporary):
                os.remove(temporary)
            raise

    def _reserve(self, nbytes: int, sample_id: str) -> None:
        with self._lock:
            cap = self.max_resident_bytes
            if cap is not None and self._resident_bytes + nbytes > cap:
                raise MemoryError(
                    f"put of sample {sample_id!r} asks for {nbytes} bytes, but store {self.store_id} may hold {cap} and has "
                    f"{self._resident_bytes} resident ({len(self._entries)} samples): release samples, then retry"
                )
            self._resident_bytes += nbytes

    def _find(self, ref: SampleRef) -> _Entry:
        if not ref.feature_store_uri.startswith(f"mem://{self.store_id}/"):
            raise KeyError(
                f"sample {ref.sample_id!r} is of another store: its URI is {ref.feature_store_uri!r}, and this is store"
                f" {self.store_id}, in memory: get it from its own"
            )
        entry = self._entries.get(ref.sample_id)
        asked = _generation_of(ref.feature_store_uri)
        # A sample whose free failed was consumed: it is resident, but nobody gets it again.
        if entry is None or entry.attempts is not None or asked not in (None, entry.generation):
            generation = "" if asked is None else f" generation {asked}"
            raise KeyError(
                f"sample {ref.sample_id!r}{generation} is not in store {self.store_id}: it was freed, superseded or never put; "
                "use a current ref"
            )
        return entry

    def _lease(self, sample_id: str, entry: Optional[_Entry]) -> FeatureHandle:
        generation = 0 if entry is None else entry.generation
        handle = FeatureHandle(sample_id, generation, f"{sample_id}:{generation}:{next(_numbers)}")
        with self._lock:
            self._leases[handle.lease_token] = entry
            if entry is not None:
                entry.leases += 1
        return handle

    def _end_lease(self, handle: FeatureHandle, *, consume: bool) -> None:
        with self._lock:
            entry = self._leases.pop(handle.lease_token, None)
            if entry is None:
                return
            entry.leases -= 1
            entry.consumed = entry.consumed or consume
            current = self._entries.get(handle.sample_id) is entry and entry.attempts is None
            if current and entry.consumed and not entry.leases:
                self._free(handle.sample_id, entry)

    def _drop(self, sample_id: str, entry: _Entry) -> None:
        if self._entries.get(sample_id) is not entry:
            return
        del self._entries[sample_id]
        self._pending.pop(sample_id, None)
        self._resident_bytes -= entry.nbytes
        self._put_ns_sum -= entry.put_ns

    def _free(self, sample_id: str, entry: _Entry) -> bool:
        try:
            freed = self._try_physical_free(sample_id)
        except Exception:
            logger.warning("store %s: freeing sample %r failed; gc tries again", self.store_id, sample_id, exc_info=True)
            freed = False
        if not freed and entry.attempts is None:
            entry.attempts = 0
            self._pending[sample_id] = entry
        elif freed and self._entries.get(sample_id) is entry:
            self._free_sample_locked(sample_id)
        return freed

    def _give_up(self, sample_id: str, entry: _Entry) -> None:
        """Frees the sample; where that fails, at least the store's own part goes."""
        if entry.attempts is not None or not self._free(sample_id, entry):
            self._free_sample_locked(sample_id)

    def _retry_frees(self) -> tuple[int, int]:
        freed = freed_bytes = 0
        for sample_id, entry in list(self._pending.items()):
            entry.attempts = (entry.attempts or 0) + 1
            if not self._free(sample_id, entry):
                if entry.attempts < self.max_release_attempts:
                    continue
                self._free_sample_locked(sample_id)
            freed += 1
            freed_bytes += entry.nbytes
        return freed, freed_bytes

    def _free_old(self, now_ns: int) -> tuple[int, int]:
        freed = freed_bytes = 0
        if self.max_hold_age_s is None or self.max_hold_age_s == math.inf:
            return freed, freed_bytes
        limit_ns = _to_ns(self.max_hold_age_s)
        for sample_id, entry in list(self._entries.items()):
            if entry.leases or now_ns - entry.put_ns <= limit_ns:
                continue
            self._give_up(sample_id, entry)
            freed += 1
            freed_bytes += entry.nbytes
        return freed, freed_bytes


def check_sample_id(sample_id: str) -> str:
    """The id, as a str of no subclass. ValueError for one that no store takes: over 1,024 bytes, empty, with U+0000 or not
    UTF-8. TypeError for no str.
    """
    if not isinstance(sample_id, str):
        raise TypeError(f"sample_id {sample_id!r} is a {type(sample_id).__name__}: it must be a str")
    try:
        size = len(sample_id.encode())
    except UnicodeEncodeError as error:
        raise ValueError(f"sample_id {sample_id!r} is not UTF-8 at character {error.start}: give it a valid text") from None
    if not 1 <= size <= _MAX_ID_BYTES or "\0" in sample_id:
        raise ValueError(
            f"sample_id {sample_id[:80]!r} has {size} bytes: 1 to {_MAX_ID_BYTES} are allowed, and no U+0000 among them"
        )
    return str(sample_id)


def check_names(names: Any, ref: SampleRef) -> Optional[list[str]]:
    """The names that a get asks for, as a list; None for all. TypeError for one name where a list is needed."""
    if names is None:
        return None
    asked = [] if isinstance(names, (str, bytes)) else list(names)
    if isinstance(names, (str, bytes)) or not all(isinstance(name, str) for name in asked):
        raise TypeError(f"get of sample {ref.sample_id!r}: names is {names!r}: a list of names of features is needed")
    return asked or None


def dump_name(sample_id: str) -> str:
    """The file that a sample is dumped to: `{sample_id}.ckpt` where that is a file name, else a readable part and a hash."""
    # An id that looks like the second kind gets a hash too, so that no two ids ever share a name.
    plain = "/" not in sample_id and len(sample_id.encode()) <= 200 and not re.search(r"~[0-9a-f]{64}\Z", sample_id)
    if plain:
        return f"{sample_id}.ckpt"
    readable = re.sub(r"[^A-Za-z0-9._-]", "_", sample_id)[:80]
    return f"{readable}~{hashlib.sha256(sample_id.encode()).hexdigest()}.ckpt"


def raw_key_of(ref: SampleRef, name: str) -> str:
    """The name in its file of a ref's feature: a key `{sample_id}/{name}`, which says so by its last part, or a raw key."""
    return ref.feature_keys.get(name, name).rsplit("/", 1)[-1]


def _read_file(path: str, ref: SampleRef, wanted: list[str]) -> dict[str, torch.Tensor]:
    found = load_feature_file(path)
    out = {}
    for name, key in ((name, raw_key_of(ref, name)) for name in wanted):
        try:
            out[name] = found[key]
        except KeyError:
            text = f"{path} has no key {key!r} for feature {name!r} of sample {ref.sample_id!r}: it has {list(found)}"
            raise KeyError(text) from None
    return apart(out)


def apart(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors by the same names, where one that has two of them is copied: what is done to one does nothing to the other."""
    seen: set[int] = set()
    for name, tensor in tensors.items():
        if id(tensor) in seen:
            tensors[name] = tensor.clone()
        seen.add(id(tensor))
    return tensors


def _generation_of(uri: str) -> Optional[int]:
    _, found, text = uri.rpartition("?generation=")  # an id in a URI is quoted: it has no "?"
    if not found:
        return None
    return int(text) if text.isdecimal() else -1


def _to_ns(seconds: float) -> int:
    return round(seconds * 1e9)


# SCHEMA_VERSION too: as there, it is found here.
__all__ = ["SCHEMA_VERSION", "FeatureStore", "LocalFeatureStore", "load_feature_file", "spec_from_tensor"]
