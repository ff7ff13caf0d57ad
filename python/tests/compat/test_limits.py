# SPDX-License-Identifier: Apache-2.0
"""A number that is none, or no such one, is refused where it comes in, by its name."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any, Callable

import numpy
import pytest
import torch
from compat_refs import ids, make_ref
from data_plane_story import Clock

from draftflow.compat.specforge.control_plane import (
    BackpressureConfig,
    DataFlowController,
    InMemoryMetadataStore,
    SQLiteMetadataStore,
    sample_ref_from_json,
)
from draftflow.compat.specforge.data_plane import (
    FeatureDataLoader,
    LocalFeatureStore,
    SampleRefQueue,
    SharedDirFeatureStore,
    dp_partition,
    read_ref_manifest,
    write_ref_manifest,
)
from draftflow.compat.specforge.training.trainer import TrainerController, TrainerCore

NO_TIMES = [math.nan, math.inf, -math.inf, -1, -0.5, True, False, "9", b"9", [9], numpy.array([9.0]), 1j, torch.tensor(9.0)]
NO_LIMITS = [limit for limit in NO_TIMES if not isinstance(limit, float) or limit != math.inf]
NO_COUNTS = [math.nan, math.inf, 2.0, -1, True, "2", [2]]


def refused(call: Callable[[], Any], name: str, value: Any) -> None:
    expected = ValueError if type(value) in (int, float) and value.__class__ is not bool else TypeError
    with pytest.raises(expected) as error:
        call()
    assert str(error.value).startswith(f"{name} is {value!r}"), error.value


@pytest.fixture(params=["local", "shared"])
def make_store(request, tmp_path):
    def make(**options: Any) -> Any:
        if request.param == "local":
            return LocalFeatureStore("st", **options)
        return SharedDirFeatureStore(str(tmp_path), "st", **options)

    return make


@pytest.mark.parametrize("now", NO_TIMES, ids=repr)
def test_gc_at_no_time_frees_nothing(make_store, now):
    clock = Clock()
    store = make_store(max_hold_age_s=10.0, clock=clock)
    ref = store.put({"x": torch.ones(4)}, sample_id="s0", metadata={})
    clock.now += 1000
    refused(lambda: store.gc(now=now), "now", now)
    store.get(ref)


def test_gc_takes_any_real_number(make_store):
    clock = Clock()
    store = make_store(max_hold_age_s=numpy.int64(10), clock=clock)
    for now in (2000, 2000.0, numpy.float32(2000), numpy.int64(2000), Fraction(2000)):
        store.put({"x": torch.ones(4)}, sample_id="s0", metadata={})
        assert store.gc(now=now)["force_freed"] == 1, now


@pytest.mark.parametrize("age", NO_LIMITS, ids=repr)
def test_a_store_takes_no_such_age(make_store, age):
    refused(lambda: make_store(max_hold_age_s=age), "max_hold_age_s", age)


def test_an_infinite_age_is_none(make_store):
    store = make_store(max_hold_age_s=math.inf, clock=Clock())
    store.put({"x": torch.ones(4)}, sample_id="s0", metadata={})
    assert store.gc(now=1e12)["force_freed"] == 0


def test_a_clock_is_called_before_there_is_a_sample(make_store):
    with pytest.raises(TypeError, match="clock is 5"):
        make_store(clock=5)


def test_a_clock_that_fails_stores_nothing(make_store):
    def broken() -> float:
        raise OSError("no clock")

    store = make_store(max_hold_age_s=10.0, clock=broken)
    with pytest.raises(OSError, match="no clock"):
        store.put({"x": torch.ones(4)}, sample_id="s0", metadata={})
    store._clock = Clock()
    assert store.health()["resident_samples"] == 0


@pytest.mark.parametrize("limit", NO_LIMITS, ids=repr)
def test_a_local_store_takes_no_such_budget(limit):
    refused(lambda: LocalFeatureStore("st", max_resident_bytes=limit), "max_resident_bytes", limit)


@pytest.mark.parametrize("attempts", NO_COUNTS, ids=repr)
def test_a_local_store_takes_no_such_number_of_attempts(attempts):
    expected = ValueError if type(attempts) is int else TypeError
    with pytest.raises(expected, match="max_release_attempts is "):
        LocalFeatureStore("st", max_release_attempts=attempts)


@pytest.mark.parametrize("limit", NO_LIMITS, ids=repr)
def test_a_queue_takes_no_such_lease(limit):
    refused(lambda: SampleRefQueue(lease_timeout_s=limit), "lease_timeout_s", limit)


def test_a_lease_without_end(make_store):
    queue, clock = SampleRefQueue(lease_timeout_s=math.inf), Clock()
    queue._clock = clock
    queue.put([make_ref("s0")])
    queue.get(1)
    clock.now += 1e12
    assert queue.get(1) == []


@pytest.mark.parametrize("timeout", [math.nan, True, "1", [1]], ids=repr)
def test_a_queue_takes_no_such_timeout_and_keeps_its_refs(timeout):
    queue = SampleRefQueue()
    queue.put([make_ref("s0")])
    flow = DataFlowController("run", sample_queue=queue)
    refused(lambda: queue.get(1, timeout), "timeout_s", timeout)
    refused(lambda: flow.lease_train_refs("t0", 1, timeout), "timeout_s", timeout)
    assert queue.in_flight() == 0 and ids(queue.get(1, -1.0)) == ["s0"] and queue.get(1, numpy.float32(0.0)) == []


NO_PARTITIONS = [(0.5, 1), (0, 2.0), (0, math.nan), ("0", 2), (True, 2), (0, True), (0,), 3, "01"]


@pytest.mark.parametrize("partition", NO_PARTITIONS, ids=repr)
def test_a_queue_takes_no_such_partition(partition):
    queue = SampleRefQueue()
    queue.put([make_ref("s0")])
    with pytest.raises((TypeError, ValueError), match="partition is "):
        queue.get(1, 5.0, partition=partition)
    assert queue.depth() == 1


def test_a_queue_takes_integers_of_any_type():
    queue = SampleRefQueue()
    queue.put([make_ref("s0")])
    assert ids(queue.get(numpy.int64(1), partition=(numpy.int32(0), numpy.int64(1)))) == ["s0"]


@pytest.mark.parametrize("count", [math.nan, 1.5, True, "1", None], ids=repr)
def test_a_queue_takes_no_such_number_of_refs(count):
    queue = SampleRefQueue()
    queue.put([make_ref("s0")])
    with pytest.raises(TypeError, match="max_refs is "):
        queue.get(count)
    assert queue.depth() == 1 and queue.in_flight() == 0


@pytest.mark.parametrize("mark", NO_LIMITS, ids=repr)
@pytest.mark.parametrize("name", ["high_watermark_bytes", "low_watermark_bytes"])
def test_no_such_watermark(name, mark):
    with pytest.raises((TypeError, ValueError), match=f"{name} is "):
        BackpressureConfig(**{"high_watermark_bytes": 1 << 40, name: mark})


@pytest.mark.parametrize("cap", [*NO_COUNTS], ids=repr)
@pytest.mark.parametrize("name", ["max_inflight_prompts_per_worker", "max_train_lease"])
def test_no_such_cap(name, cap):
    expected = ValueError if type(cap) is int else TypeError
    with pytest.raises(expected, match=f"{name} is "):
        BackpressureConfig(**{name: cap})


@pytest.mark.parametrize("size", [0, -1, math.nan, 1.5, True, "2", None], ids=repr)
def test_no_such_batch(size):
    expected = ValueError if type(size) is int else TypeError
    with pytest.raises(expected, match="batch_size is "):
        FeatureDataLoader(LocalFeatureStore(), refs=[], batch_size=size)


@pytest.fixture(params=["memory", "sqlite"])
def ledger(request, tmp_path):
    return InMemoryMetadataStore() if request.param == "memory" else SQLiteMetadataStore(str(tmp_path / "ledger.sqlite3"))


@pytest.fixture
def flow(ledger):
    flow = DataFlowController("run", metadata_store=ledger)
    flow.enqueue_offline_refs([make_ref("s0"), make_ref("s"), make_ref("0")])
    assert len(flow.lease_train_refs("t0", 3)) == 3
    return flow


def nothing_acked(flow: DataFlowController) -> bool:
    marker = flow.store.durable_marker()
    return (marker["acked"], marker["global_step"], flow.store.durable_ids()) == (set(), None, set())


@pytest.mark.parametrize("ids_given", ["s0", b"s0", [b"s0"], [None], [0], [["s0"]]], ids=repr)
def test_ids_are_a_list_of_strings(flow, ids_given):
    ack = {"global_step": 1, "optimizer_durable": True}
    with pytest.raises(TypeError, match="sample_ids is"):
        flow.ack_train_refs("t0", ids_given, **ack)
    with pytest.raises(TypeError, match="sample_ids is"):
        flow.store.record_train_ack(ids_given, **ack)
    with pytest.raises(TypeError, match="sample_ids is"):
        flow.fail_refs("t0", ids_given, "why", True)
    assert nothing_acked(flow) and flow.status()["queue_in_flight"] == 3


# Ids of prompts are what ingest_prompts was given, so [0] is no mistake there.
@pytest.mark.parametrize("ids_given", ["t0", b"t0", [["t0"]], ["t0", ["t1"]], [{}]], ids=repr)
def test_ids_of_prompts_are_a_list_of_ids(flow, ids_given):
    flow.ingest_prompts([{"task_id": "t0"}])
    flow.lease_prompt_tasks("w0", 1)
    with pytest.raises(TypeError, match="task_ids is"):
        flow.fail_prompt_tasks("w0", ids_given, "why", True)
    assert flow.status()["prompts_leased"] == 1


def test_ids_may_come_from_a_generator(flow):
    flow.store.record_train_ack((each for each in ["s0"]), global_step=numpy.int64(3), optimizer_durable=numpy.bool_(True))
    assert flow.store.durable_ids() == {"s0"} and flow.store.global_step() == 3 and type(flow.store.global_step()) is int


@pytest.mark.parametrize("step", [*NO_COUNTS, torch.tensor(2.0)], ids=repr)
def test_a_step_is_a_whole_number(flow, step):
    expected = ValueError if type(step) is int else TypeError
    for ack in (flow.ack_train_refs, lambda _, ids, **how: flow.store.record_train_ack(ids, **how)):
        with pytest.raises(expected, match="global_step is"):
            ack("t0", ["s0"], global_step=step, optimizer_durable=False)
    assert nothing_acked(flow)


@pytest.mark.parametrize("flag", ["no", "", b"", None, 2, 0.5, []], ids=repr)
def test_durable_is_true_or_false(flow, flag):
    for ack in (flow.ack_train_refs, lambda _, ids, **how: flow.store.record_train_ack(ids, **how)):
        with pytest.raises(TypeError, match="optimizer_durable is"):
            ack("t0", ["s0"], global_step=1, optimizer_durable=flag)
    assert nothing_acked(flow)


@pytest.mark.parametrize("bad", [make_ref("\ud800"), make_ref(5), make_ref(b"s9")], ids=["surrogate", "int", "bytes"])
def test_a_commit_is_all_or_none_whatever_is_wrong(flow, bad):
    with pytest.raises((TypeError, ValueError), match="refs "):
        flow.commit_samples("w0", [make_ref("s1"), bad])
    assert flow.store.committed_count() == 3 and flow.sample_queue.depth() == 0


@pytest.mark.parametrize("count", [math.nan, math.inf, 1.5, True, "1", None], ids=repr)
def test_no_such_number_of_prompts(count):
    flow = DataFlowController("run")
    flow.ingest_prompts([{"task_id": "p"}])
    with pytest.raises(TypeError, match="max_tasks is"):
        flow.lease_prompt_tasks("w0", count)
    assert flow.status()["prompts_pending"] == 1 and len(flow.lease_prompt_tasks("w0", numpy.int64(4))) == 1


def test_a_prompt_that_says_none_has_none_of_it():
    flow = DataFlowController("run")
    flow.ingest_prompts([{"task_id": "p", "metadata": None, "loss_mask_policy": None}])
    task = flow.lease_prompt_tasks("w0", 1)[0]
    assert task.metadata == {} and task.loss_mask_policy == {}


@pytest.mark.parametrize("width", [math.nan, 2.5, "2", None, True], ids=repr)
def test_no_such_number_of_partitions(width):
    with pytest.raises(TypeError, match="num_partitions is"):
        dp_partition("s0", width)
    assert dp_partition("s0", numpy.int64(7)) == dp_partition("s0", 7)


@pytest.mark.parametrize("returned", [None, [1], 5], ids=repr)
def test_a_batch_is_a_dict(returned):
    store = LocalFeatureStore()
    refs = [store.put({"x": torch.ones(1)}, sample_id="s0", metadata={})]
    with pytest.raises(TypeError, match="collate_fn returned a "):
        list(FeatureDataLoader(store, refs=refs, collate_fn=lambda _: returned))
    assert store.health()["active_leases"] == 0


@pytest.mark.parametrize("returned", [None, (torch.ones(1), 7), torch.ones(1), {"x": 5}], ids=repr)
def test_a_transform_may_return_what_its_collate_fn_takes(returned):
    store = LocalFeatureStore()

    def load(**options):
        refs = [store.put({"x": torch.ones(1)}, sample_id="s0", metadata={})]
        return list(FeatureDataLoader(store, refs=refs, per_sample_transform=lambda _: returned, **options))

    seen = []
    [batch] = load(collate_fn=lambda samples: seen.extend(samples) or {"x": torch.zeros(2)})
    assert seen == [returned] and batch.tensors["x"].shape == (2,)
    # Here it was refused whatever the collate_fn was.
    with pytest.raises(TypeError, match="of the batch is a .*: a loader without a collate_fn stacks dicts of tensors"):
        load()
    assert store.health()["active_leases"] == 0


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=repr)
def test_a_manifest_is_json(tmp_path: Path, value):
    path = tmp_path / "refs.json"
    write_ref_manifest((make_ref(f"s{number}") for number in range(2)), str(path))
    with pytest.raises(ValueError, match="refs.json is not written: metadata of a ref is no JSON"):
        write_ref_manifest([make_ref("s0", loss=value)], str(path))
    assert ids(read_ref_manifest(str(path))) == ["s0", "s1"] and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("text", [b"", b"\xff", b"{", b"[" * 200_000], ids=["empty", "bytes", "cut", "deep"])
def test_a_manifest_that_is_no_json_is_named(tmp_path: Path, text):
    (tmp_path / "refs.json").write_bytes(text)
    with pytest.raises(ValueError, match="refs.json is no manifest"):
        read_ref_manifest(str(tmp_path / "refs.json"))


@pytest.mark.parametrize("text", ["null", "[]", '"s0"', "5"])
def test_a_ref_is_a_json_object(text):
    with pytest.raises(ValueError, match="a sample ref is a JSON object"):
        sample_ref_from_json(text)


@pytest.mark.parametrize("number", NO_COUNTS, ids=repr)
def test_a_trainer_counts_in_whole_numbers(number):
    expected = ValueError if type(number) is int else TypeError
    for name in ("save_interval", "eval_interval", "log_interval", "max_steps", "num_epochs", "start_step", "start_epoch"):
        with pytest.raises(expected, match=f"{name} is "):
            TrainerController(None, run_id="r", **{name: number})
    if expected is TypeError:
        with pytest.raises(expected, match="accumulation_steps is "):
            TrainerCore(None, None, accumulation_steps=number)
