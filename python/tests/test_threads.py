# SPDX-License-Identifier: Apache-2.0
"""Threads share a Store and a Ledger, and one that waits lets the others run."""

import threading

import pytest
import torch

import draftflow
from stage import LIMIT_S, Thread, fill, name, sample


def test_eight_threads_on_one_store_and_one_ledger(store, ledger):
    def work(thread):
        for number in range(100 * thread, 100 * thread + 40):
            ref = store.put(sample(number), name(number))
            assert ledger.commit_samples([ref]) == 1
            with store.get(ledger.get_committed(name(number)), zero_copy=number % 2 == 0) as found:
                for key, wanted in sample(number).items():
                    assert torch.equal(found[key], wanted)
            if number % 4 == 0:
                assert store.remove(ref)

    threads = [Thread(lambda thread=thread: work(thread)) for thread in range(8)]
    for thread in threads:
        thread.finish()
    assert len(set(ledger.all_committed_ids())) == 320
    health = store.health()
    assert health["resident_samples"] == 240 and health["live_leases"] == 0
    left = [number for thread in range(8) for number in range(100 * thread, 100 * thread + 40) if number % 4 != 0]
    assert health["resident_bytes"] == sum(t.numel() * t.element_size() for number in left for t in sample(number).values())
    assert ledger.check() == []


def test_eight_threads_lease_each_prompt_once(tmp_path):
    for url in ("mem://", str(tmp_path / "ledger.sqlite3")):
        ledger = draftflow.Ledger.open(url)
        store = draftflow.Store.create(f"mem://leases{len(url)}")
        tasks = [draftflow.PromptTask(name(number), run_id="run", payload={"ids": [number]}) for number in range(200)]
        assert ledger.ingest_prompts(tasks) == 200
        ledger.close_prompts()
        done, lock = [], threading.Lock()

        def work(thread):
            while True:
                leases, finished = ledger.lease_prompts(f"worker {thread}", 3)
                if finished:
                    return
                for lease in leases:
                    ref = store.put(sample(lease.task.payload["ids"][0]), lease.task.task_id, fence=ledger.fence(lease))
                    ledger.commit_sample(ref, lease)
                    with lock:
                        done.append(lease.task.task_id)

        threads = [Thread(lambda thread=thread: work(thread)) for thread in range(8)]
        for thread in threads:
            thread.finish()
        assert sorted(done) == [name(number) for number in range(200)]
        assert ledger.status()["prompts_done"] == 200 and ledger.check() == []


class Turner(threading.Thread):
    """Counts as long as it may run."""

    def __init__(self):
        super().__init__(daemon=True)
        self.count, self.stop = 0, False
        self.start()

    def run(self):
        while not self.stop:
            self.count += 1


def test_others_run_while_one_waits_for_a_batch(folder_store, ledger):
    fill(folder_store, ledger, 1, close=False)
    batches = iter(draftflow.Stream(folder_store, ledger, group="g", window=2))
    waiting = Thread(lambda: next(batches))  # its second sample comes from this thread, if that may run
    fill(folder_store, ledger, 1, first=1)
    assert waiting.finish().sample_ids == [name(0), name(1)]


def test_others_run_while_one_waits_for_the_write_turn(folder_store, ledger):
    import fcntl

    ref = folder_store.put(sample(0), name(0))
    with open(ledger.url + ".lock", "r+b") as turn:
        fcntl.lockf(turn, fcntl.LOCK_EX, 1, 1)  # as another process does that writes
        waiting = Thread(lambda: ledger.commit_samples([ref]))
        waiting.join(0.3)
        assert waiting.is_alive()  # and this line is reached at all
        assert folder_store.read(ref)["input_ids"][0] == 0
        fcntl.lockf(turn, fcntl.LOCK_UN, 1, 1)
        assert waiting.finish() == 1


def test_others_run_while_bytes_move(folder_store):
    big = {"x": torch.zeros(32 << 20, dtype=torch.uint8)}
    turner = Turner()
    try:
        moved = 0
        for _ in range(3):
            before = turner.count
            ref = folder_store.put(big, "s")
            folder_store.read(ref)
            moved += turner.count > before
        assert moved == 3
    finally:
        turner.stop = True
        turner.join(LIMIT_S)


def test_a_reader_may_be_closed_by_another_thread(folder_store, ledger):
    fill(folder_store, ledger, 1, close=False)
    ledger.declare_group("g", window=2)
    timeline = ledger.open_timeline("g", launch="a")
    for _ in range(5):
        reader = draftflow._core.BatchReader.of_stream(
            ledger, folder_store, group="g", timeline=timeline.number, first_window=timeline.first_window
        )
        waiting = Thread(reader.next)
        waiting.join(0.05)
        reader.close()
        with pytest.raises(draftflow.InvalidArgument, match="the reader was closed"):
            waiting.finish()
