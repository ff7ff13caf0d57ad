# SPDX-License-Identifier: Apache-2.0
"""A number that is none, or no such one, is refused where it comes in, by its name."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, Callable

import numpy
import pytest
import torch
from compat_refs import ids, make_ref
from data_plane_story import Clock

from draftflow.compat.specforge.control_plane import BackpressureConfig, DataFlowController
from draftflow.compat.specforge.data_plane import FeatureDataLoader, LocalFeatureStore, SampleRefQueue, SharedDirFeatureStore

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
