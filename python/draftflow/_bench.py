# SPDX-License-Identifier: Apache-2.0
"""draftflow bench python: what Python adds to the C++ core's own time, in turns in one run; medians, the first dropped.

Rows as those of `draftflow bench store`: value, limit (what C++, or plain torch, needs for the same), ratio, goal.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import sys
import tempfile
import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

import draftflow

Row = Dict[str, Any]
EPOCHS = 6  # of the rows of batches: the memory of the first ones is new, and costs more


def _median(values: List[float]) -> float:
    return statistics.median(values[1:] if len(values) > 2 else values)


def _row(name: str, value: float, unit: str, limit: float, goal: str, met: bool, note: str = "") -> Row:
    return {
        "name": name,
        "value": value,
        "unit": unit,
        "limit": limit,
        "ratio": value / limit if limit else 0.0,
        "goal": goal,
        "met": met,
        "note": note,
    }


class Bench:
    def __init__(self, folder: str, repetitions: int, calls: int) -> None:
        self.folder = folder
        self.repetitions = repetitions
        self.calls = calls
        self._made = 0
        self._memory: Optional[str] = None

    def fresh(self, name: str) -> str:
        self._made += 1
        return os.path.join(self.folder, f"{name}{self._made}")

    def fresh_in_memory(self, name: str) -> str:
        """On tmpfs where there is one: a disk's noise would hide what Python adds."""
        if self._memory is None:
            parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else self.folder
            self._memory = tempfile.mkdtemp(prefix="draftflow-bench-", dir=parent)
        self._made += 1
        return os.path.join(self._memory, f"{name}{self._made}")

    def close(self) -> None:
        for folder in (self.folder, self._memory):
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)

    # --- rows

    def overhead(self) -> List[Row]:
        """put, get and release in memory, where the store itself costs least. Time on the processor: other load counts less."""
        rows = []
        for tensors in (1, 4):
            rows += self._overhead(tensors)
        return rows

    def _overhead(self, count: int) -> List[Row]:
        import torch

        tensors = {f"t{i}": torch.zeros(1024 // count) for i in range(count)}
        python: Dict[str, List[float]] = {"put": [], "get": [], "release": []}
        core: Dict[str, List[float]] = {"put": [], "get": [], "release": []}
        for repetition in range(self.repetitions):
            for times, run in ((python, self._python_calls), (core, self._core_calls)):
                store = draftflow.Store.create(f"mem://bench{count}", kind="consume-once")
                for name, seconds in zip(("put", "get", "release"), run(store, tensors, f"{repetition}:")):
                    times[name].append(1e6 * seconds / self.calls)
                store.close()
        bound = 3 + 1.5 * count
        rows = []
        for name in ("put", "get", "release"):
            spent, least = _median(python[name]), _median(core[name])
            rows.append(
                _row(
                    f"python_{name}_{count}_us",
                    spent,
                    "us",
                    least,
                    f"value - limit <= {bound:g}",
                    spent - least <= bound,
                    f"{count} tensors, mem://, 4 KiB; {spent - least:.2f} us over C++",
                )
            )
        return rows

    def _python_calls(self, store: Any, tensors: Dict[str, Any], prefix: str) -> Tuple[float, float, float]:
        count = self.calls
        ids = [f"{prefix}{i}" for i in range(count)]
        start = time.thread_time()
        refs = [store.put(tensors, name) for name in ids]
        put = time.thread_time() - start
        start = time.thread_time()
        samples = [store.get(ref) for ref in refs]
        held = [sample.tensors() for sample in samples]
        get = time.thread_time() - start
        start = time.thread_time()
        for sample in samples:
            sample.release()
        release = time.thread_time() - start
        del held
        return put, get, release

    def _core_calls(self, store: Any, tensors: Dict[str, Any], prefix: str) -> Tuple[float, float, float]:
        return draftflow._core._bench_store(store, tensors, "c" + prefix, self.calls)

    def zero_copy(self) -> List[Row]:
        """64 MiB from a folder to a torch tensor without a copy, its checksum verified before."""
        import torch

        store = draftflow.Store.create(self.fresh("zero"))
        ref = store.put({"hidden_state": torch.zeros(1, 4096, 8192, dtype=torch.bfloat16)}, "s", num_tokens=4096)
        with store.get(ref, zero_copy=True):
            pass
        with open(next(str(sample.path) for sample in store.resident()), "rb") as file:
            mapping = _median([_seconds(lambda: _map(file)) for _ in range(50)])
        spent = _median([_seconds(lambda: self._fetch(store, ref)) for _ in range(50)])
        store.close()
        return [
            _row(
                "python_get_zero_copy_64mib_us",
                1e6 * spent,
                "us",
                1e6 * mapping,
                "value <= 250",
                1e6 * spent <= 250,
                "get, torch tensor, release; the limit maps and unmaps the file",
            )
        ]

    @staticmethod
    def _fetch(store: Any, ref: Any) -> None:
        with store.get(ref, zero_copy=True) as tensors:
            tensors["hidden_state"]

    def small(self) -> List[Row]:
        """4 KiB samples in a folder, beside what the reference runtime's own shared folder does at each call."""
        import torch

        tensors = {f"t{i}": torch.zeros(256) for i in range(4)}
        count = max(50, self.calls // 10)
        rates: Dict[str, Tuple[List[float], List[float]]] = {"put": ([], []), "get": ([], [])}
        for _ in range(self.repetitions):
            store, folder = draftflow.Store.create(self.fresh("small")), self.fresh("plain")
            os.mkdir(folder)
            for side, calls in enumerate((_ours(store, tensors), _reference(folder, tensors))):
                rates["put"][side].append(count / _seconds(calls.put, count))
                rates["get"][side].append(count / _seconds(calls.get))
            store.close()
        note = f"4 tensors, {count} samples from an empty store on"
        rows = [self._beside(f"python_{name}_4kib", *both, note) for name, both in rates.items()]
        return [*rows, self._small_beside_others(tensors, count)]

    def _small_beside_others(self, tensors: Dict[str, Any], count: int) -> Row:
        """With samples that are there, through whose names the reference looks at each put."""
        resident = 2 * count
        ours, theirs = [], []
        for _ in range(self.repetitions):
            store, folder = draftflow.Store.create(self.fresh("beside")), self.fresh("listed")
            os.mkdir(folder)
            for i in range(resident):
                store.put(tensors, f"r{i}")
                with open(os.path.join(folder, f"r{i}.g1.ckpt"), "wb"):
                    pass
            ours.append(count / _seconds(_ours(store, tensors).put, count))
            theirs.append(count / _seconds(_reference(folder, tensors).put, count))
            store.close()
        return self._beside("python_put_4kib_resident", ours, theirs, f"{resident} samples there")

    @staticmethod
    def _beside(name: str, ours: List[float], theirs: List[float], note: str, goal: float = 2, unit: str = "sample/s") -> Row:
        value, limit = _median(ours), _median(theirs)
        return _row(name, value, unit, limit, f"ratio >= {goal:g}", value >= goal * limit, note)

    def large(self) -> List[Row]:
        """64 MiB in a folder, beside torch.save with a rename and torch.load with a clone."""
        import torch

        tensors = {"hidden_state": torch.ones(1, 4096, 8192, dtype=torch.bfloat16)}
        count = 2
        mib = 64 * count
        rates: Dict[str, Tuple[List[float], List[float]]] = {"put": ([], []), "get": ([], [])}
        for _ in range(self.repetitions):
            place, folder = self.fresh("large"), self.fresh("plain")
            store = draftflow.Store.create(place)
            os.mkdir(folder)
            for side, calls in enumerate((_ours(store, tensors), _reference(folder, tensors))):
                rates["put"][side].append(mib / _seconds(calls.put, count))
                rates["get"][side].append(mib / _seconds(calls.get))
            store.close()
            shutil.rmtree(place)
            shutil.rmtree(folder)
        return [self._beside(f"python_{name}_64mib", *both, "1 tensor", 1.3, "MiB/s") for name, both in rates.items()]

    def batches(self) -> List[Row]:
        """The whole path of a DataLoader over a Stream, beside the C++ reader alone."""
        import torch

        store = draftflow.Store.create(self.fresh("batches"))
        ledger = draftflow.Ledger.open(self.fresh("ledger") + ".sqlite3")
        ledger.declare("kind", "offline")
        samples = 64
        refs = []
        for i in range(samples):
            length = 96 + 4 * (i % 9)
            tensors = {
                "input_ids": torch.arange(length),
                "loss_mask": torch.ones(length, dtype=torch.int64),
                "hidden_state": torch.ones(1, length, 1024, dtype=torch.bfloat16),
                "aux_hidden_state": torch.ones(1, length, 3072, dtype=torch.bfloat16),
            }
            refs.append(store.put(tensors, f"run:{i:08d}"))
        ledger.commit_samples(refs)
        python, core = [], []
        for _ in range(self.repetitions):
            python.append(samples * EPOCHS / _seconds(lambda: self._read(store, ledger)))
            core.append(samples * EPOCHS / draftflow._core._bench_batches(ledger, store, 8, 4, 4, EPOCHS))
        value, limit = _median(python), _median(core)
        store.close()
        ledger.close()
        return [
            _row(
                "python_batches",
                value,
                "sample/s",
                limit,
                "ratio >= 0.9",
                value >= 0.9 * limit,
                "DataLoader over a Stream, batches of 4, about 0.9 MiB a sample; the limit is the C++ reader",
            )
        ]

    @staticmethod
    def _read(store: Any, ledger: Any) -> None:
        import torch.utils.data

        stream = draftflow.Stream(store, ledger, window=8, batch_size=4, prefetch=4, check="finite", epochs=EPOCHS)
        for batch in torch.utils.data.DataLoader(stream, batch_size=None):
            batch["hidden_state"]

    def compat(self) -> List[Row]:
        """The calls of the compatibility layer's shared directory, beside the C++ store."""
        try:
            from draftflow.compat.specforge.data_plane.disaggregated import SharedDirFeatureStore
        except ImportError:
            return []
        import torch

        tensors = {f"t{i}": torch.zeros(256) for i in range(4)}
        count = max(50, self.calls // 10)
        python: Dict[str, List[float]] = {"put": [], "get": [], "release": []}
        core: Dict[str, List[float]] = {"put": [], "get": [], "release": []}
        for _ in range(self.repetitions):
            theirs = SharedDirFeatureStore(self.fresh_in_memory("compat"), "st")
            start = time.thread_time()
            refs = [theirs.put(tensors, sample_id=f"s{i}", metadata={"run_id": "run"}) for i in range(count)]
            python["put"].append(1e6 * (time.thread_time() - start) / count)
            start = time.thread_time()
            fetched = [theirs.get(ref) for ref in refs]
            python["get"].append(1e6 * (time.thread_time() - start) / count)
            start = time.thread_time()
            for _tensors, handle in fetched:
                theirs.release(handle)
            python["release"].append(1e6 * (time.thread_time() - start) / count)
            refs.clear()  # not within what is measured next
            fetched.clear()
            folder = os.path.join(self.fresh_in_memory("core"), "st")
            store = draftflow.Store.create(folder, kind="consume-once", layout="specforge")
            for name, seconds in zip(("put", "get", "release"), draftflow._core._bench_store(store, tensors, "s", count)):
                core[name].append(1e6 * seconds / count)
            store.close()
        rows = []
        for name in ("put", "get", "release"):
            spent, least = _median(python[name]), _median(core[name])
            rows.append(
                _row(
                    f"compat_{name}_us",
                    spent,
                    "us",
                    least,
                    "value - limit <= 15",
                    spent - least <= 15,
                    f"SharedDirFeatureStore on tmpfs, 4 tensors; {spent - least:.1f} us over C++",
                )
            )
        return rows


def _map(file: Any) -> None:
    import mmap

    mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ).close()


def _seconds(call: Callable[..., Any], *arguments: Any) -> float:
    start = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - start


class _Calls(NamedTuple):
    put: Callable[[int], None]  # so many samples
    get: Callable[[], None]  # of all that was put


def _ours(store: Any, tensors: Dict[str, Any]) -> _Calls:
    refs: List[Any] = []

    def put(count: int) -> None:
        refs.extend(store.put(tensors, f"s{i}") for i in range(count))

    def get() -> None:
        for ref in refs:
            with store.get(ref):
                pass

    return _Calls(put, get)


_GENERATION = re.compile(r"^(.+)\.g(\d+)\.ckpt$")


def _reference(folder: str, tensors: Dict[str, Any]) -> _Calls:
    """The calls that the reference runtime makes for a sample in a shared folder, without its records and locks."""
    import torch

    ids: List[str] = []

    def generations(sample_id: str) -> List[int]:
        found = (_GENERATION.match(name) for name in os.listdir(folder))
        return sorted(int(match[2]) for match in found if match and match[1] == sample_id)

    def put(count: int) -> None:
        for i in range(count):
            sample_id = f"s{i}"
            generations(sample_id)
            path = os.path.join(folder, f"{sample_id}.g1.ckpt")
            torch.save({name: tensor.detach().cpu() for name, tensor in tensors.items()}, path + ".tmp")
            os.replace(path + ".tmp", path)
            generations(sample_id)
            ids.append(sample_id)

    def get() -> None:
        for sample_id in ids:
            path = os.path.join(folder, f"{sample_id}.g1.ckpt")
            os.path.exists(path)
            for tensor in torch.load(path, map_location="cpu", weights_only=False).values():
                tensor.clone()

    return _Calls(put, get)


_GROUPS = ("overhead", "zero_copy", "small", "large", "batches", "compat")


def main(arguments: Optional[List[str]] = None) -> int:
    parser = argparse.ArgumentParser(prog="draftflow bench python", description=__doc__.splitlines()[0])
    parser.add_argument("--dir", default=".", help="an existing folder on the file system to measure; what is made is removed")
    parser.add_argument("--rows", default=",".join(_GROUPS), help="only these groups, by commas: " + ", ".join(_GROUPS))
    parser.add_argument("--quick", action="store_true", help="a few calls, to see that it works")
    parser.add_argument("--json", action="store_true", help="print JSON")
    chosen = parser.parse_args(arguments)
    groups = chosen.rows.split(",")
    for group in groups:
        if group not in _GROUPS:
            parser.error(f"--rows: '{group}' is no group of rows; there are {', '.join(_GROUPS)}")
    folder = tempfile.mkdtemp(prefix="draftflow-bench-", dir=chosen.dir)
    bench = Bench(folder, repetitions=3 if chosen.quick else 9, calls=200 if chosen.quick else 5000)
    try:
        rows = [row for group in groups for row in getattr(bench, group)()]
    finally:
        bench.close()
    if chosen.json:
        print(json.dumps(rows))
        return 0
    print(f"{'row':32} {'value':>12} {'limit':>12} {'ratio':>7}  goal")
    for row in rows:
        met = "" if row["met"] else "  NOT MET"
        figures = f"{row['value']:12.2f} {row['limit']:12.2f} {row['ratio']:7.2f}"
        print(f"{row['name']:32} {figures}  {row['goal']}{met} ({row['unit']}; {row['note']})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
