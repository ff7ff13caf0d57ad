# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any, Dict, Optional

import pytest
from compat_refs import ids, make_refs

from draftflow.compat.specforge.control_plane import BackpressureConfig, BackpressureController, DataFlowController


class Capacity:
    """A store's health, of which only what was asked for counts."""

    def __init__(self, resident_bytes: int = 0, **more: Any) -> None:
        self.resident_bytes = resident_bytes
        self.more = more

    def health(self) -> Dict[str, Any]:
        return {"resident_bytes": self.resident_bytes, **self.more}


def limited(capacity: Optional[Capacity] = None, **limits: int) -> BackpressureController:
    return BackpressureController(BackpressureConfig(**limits), capacity)


def test_the_low_mark_is_at_most_the_high_one() -> None:
    with pytest.raises(ValueError, match="low_watermark_bytes is 200, high_watermark_bytes 100"):
        BackpressureConfig(high_watermark_bytes=100, low_watermark_bytes=200)
    assert BackpressureConfig(high_watermark_bytes=100).low_watermark_bytes == 100


def test_without_limits_nothing_pauses() -> None:
    assert not BackpressureController().should_pause_prompts()
    assert not limited(high_watermark_bytes=1).should_pause_prompts()  # no capacity to ask
    assert not BackpressureController(None, Capacity(1 << 60)).should_pause_prompts()
    assert (BackpressureController().cap_prompt_grant(5, 7), BackpressureController().cap_train_lease(7)) == (7, 7)


def test_pauses_at_the_high_mark_and_resumes_at_the_low_one() -> None:
    capacity = Capacity()
    policy = limited(capacity, high_watermark_bytes=100, low_watermark_bytes=50)
    answers = []
    for capacity.resident_bytes in (99, 100, 51, 99, 50, 99, 100):
        answers.append(policy.should_pause_prompts())
    assert answers == [False, True, True, True, False, False, True]
    said = policy.snapshot()
    assert (said["paused"], said["pause_transitions"], said["resume_transitions"]) == (True, 2, 1)


def test_with_one_mark_it_resumes_there() -> None:
    capacity = Capacity(100)
    policy = limited(capacity, high_watermark_bytes=100)
    assert policy.should_pause_prompts()
    capacity.resident_bytes = 99
    assert not policy.should_pause_prompts()


def test_only_resident_bytes_are_asked_for() -> None:
    class Strict(Dict[str, Any]):
        def get(self, key: str, default: Any = None) -> Any:
            assert key == "resident_bytes"
            return super().get(key, default)

    class Reporter:
        def health(self) -> Dict[str, Any]:
            return Strict(resident_bytes=7)

    assert BackpressureController(BackpressureConfig(high_watermark_bytes=7), Reporter()).should_pause_prompts()


def test_caps() -> None:
    policy = limited(max_inflight_prompts_per_worker=4, max_train_lease=2)
    assert [policy.cap_prompt_grant(worker_inflight=held, requested=10) for held in (1, 4, 5)] == [3, 0, 0]
    assert policy.cap_prompt_grant(worker_inflight=0, requested=2) == 2
    assert [policy.cap_train_lease(asked) for asked in (10, 1)] == [2, 1]


def test_the_two_starvations_are_counted_apart() -> None:
    policy = BackpressureController()
    policy.note_rollout_starved()
    policy.note_trainer_starved()
    policy.note_trainer_starved()
    wanted = {"paused": False, "rollout_starved": 1, "trainer_starved": 2, "pause_transitions": 0, "resume_transitions": 0}
    assert policy.snapshot() == wanted


def test_a_snapshot_with_a_capacity_says_what_it_reports() -> None:
    capacity = Capacity(30, max_resident_bytes=500, avg_age_s=1.5, oldest_age_s=3.0)
    said = limited(capacity, high_watermark_bytes=100).snapshot()
    assert (said["resident_bytes"], said["max_resident_bytes"], said["free_to_high_watermark_bytes"]) == (30, 500, 70)
    assert (said["avg_feature_age_s"], said["oldest_feature_age_s"]) == (1.5, 3.0)
    bare = BackpressureController(None, Capacity(30)).snapshot()
    assert (bare["free_to_high_watermark_bytes"], bare["max_resident_bytes"]) == (None, None)


# In the controller


def controller(policy: Optional[BackpressureController]) -> DataFlowController:
    made = DataFlowController("run", backpressure=policy)
    made.ingest_prompts([{"task_id": f"t{number}", "payload": {}} for number in range(5)])
    return made


def test_a_paused_worker_gets_nothing_and_starves() -> None:
    capacity = Capacity(100)
    flow = controller(limited(capacity, high_watermark_bytes=100, low_watermark_bytes=50))
    assert flow.lease_prompt_tasks("w0", 5) == []
    assert flow.status()["backpressure"]["rollout_starved"] == 1
    capacity.resident_bytes = 10
    assert len(flow.lease_prompt_tasks("w0", 5)) == 5
    assert flow.status()["backpressure"]["rollout_starved"] == 1


def test_each_worker_has_its_own_cap() -> None:
    flow = controller(limited(max_inflight_prompts_per_worker=2))
    assert [len(flow.lease_prompt_tasks(worker, 5)) for worker in ("w0", "w0", "w1")] == [2, 0, 2]
    flow.fail_prompt_tasks("w0", ["t0"], "why", False)
    assert len(flow.lease_prompt_tasks("w0", 5)) == 1


def test_a_trainer_without_refs_starves() -> None:
    flow = controller(limited(max_train_lease=2))
    assert flow.lease_train_refs("trainer", 8) == []
    assert flow.status()["backpressure"]["trainer_starved"] == 1
    flow.enqueue_offline_refs(make_refs(5))
    assert ids(flow.lease_train_refs("trainer", 8)) == ["s0", "s1"]
    assert flow.status()["backpressure"]["trainer_starved"] == 1


def test_without_a_policy_status_has_none() -> None:
    assert "backpressure" not in controller(None).status()
