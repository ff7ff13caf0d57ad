# SPDX-License-Identifier: Apache-2.0
"""What may be used after what: handles after their store, all of it at the interpreter's end; and nothing piles up."""

import gc
import os
import subprocess
import sys

import numpy
import pytest
import torch

import draftflow
from stage import fill, run_script


def test_a_handle_outlives_its_store(store):
    refs = [store.put({"x": torch.arange(9)}, f"s{i}") for i in range(3)]
    closed, in_with, dropped = (store.get(ref) for ref in refs)
    handle = closed.handle
    with in_with as tensors:
        store.close()
        closed.release()
        closed.release()
        assert torch.equal(tensors["x"], torch.arange(9))
    del store
    gc.collect()
    assert torch.equal(dropped["x"], torch.arange(9)) and dropped.names == ["x"] and len(dropped) == 1 and "x" in dropped
    dropped.release()
    assert handle.sample_id == "s0"


def test_a_closed_store_says_so(store, ledger):
    ref = store.put({"x": torch.arange(9)}, "s")
    handle = store.get(ref).handle
    store.close()
    store.close()
    for call in (
        lambda: store.put({"x": torch.arange(9)}, "s"),
        lambda: store.get(ref),
        lambda: store.read(ref),
        lambda: store.release(handle),
        lambda: store.remove(ref),
        lambda: store.abort("s"),
        lambda: store.gc(),
        lambda: store.health(),
        lambda: store.find("s"),
        lambda: store.resident(),
    ):
        with pytest.raises(draftflow.InvalidArgument, match=f"store '{store.url}' was closed: open it again"):
            call()
    ledger.close()
    ledger.close()
    with pytest.raises(draftflow.InvalidArgument, match=r"ledger '.*ledger.sqlite3' was closed: open it again"):
        ledger.status()


def test_a_lease_ends_with_release_and_consumes_where_that_is_the_kind(tmp_path):
    for url in ("mem://consumed", str(tmp_path / "store")):
        with draftflow.Store.create(url, kind="consume-once") as store:
            ref = store.put({"x": torch.arange(9)}, "s")
            first, second = store.get(ref), store.get(ref)
            assert store.health()["live_leases"] == 2
            first.release()
            first.release()
            assert store.health()["live_leases"] == 1 and store.health()["resident_samples"] == 1
            store.release(second.handle)
            store.release(second.handle)
            second.release()
            assert store.health()["live_leases"] == 0 and store.health()["resident_samples"] == 0
            with pytest.raises(draftflow.NotFound):
                store.get(ref)


def test_closing_consumes_nothing(tmp_path):
    url = str(tmp_path / "store")
    with draftflow.Store.create(url, kind="consume-once") as store:
        ref = store.put({"x": torch.arange(9)}, "s")
        leased = store.get(ref)
    leased.release()
    with draftflow.Store.open(url) as store:
        assert store.health()["live_leases"] == 0
        assert torch.equal(store.read(ref)["x"], torch.arange(9))


# Each case in a forked child, which then ends as any interpreter does.
EVERYTHING_OPEN = """
    import os, sys, threading
    import torch, draftflow
    from stage import fill
    root = sys.argv[1]
    for case in [f"{where}-{how}" for where in ("folder", "memory") for how in ("ended", "open", "thread")] * 2:
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            break
        print(case, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    else:
        sys.exit()
    where, how = case.split("-")
    folder = f"{root}/{os.getpid()}"
    os.mkdir(folder)
    store = draftflow.Store.create(folder + "/store" if where == "folder" else "mem://store")
    ledger = draftflow.Ledger.open(folder + "/ledger.sqlite3" if where == "folder" else "mem://")
    refs = fill(store, ledger, 9, close=how == "ended")
    kept = [store.get(ref, zero_copy=True) for ref in refs]
    tensors = [got.tensors() for got in kept]
    view = draftflow.Tensor(torch.arange(5)).torch()
    stream = draftflow.Stream(store, ledger, group="g", window=2, batch_size=1, prefetch=4)
    batches = iter(stream)
    first = next(batches)
    for batch in draftflow.Stream(store, ledger, group="h", window=1):
        break
    sys.circle = [store, ledger, stream, batches, kept, tensors, sys.modules]
    sys.circle.append(sys.circle)
    if how == "thread":
        late = draftflow.Stream(store, ledger, group="late", window=4096).open()
        threading.Thread(target=lambda: list(late), daemon=True).start()
"""


def test_an_interpreter_may_end_with_everything_open(tmp_path):
    done = run_script(EVERYTHING_OPEN, tmp_path)
    cases = done.stdout.splitlines()
    assert len(cases) == 12 and all(case.endswith(" 0") for case in cases), done.stdout + done.stderr
    assert (done.returncode, done.stderr) == (0, "")
    for folder in tmp_path.iterdir():
        if (folder / "store").exists():
            with draftflow.Ledger.open(str(folder / "ledger.sqlite3")) as ledger:
                assert ledger.check() == []
            with draftflow.Store.open(str(folder / "store")) as store:
                store.gc()
                assert store.health()["live_leases"] == 0


def open_descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def resident_kib() -> int:
    with open("/proc/self/statm") as lines:
        return int(lines.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


@pytest.mark.parametrize("zero_copy", [False, True], ids=["copy", "zero_copy"])
def test_put_get_and_release_pile_nothing_up(store, zero_copy):
    def go_round(times):
        for i in range(times):
            tensors = {"x": torch.zeros(4096), "array": numpy.zeros(4096, "f4"), "strided": torch.zeros(64, 64).t()}
            draftflow.Tensor(tensors["x"]).torch(), draftflow.Tensor(tensors["array"]).torch()
            ref = store.put(tensors, f"s{i % 50}", metadata={"i": i, "list": [1, "2", None]})
            sample = store.get(ref, zero_copy=zero_copy)
            with sample as found:
                found["x"][0:1].sum()
            sample.handle, sample.names, ref.metadata, ref.feature_specs, ref.to_json()
            with pytest.raises(TypeError):
                store.put({"bad": object()}, "s")
            with pytest.raises(KeyError):
                store.get(ref, names=["absent"])

    go_round(100)
    descriptors, memory = open_descriptors(), resident_kib()
    go_round(1500)
    assert open_descriptors() <= descriptors
    assert resident_kib() - memory < 16 * 1024  # one leaked tensor in each round is 23 MiB


def test_streams_and_ledgers_pile_nothing_up(folder_store, ledger):
    fill(folder_store, ledger, 8)

    def go_round(times):
        for i in range(times):
            with draftflow.Ledger.open(ledger.url) as again, draftflow.Store.open(folder_store.url) as store:
                stream = draftflow.Stream(store, again, group="g", window=2, batch_size=1)
                for batch in stream:
                    break
                assert again.status()["committed"] == 8

    go_round(5)
    descriptors, threads = open_descriptors(), len(os.listdir("/proc/self/task"))
    go_round(20)
    assert open_descriptors() <= descriptors
    assert len(os.listdir("/proc/self/task")) <= threads


def test_objects_are_counted_right():
    values = [torch.zeros(3), numpy.zeros(3), {"k": ["v"]}]
    store = draftflow.Store.create("mem://counted")
    before = [sys.getrefcount(value) for value in values]
    for _ in range(50):
        with store.get(store.put({"x": values[0], "y": values[1]}, "s", metadata=values[2])):
            pass
        for value in values[:2]:
            draftflow.Tensor(value).torch(), draftflow.Tensor(value).__dlpack__(), draftflow.Tensor(value).numpy()
    del value
    gc.collect()
    assert [sys.getrefcount(value) for value in values] == before


DAEMONS = """
import sys, threading, time
import numpy, draftflow
store = draftflow.Store.create(sys.argv[1], kind="consume-once")
def work(number):
    while True:
        store.get(store.put({"x": numpy.ones(8)}, f"s{number}"), framework="numpy").release()
for number in range(3):
    threading.Thread(target=work, args=(number,), daemon=True).start()
time.sleep(0.05)
"""


def test_daemon_threads_that_put_and_get_do_not_abort_the_end(tmp_path):
    for number in range(8):
        subprocess.run([sys.executable, "-c", DAEMONS, str(tmp_path / str(number))], check=True, timeout=60)
