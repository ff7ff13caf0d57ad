# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gc
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from typing import Any, List, Set

import pytest
from compat_refs import ids, make_ref, make_refs, real_data

from draftflow.compat.specforge.contracts import SampleRef
from draftflow.compat.specforge.data_plane import sample_ref_queue
from draftflow.compat.specforge.data_plane.sample_ref_queue import SampleRefQueue, dp_partition


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def timed_queue(lease_timeout_s: float, refs: List[SampleRef]) -> "tuple[SampleRefQueue, Clock]":
    queue, clock = SampleRefQueue(lease_timeout_s=lease_timeout_s), Clock()
    queue._clock = clock
    queue.put(refs)
    return queue, clock


# dp_partition


def test_partition_vectors() -> None:
    vectors = json.loads(real_data("dp_partition_vectors.json").read_text(encoding="utf-8"))
    assert vectors
    for width, rows in vectors.items():
        for sample_id, partition in rows:
            assert dp_partition(sample_id, int(width)) == partition, (sample_id, width)


def test_partition_is_the_sha1_modulo_the_width() -> None:
    assert dp_partition("abc", 2**160) == 0xA9993E364706816ABA3E25717850C26C9CD0D89D
    assert [dp_partition("abc", width) for width in (1, 0, -3)] == [0, 0, 0]
    assert [dp_partition("abc", width) for width in (2, 10)] == [1, 0xA9993E364706816ABA3E25717850C26C9CD0D89D % 10]


def test_partitions_are_about_equal() -> None:
    counts = [0] * 4
    for number in range(4000):
        counts[dp_partition(f"sample-{number}", 4)] += 1
    assert all(800 < count < 1200 for count in counts), counts


# put, get, ack, fail


def test_refs_come_in_the_order_of_their_puts() -> None:
    queue = SampleRefQueue()
    queue.put(make_refs(3))
    assert queue.depth() == 3
    first = queue.get(2)
    assert ids(first) == ["s0", "s1"] and first == make_refs(2)
    assert (queue.depth(), queue.in_flight()) == (1, 2)
    queue.ack(first)
    assert queue.in_flight() == 0
    assert ids(queue.get(100)) == ["s2"]


def test_put_changes_nothing_for_what_is_pending_or_leased() -> None:
    queue = SampleRefQueue()
    queue.put(make_refs(2))
    queue.put([make_ref("s0", generation=2), make_ref("s1")])
    assert queue.depth() == 2
    assert queue.get(1) == make_refs(1)
    queue.put(make_refs(2))
    assert (queue.depth(), queue.in_flight()) == (1, 1)


def test_what_is_finished_may_be_put_for_another_epoch() -> None:
    queue = SampleRefQueue()
    for _ in range(2):
        queue.put(make_refs(3))
        queue.ack(queue.get(3))
    assert (queue.depth(), queue.in_flight()) == (0, 0)


def test_a_tensor_refuses_the_whole_put() -> None:
    numpy = pytest.importorskip("numpy")
    queue = SampleRefQueue()
    with pytest.raises(TypeError, match=r"metadata\['x'\]"):
        queue.put([make_ref("s0"), make_ref("s1", x=numpy.zeros(1))])
    assert queue.depth() == 0


def test_an_id_that_is_no_utf8_refuses_the_whole_put() -> None:
    queue = SampleRefQueue()
    with pytest.raises(ValueError):
        queue.put([make_ref("s0"), make_ref("\ud800")])
    assert queue.depth() == 0


def test_a_retryable_failure_goes_to_the_tail() -> None:
    queue = SampleRefQueue()
    queue.put(make_refs(3))
    queue.fail(queue.get(1), "boom", True)
    assert ids(queue.get(3)) == ["s1", "s2", "s0"]


def test_a_final_failure_leaves_with_its_reason_and_comes_back_only_by_a_put() -> None:
    queue = SampleRefQueue()
    queue.put(make_refs(2))
    queue.fail(queue.get(1), reason="corrupt", retryable=False)
    assert (queue.depth(), queue.in_flight(), queue.failed()) == (1, 0, {"s0": "corrupt"})
    queue.put([make_ref("s0")])
    assert queue.failed() == {}


def test_reasons_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_ref_queue, "_MAX_FAILED", 2)
    queue = SampleRefQueue()
    queue.put(make_refs(3))
    queue.fail(queue.get(3), "corrupt", False)
    assert set(queue.failed()) == {"s1", "s2"}


def test_unknown_refs_are_acked_and_failed_without_effect() -> None:
    queue = SampleRefQueue()
    queue.ack([make_ref("never")])
    queue.fail([make_ref("never")], "why", True)
    assert queue.depth() == 0


def test_no_timeout_does_not_wait_and_gives_a_list() -> None:
    queue = SampleRefQueue()
    assert queue.get(4) == [] and queue.get(4, 0.0) == [] and queue.get(4, timeout_s=0.01) == []


def test_no_refs_need_no_wait() -> None:
    got: List[List[str]] = []
    run_thread(lambda: got.append(ids(SampleRefQueue().get(0, timeout_s=3000.0)))).join(60)
    assert got == [[]]


def test_a_partition_key_is_accepted_and_means_nothing() -> None:
    queue = SampleRefQueue()
    queue.put(make_refs(1), partition_key="dp0")
    assert ids(queue.get(4, timeout_s=0.0, partition_key="dp1")) == ["s0"]


# Leases


def test_each_lease_gives_a_copy_and_the_callers_ref_is_untouched() -> None:
    queue, clock = timed_queue(10.0, [ref := make_ref("s0")])
    [mine] = queue.get(1)
    assert mine == ref and mine is not ref
    assert vars(mine).keys() == vars(ref).keys()
    assert SampleRef(**{**mine.__dict__, "source_task_id": "t"}).source_task_id == "t"


def test_an_expired_lease_goes_to_the_next_who_asks() -> None:
    queue, clock = timed_queue(10.0, make_refs(2))
    queue.get(1)
    clock.now += 10.0
    assert ids(queue.get(2)) == ["s1"]
    clock.now += 0.1
    assert ids(queue.get(2)) == ["s0"]


@pytest.mark.parametrize("late_call", ["ack", "fail", "fail for good"])
def test_a_late_call_after_another_lease_changes_nothing(late_call: str) -> None:
    queue, clock = timed_queue(10.0, make_refs(1))
    old = queue.get(1)
    clock.now += 11.0
    new = queue.get(1)
    assert queue.is_late(old[0]) and not queue.is_late(new[0])
    if late_call == "ack":
        queue.ack(old)
    else:
        queue.fail(old, "late", late_call == "fail")
    assert (queue.depth(), queue.in_flight(), queue.failed()) == (0, 1, {})
    queue.ack(new)
    assert (queue.depth(), queue.in_flight()) == (0, 0)


@pytest.mark.parametrize("first", ["ack", "fail"])
def test_a_late_failure_does_not_raise_the_dead(first: str) -> None:
    queue, clock = timed_queue(10.0, make_refs(1))
    old = queue.get(1)
    clock.now += 11.0
    new = queue.get(1)
    if first == "ack":
        queue.ack(new)
    else:
        queue.fail(new, "corrupt", False)
    queue.fail(old, "late", True)
    queue.fail(new, "again", True)
    assert (queue.depth(), queue.in_flight()) == (0, 0)


def test_an_ack_after_expiry_counts_while_nobody_else_has_it() -> None:
    queue, clock = timed_queue(10.0, make_refs(2))
    [old] = queue.get(1)
    clock.now += 11.0
    assert ids(queue.get(1)) == ["s1"]  # s0 is pending again
    assert not queue.is_late(old)
    queue.ack([old])
    assert (queue.depth(), queue.in_flight()) == (0, 1)


def test_a_final_failure_after_expiry_counts_while_nobody_else_has_it() -> None:
    queue, clock = timed_queue(10.0, make_refs(2))
    [old] = queue.get(1)
    clock.now += 11.0
    queue.get(1)
    queue.fail([old], "corrupt", False)
    assert (queue.depth(), queue.failed()) == (0, {"s0": "corrupt"})


def test_a_holder_that_failed_it_can_no_longer_ack_it() -> None:
    queue = SampleRefQueue()
    queue.put(make_refs(1))
    mine = queue.get(1)
    queue.fail(mine, "not me", True)
    queue.ack(mine)
    assert queue.depth() == 1


def test_a_ref_from_elsewhere_means_the_lease_of_now() -> None:
    queue, clock = timed_queue(10.0, make_refs(1))
    queue.get(1)
    clock.now += 11.0
    queue.get(1)
    assert not queue.is_late(make_ref("s0"))
    queue.ack([make_ref("s0")])
    assert queue.in_flight() == 0


def test_tokens_are_forgotten_with_the_refs_that_stand_for_them() -> None:
    queue = SampleRefQueue()
    queue.put(make_refs(100))
    held = queue.get(100)
    assert len(queue._given) == 100
    queue.ack(held)
    held.clear()
    gc.collect()
    assert queue._given == {}


def test_restart_voids_every_lease() -> None:
    queue, _ = timed_queue(10.0, make_refs(5))
    old = queue.get(3)
    queue.restart([make_ref("s4"), make_ref("s1")], ["s0", "s3"])
    assert queue.in_flight() == 0 and all(queue.is_late(ref) for ref in old)
    queue.ack(old)
    assert ids(queue.get(10)) == ["s2", "s4", "s1"]


def test_restart_voids_expired_leases_too() -> None:
    queue, clock = timed_queue(10.0, make_refs(2))
    old = queue.get(1)
    clock.now += 11.0
    queue.get(1)  # s0 is pending again
    queue.restart([], [])
    assert queue.is_late(old[0])
    queue.ack(old)
    assert queue.depth() == 2


# Partitions


def test_shards_are_disjoint_and_whole() -> None:
    queue = SampleRefQueue()
    queue.put(make_refs(50))
    shards = [set(ids(queue.get(100, partition=(index, 2)))) for index in range(2)]
    assert shards[0] & shards[1] == set() and shards[0] | shards[1] == {f"s{number}" for number in range(50)}
    assert all(dp_partition(sample_id, 2) == 0 for sample_id in shards[0])


def test_each_shard_keeps_the_order_and_the_limit() -> None:
    queue = SampleRefQueue()
    queue.put(make_refs(40))
    mine = [f"s{number}" for number in range(40) if dp_partition(f"s{number}", 3) == 1]
    assert ids(queue.get(2, partition=(1, 3))) == mine[:2]
    assert ids(queue.get(100, partition=(1, 3))) == mine[2:]


def test_another_width_leases_the_rest_once() -> None:
    queue = SampleRefQueue()
    queue.put(make_refs(60))
    leased = ids(queue.get(100, partition=(0, 2)))
    for index in range(3):
        leased += ids(queue.get(100, partition=(index, 3)))
    assert sorted(leased) == sorted(f"s{number}" for number in range(60))
    assert queue.depth() == 0


def test_a_shard_without_refs_waits_and_gives_none() -> None:
    queue = SampleRefQueue()
    queue.put([make_ref("s0")])
    mine = dp_partition("s0", 4)
    assert queue.get(10, partition=((mine + 1) % 4, 4)) == []
    assert queue.get(10, timeout_s=0.01, partition=((mine + 1) % 4, 4)) == []
    assert ids(queue.get(10, partition=(mine, 4))) == ["s0"]


@pytest.mark.parametrize("partition", [(2, 2), (-1, 2), (0, 0), (0, -1)])
def test_an_invalid_partition_is_refused(partition: Any) -> None:
    with pytest.raises(ValueError, match=r"0 <= i < n"):
        SampleRefQueue().get(1, partition=partition)


def test_a_partitioned_lease_costs_what_it_leases() -> None:
    # The items that a lease touches are counted, where a time would be the machine's.
    queue = SampleRefQueue()
    queue.put(make_refs(2000))
    queue.get(1, partition=(0, 8))
    touched = 0

    class Counting(type(queue._pending)):  # type: ignore[misc]
        def __iter__(self) -> Any:
            nonlocal touched
            for each in super().__iter__():
                touched += 1
                yield each

    queue._pending = Counting(queue._pending)
    for shards in queue._shards.values():
        for index in list(shards):
            shards[index] = Counting(shards[index])
    touched = 0
    for index in range(8):
        queue.get(5, partition=(index, 8))
    queue.get(10)
    assert touched == 8 * 5 + 10


def test_a_random_walk_over_widths_loses_and_doubles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_ref_queue, "_MAX_WIDTHS", 2)
    seed = random.randrange(1 << 30)
    chance = random.Random(seed)
    queue = SampleRefQueue()
    put: Set[str] = set()
    acked: List[str] = []
    for turn in range(600):
        if chance.random() < 0.4:
            new = [make_ref(f"r{turn}.{number}") for number in range(chance.randrange(4))]
            put.update(ids(new))
            queue.put(new)
        width = chance.choice([1, 2, 3, 4])
        index = chance.randrange(width)
        got = queue.get(chance.randrange(1, 4), partition=chance.choice([None, (index, width)]))
        if chance.random() < 0.3:
            queue.fail(got, "again", True)
        else:
            queue.ack(got)
            acked += ids(got)
        assert len(queue._shards) <= 2
        pending = list(queue._pending)
        for width, shards in queue._shards.items():
            assert sorted(sample_id for shard in shards.values() for sample_id in shard) == sorted(pending), f"seed {seed}"
            for shard in shards.values():
                assert list(shard) == [sample_id for sample_id in pending if sample_id in shard], f"seed {seed}"
    acked += ids(queue.get(10_000))
    assert sorted(acked) == sorted(put), f"seed {seed}"


# Waiting


def run_thread(target: Any) -> threading.Thread:
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    return thread


def test_a_put_ends_the_wait_of_its_shard_and_not_of_another() -> None:
    queue = SampleRefQueue()
    mine, other = (next(f"s{n}" for n in range(100) if dp_partition(f"s{n}", 2) == index) for index in (0, 1))
    got: List[List[str]] = []
    thread = run_thread(lambda: got.append(ids(queue.get(1, timeout_s=60.0, partition=(0, 2)))))
    queue.put([make_ref(other)])
    thread.join(0.05)
    assert thread.is_alive()
    queue.put([make_ref(mine)])
    thread.join(60)
    assert got == [[mine]]


def test_a_failure_ends_a_wait() -> None:
    queue = SampleRefQueue()
    queue.put(make_refs(1))
    held = queue.get(1)
    got: List[List[str]] = []
    thread = run_thread(lambda: got.append(ids(queue.get(1, timeout_s=60.0))))
    queue.fail(held, "again", True)
    thread.join(60)
    assert got == [["s0"]]


def test_an_expiry_ends_a_wait() -> None:
    queue = SampleRefQueue(lease_timeout_s=0.02)
    queue.put(make_refs(1))
    queue.get(1)
    got: List[List[str]] = []
    run_thread(lambda: got.append(ids(queue.get(1, timeout_s=3000.0)))).join(60)
    assert got == [["s0"]]


@pytest.mark.parametrize("lease_timeout_s", [None, float("inf")])
def test_an_endless_timeout_is_a_wait(lease_timeout_s: Any) -> None:
    queue = SampleRefQueue(lease_timeout_s=lease_timeout_s)
    queue.put([make_ref("held")])
    queue.get(1)
    got: List[List[str]] = []
    thread = run_thread(lambda: got.append(ids(queue.get(1, timeout_s=float("inf")))))
    time.sleep(0.01)
    queue.put(make_refs(1))
    thread.join(60)
    assert got == [["s0"]]


def test_many_consumers_share_each_ref_once() -> None:
    queue = SampleRefQueue()
    got: List[str] = []

    def consume(index: int) -> None:
        while refs := queue.get(3, timeout_s=60.0, partition=(index, 4)):
            queue.ack(refs)
            got.extend(ids(refs))
            if refs[-1].sample_id.startswith("end"):
                return

    threads = [run_thread(lambda index=index: consume(index)) for index in range(4)]
    for number in range(0, 400, 20):
        queue.put(make_refs(400)[number : number + 20])
    ends = {dp_partition(f"end{number}", 4): make_ref(f"end{number}") for number in range(40)}
    queue.put(list(ends.values()))
    for thread in threads:
        thread.join(60)
    assert sorted(got) == sorted([f"s{number}" for number in range(400)] + ids(list(ends.values())))


def test_an_interrupt_ends_a_wait() -> None:
    program = (
        "from draftflow.compat.specforge.data_plane import SampleRefQueue\n"
        "print('waiting', flush=True)\n"
        "try:\n"
        "    SampleRefQueue().get(1, timeout_s=50.0, partition=(0, 2))\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted', flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "waiting\n"
        time.sleep(0.2)
        os.kill(process.pid, signal.SIGINT)
        assert process.communicate(timeout=40)[0] == "interrupted\n"
