# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional

import pytest
from compat_refs import ids, make_ref, make_refs

from draftflow.compat.specforge import control_plane
from draftflow.compat.specforge.contracts import SampleRef
from draftflow.compat.specforge.control_plane import (
    DataFlowController,
    InMemoryMetadataStore,
    MetadataStore,
    SQLiteMetadataStore,
    TrainLease,
)
from draftflow.compat.specforge.control_plane import controller as module
from draftflow.compat.specforge.data_plane import SampleRefQueue


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MetadataStore]:
    if request.param == "memory":
        yield InMemoryMetadataStore()
        return
    made = SQLiteMetadataStore(str(tmp_path / "ledger.sqlite3"))
    yield made
    made.close()


@pytest.fixture
def flow(store: MetadataStore) -> DataFlowController:
    return DataFlowController("run", metadata_store=store)


class Freed:
    """A feature store of which nothing but abort is asked."""

    def __init__(self, failing: Optional[str] = None) -> None:
        self.aborted: List[str] = []
        self.failing = failing

    def abort(self, sample_id: str, *, reason: str) -> None:
        assert reason
        self.aborted.append(sample_id)
        if sample_id == self.failing:
            raise OSError(f"{sample_id} is busy")


def prompts(count: int) -> List[Dict[str, Any]]:
    return [{"task_id": f"t{number}", "payload": {"text": "a"}} for number in range(count)]


def test_the_package_has_the_names() -> None:
    assert set(control_plane.__all__) == {
        *("DataFlowController", "TrainLease", "MetadataStore", "InMemoryMetadataStore", "SQLiteMetadataStore"),
        *("sample_ref_to_json", "sample_ref_from_json", "BackpressureConfig", "BackpressureController"),
    }
    assert all(hasattr(control_plane, name) for name in control_plane.__all__)


def test_given_parts_are_used_and_others_made() -> None:
    queue, books = SampleRefQueue(), InMemoryMetadataStore()
    flow = DataFlowController("run", sample_queue=queue, metadata_store=books)
    assert (flow.run_id, flow.sample_queue, flow.store) == ("run", queue, books)
    bare = DataFlowController("run")
    assert isinstance(bare.sample_queue, SampleRefQueue) and isinstance(bare.store, InMemoryMetadataStore)


def test_names_of_workers_and_trainers(flow: DataFlowController) -> None:
    assert flow.register_rollout_worker({"worker_id": "w"}) == "w"
    assert flow.register_rollout_worker({"worker_id": None}) != flow.register_rollout_worker({})
    assert flow.register_trainer({"trainer_id": "t"}) == "t"
    assert isinstance(flow.train_lease(), TrainLease)
    status = flow.status()
    assert (status["rollout_workers"], status["trainers"]) == (3, 2)


# Prompts


def test_prompts_become_tasks(flow: DataFlowController) -> None:
    whole = {"text": "hi"}
    named, bare = flow.ingest_prompts([{"task_id": "t0", "payload": {"text": "a"}, "max_length": "16", "source_id": 3}, whole])
    first, second = flow.lease_prompt_tasks("w0", 8)
    assert (first.task_id, first.run_id, first.payload, first.max_length) == ("t0", "run", {"text": "a"}, 16)
    assert (first.source_id, second.source_id) == ("3", "prompt_source")
    assert (second.task_id, second.payload, second.max_length, second.attempt) == (bare, whole, 2048, 0)
    assert named == "t0" and bare


def test_a_task_id_is_taken_once(flow: DataFlowController) -> None:
    assert flow.ingest_prompts(prompts(1)) == flow.ingest_prompts(prompts(1)) == ["t0"]
    assert len(flow.lease_prompt_tasks("w0", 8)) == 1
    flow.commit_samples("w0", [make_ref("s0", task_id="t0")])
    flow.ingest_prompts(prompts(1))
    assert flow.lease_prompt_tasks("w0", 8) == [] and flow.status()["prompts"] == 1


def test_a_tensor_refuses_the_whole_batch_of_prompts(flow: DataFlowController) -> None:
    numpy = pytest.importorskip("numpy")
    with pytest.raises(TypeError, match=r"\['payload'\]\['ids'\]"):
        flow.ingest_prompts([*prompts(2), {"payload": {"ids": numpy.zeros(3)}}])
    with pytest.raises(TypeError):
        flow.register_rollout_worker({"worker_id": "w", "x": numpy.zeros(1)})
    with pytest.raises(TypeError):
        flow.register_trainer({"x": numpy.zeros(1)})
    status = flow.status()
    assert (status["prompts"], status["rollout_workers"], status["trainers"]) == (0, 0, 0)


def test_a_retryable_failure_is_another_attempt(flow: DataFlowController) -> None:
    flow.ingest_prompts(prompts(2))
    flow.lease_prompt_tasks("w0", 1)
    flow.fail_prompt_tasks("w0", ["t0"], reason="died", retryable=True)
    assert [(task.task_id, task.attempt) for task in flow.lease_prompt_tasks("w0", 8)] == [("t1", 0), ("t0", 1)]


def test_a_final_failure_keeps_its_reason(flow: DataFlowController) -> None:
    flow.ingest_prompts(prompts(1))
    flow.lease_prompt_tasks("w0", 1)
    flow.fail_prompt_tasks("w0", ["t0"], "bad prompt", False)
    assert flow.failed_prompts() == {"t0": "bad prompt"}
    status = flow.status()
    assert (status["prompts_failed"], status["prompts_leased"], status["prompts_pending"]) == (1, 0, 0)
    assert flow.lease_prompt_tasks("w0", 1) == []


def test_a_prompt_that_failed_for_good_may_be_ingested_again(flow: DataFlowController) -> None:
    flow.ingest_prompts(prompts(1))
    flow.lease_prompt_tasks("w0", 1)
    flow.fail_prompt_tasks("w0", ["t0"], "bad prompt", False)
    flow.ingest_prompts([{"task_id": "t0", "payload": {"text": "a better one"}}])
    assert flow.failed_prompts() == {}
    status = flow.status()
    assert (status["prompts"], status["prompts_pending"], status["prompts_failed"]) == (1, 1, 0)
    [task] = flow.lease_prompt_tasks("w0", 8)
    assert (task.payload, task.attempt) == ({"text": "a better one"}, 0)


def test_ids_of_prompts_may_be_numbers(flow: DataFlowController) -> None:
    assert flow.ingest_prompts([{"task_id": 7}]) == [7]
    flow.lease_prompt_tasks("w0", 1)
    flow.fail_prompt_tasks("w0", [7, 8, None], "died", True)
    assert [(task.task_id, task.attempt) for task in flow.lease_prompt_tasks("w0", 8)] == [(7, 1)]


def test_attempts_are_bounded(flow: DataFlowController, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_ATTEMPTS", 3)
    flow.ingest_prompts(prompts(1))
    for attempt in range(3):
        assert [task.attempt for task in flow.lease_prompt_tasks("w0", 1)] == [attempt]
        flow.fail_prompt_tasks("w0", ["t0"], "boom", True)
    assert flow.lease_prompt_tasks("w0", 1) == []
    assert flow.failed_prompts() == {"t0": "failed 3 times, at last: boom"}


@pytest.mark.parametrize("retryable", [True, False])
def test_another_workers_prompt_is_left_alone(flow: DataFlowController, retryable: bool) -> None:
    flow.ingest_prompts(prompts(1))
    flow.lease_prompt_tasks("w0", 1)
    flow.fail_prompt_tasks("w1", ["t0", "unknown"], "mine?", retryable)
    status = flow.status()
    assert (status["prompts_leased"], status["prompts_pending"], status["prompts_failed"]) == (1, 0, 0)


def test_a_late_failure_does_not_capture_a_finished_prompt_again(flow: DataFlowController) -> None:
    flow.ingest_prompts(prompts(1))
    flow.lease_prompt_tasks("w0", 1)
    flow.commit_samples("w0", [make_ref("s0", task_id="t0")])
    flow.fail_prompt_tasks("w0", ["t0"], "late", True)
    flow.fail_prompt_tasks("w0", ["t0"], "late", False)
    status = flow.status()
    assert (status["prompts_pending"], status["prompts_failed"]) == (0, 0)


def test_a_prompt_that_nobody_leased_can_be_taken_out(flow: DataFlowController) -> None:
    flow.ingest_prompts(prompts(2))
    flow.fail_prompt_tasks("w0", ["t0"], "not this one", False)
    assert [task.task_id for task in flow.lease_prompt_tasks("w0", 8)] == ["t1"]


# Samples


def test_online_and_offline_meet_in_one_queue(flow: DataFlowController) -> None:
    flow.enqueue_offline_refs([make_ref("s0")])
    flow.commit_samples("w0", [make_ref("s1")])
    leased = flow.lease_train_refs("t0", 8)
    assert ids(leased) == ["s0", "s1"]
    flow.ack_train_refs("t0", ids(leased))
    assert flow.sample_queue.in_flight() == 0
    assert flow.status()["durable_acked"] == 2


def test_commits_are_taken_once(flow: DataFlowController) -> None:
    for _ in range(2):
        flow.commit_samples("w0", [make_ref("s0"), make_ref("s0")])
    assert (flow.status()["samples_committed"], flow.sample_queue.depth()) == (1, 1)
    flow.ack_train_refs("t0", ids(flow.lease_train_refs("t0", 8)))
    flow.commit_samples("w0", [make_ref("s0")])
    assert flow.sample_queue.depth() == 0


def test_a_commit_completes_its_prompt_also_when_made_again(flow: DataFlowController) -> None:
    flow.ingest_prompts(prompts(1))
    flow.commit_samples("w0", [make_ref("s0", task_id="t0")])  # a task that nobody leased
    flow.lease_prompt_tasks("w0", 1)
    flow.commit_samples("w0", [make_ref("s0", task_id="t0")])
    assert flow.status()["prompts_leased"] == 0
    flow.commit_samples("w0", [make_ref("s1", task_id="of nobody")])


@pytest.mark.parametrize("verb", ["commit_samples", "enqueue_offline_refs"])
def test_a_tensor_refuses_the_whole_batch_of_refs(flow: DataFlowController, verb: str) -> None:
    numpy = pytest.importorskip("numpy")
    bad = [make_ref("s0"), make_ref("s1", sneaky=numpy.zeros(4))]
    with pytest.raises(TypeError, match="sneaky"):
        flow.commit_samples("w0", bad) if verb == "commit_samples" else flow.enqueue_offline_refs(bad)
    assert (flow.status()["samples_committed"], flow.sample_queue.depth()) == (0, 0)


def test_status(flow: DataFlowController) -> None:
    flow.ingest_prompts(prompts(4))
    flow.lease_prompt_tasks("w0", 2)
    flow.fail_prompt_tasks("w0", ["t0"], "no", False)
    flow.enqueue_offline_refs(make_refs(3))
    flow.ack_train_refs("t0", ids(flow.lease_train_refs("t0", 1)), global_step=5)
    flow.lease_train_refs("t0", 1)
    assert flow.status() == {
        "run_id": "run",
        **{"prompts": 4, "prompts_pending": 2, "prompts_leased": 1, "prompts_failed": 1},
        **{"samples_committed": 3, "train_backlog": 2, "queue_depth": 1, "queue_in_flight": 1},
        **{"rollout_workers": 0, "trainers": 0, "durable_global_step": 5, "durable_acked": 1},
    }


def test_an_ack_is_a_fact_before_the_lease_ends(flow: DataFlowController, monkeypatch: pytest.MonkeyPatch) -> None:
    flow.enqueue_offline_refs(make_refs(1))
    flow.lease_train_refs("t0", 1)

    def full(*_: Any, **__: Any) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(flow.store, "record_train_ack", full)
    with pytest.raises(OSError):
        flow.ack_train_refs("t0", ["s0"], global_step=1)
    assert flow.sample_queue.in_flight() == 1
    monkeypatch.undo()
    flow.ack_train_refs("t0", ["s0"], global_step=1)
    assert (flow.sample_queue.in_flight(), flow.status()["durable_acked"]) == (0, 1)


def test_an_ack_by_somebody_else_than_the_holder(flow: DataFlowController) -> None:
    # A loader leases from the queue, and its trainer acks by id.
    flow.enqueue_offline_refs(make_refs(2))
    flow.sample_queue.get(1)
    flow.ack_train_refs("trainer", ["s0", "never committed"], global_step=7, optimizer_durable=True)
    assert flow.sample_queue.in_flight() == 0
    marker = flow.store.durable_marker()
    assert marker == {"acked": {"s0", "never committed"}, "global_step": 7, "optimizer_durable": True}


def test_an_ack_of_nothing_says_the_step(flow: DataFlowController) -> None:
    flow.ack_train_refs("t0", [], global_step=3)
    assert flow.status()["durable_global_step"] == 3


def test_a_lease_in_the_shape_of_a_queue(flow: DataFlowController) -> None:
    flow.enqueue_offline_refs(make_refs(3))
    lease = flow.train_lease("t0")
    refs = lease.get(2)
    lease.ack(refs[:1], global_step=3)
    lease.fail(refs[1:], "again", True)
    assert (flow.status()["durable_global_step"], flow.status()["durable_acked"]) == (3, 1)
    assert ids(lease.get(8, timeout_s=0.0)) == ["s2", "s1"]
    lease.ack(refs[:1], global_step=4, optimizer_durable=True)
    assert flow.store.durable_ids() == {"s0"}


def test_a_trainer_that_lost_its_lease_changes_nothing(store: MetadataStore) -> None:
    queue = SampleRefQueue(lease_timeout_s=10.0)
    now = [0.0]
    queue._clock = lambda: now[0]
    flow = DataFlowController("run", sample_queue=queue, metadata_store=store)
    flow.enqueue_offline_refs(make_refs(2))
    flow.lease_train_refs("slow", 1)
    now[0] += 11.0
    assert ids(flow.lease_train_refs("quick", 2)) == ["s1", "s0"]
    for _ in range(2):
        flow.ack_train_refs("slow", ["s0"], global_step=9, optimizer_durable=True)
        flow.fail_refs("slow", ["s0"], "late", False)
    assert (flow.status()["durable_acked"], flow.status()["durable_global_step"]) == (0, None)
    assert (queue.in_flight(), queue.failed()) == (2, {})
    flow.ack_train_refs("quick", ["s0", "s1"], global_step=1)
    flow.ack_train_refs("slow", ["s0"], global_step=9, optimizer_durable=True)
    assert (flow.store.durable_ids(), flow.status()["durable_global_step"], queue.in_flight()) == (set(), 1, 0)


def test_a_failed_ref_leaves_the_queue(flow: DataFlowController) -> None:
    flow.enqueue_offline_refs(make_refs(2))
    flow.lease_train_refs("t0", 2)
    flow.fail_refs("t0", ["s0"], "corrupt", False)
    flow.fail_refs("t0", ["s1", "unknown"], "again", True)
    assert flow.sample_queue.failed() == {"s0": "corrupt"}
    assert ids(flow.lease_train_refs("t0", 8)) == ["s1"]


def test_a_trainer_waits_for_a_commit(flow: DataFlowController) -> None:
    got: List[List[str]] = []
    thread = threading.Thread(target=lambda: got.append(ids(flow.lease_train_refs("t0", 4, timeout_s=60.0))), daemon=True)
    thread.start()
    flow.commit_samples("w0", make_refs(1))
    thread.join(60)
    assert got == [["s0"]]


# Restart


def test_a_crash_between_the_ack_and_the_release(tmp_path: Path) -> None:
    path = str(tmp_path / "ledger.sqlite3")
    before = SQLiteMetadataStore(path)
    flow = DataFlowController("run", metadata_store=before)
    flow.commit_samples("w0", make_refs(4))
    flow.lease_train_refs("trainer", 4)
    before.record_train_ack(["s0", "s1"], global_step=1, optimizer_durable=True)
    before.close()

    again = DataFlowController("run", metadata_store=SQLiteMetadataStore(path))
    freed = Freed()
    report = again.reconcile_on_restart(feature_store=freed)
    assert report == {"requeued": ["s2", "s3"], "released": ["s0", "s1"], "global_step": 1, "optimizer_durable": True}
    assert freed.aborted == ["s0", "s1"]
    assert ids(again.lease_train_refs("trainer", 8)) == ["s2", "s3"]


def test_a_crash_before_any_ack_loses_nothing(flow: DataFlowController, store: MetadataStore) -> None:
    flow.commit_samples("w0", make_refs(3))
    flow.lease_train_refs("trainer", 3)
    again = DataFlowController("run", metadata_store=store)
    report = again.reconcile_on_restart()
    assert report == {"requeued": ["s0", "s1", "s2"], "released": [], "global_step": None, "optimizer_durable": False}


def test_a_durable_ack_needs_no_step_and_a_step_is_not_durable(flow: DataFlowController) -> None:
    flow.commit_samples("w0", make_refs(3))
    flow.store.record_train_ack(["s0"], global_step=5, optimizer_durable=False)
    assert flow.reconcile_on_restart()["released"] == []
    flow.store.record_train_ack(["s1"], global_step=None, optimizer_durable=True)
    assert flow.reconcile_on_restart()["released"] == ["s1"]


def test_a_later_ack_without_durability_releases_what_was_durable(flow: DataFlowController) -> None:
    flow.commit_samples("w0", make_refs(3))
    flow.store.record_train_ack(["s0"], global_step=1, optimizer_durable=True)
    flow.store.record_train_ack(["s1"], global_step=2, optimizer_durable=False)
    freed = Freed()
    report = flow.reconcile_on_restart(freed)
    assert (report["released"], report["requeued"], freed.aborted) == (["s0"], ["s1", "s2"], ["s0"])


def test_reconciling_again_is_harmless_and_voids_the_leases_between(flow: DataFlowController) -> None:
    flow.commit_samples("w0", make_refs(3))
    flow.store.record_train_ack(["s0"], global_step=1, optimizer_durable=True)
    first = flow.reconcile_on_restart()
    held = flow.lease_train_refs("trainer", 1)
    assert flow.reconcile_on_restart() == first
    flow.sample_queue.fail(held, "late", False)
    assert ids(flow.lease_train_refs("trainer", 8)) == ["s1", "s2"]


def test_what_is_released_is_not_handed_out_by_the_same_queue(flow: DataFlowController) -> None:
    flow.enqueue_offline_refs(make_refs(2))
    flow.ack_train_refs("trainer", ["s0"], global_step=1, optimizer_durable=True)  # acked without a lease
    flow.reconcile_on_restart()
    assert ids(flow.lease_train_refs("trainer", 8)) == ["s1"]


def test_one_store_that_fails_to_free_does_not_keep_the_rest(flow: DataFlowController) -> None:
    flow.commit_samples("w0", make_refs(4))
    flow.store.record_train_ack(["s0", "s1", "s2"], global_step=1, optimizer_durable=True)
    freed = Freed(failing="s1")
    with pytest.raises(OSError, match="s1 is busy"):
        flow.reconcile_on_restart(freed)
    assert freed.aborted == ["s0", "s1", "s2"]
    assert ids(flow.lease_train_refs("trainer", 8)) == ["s3"]


class TheirQueue:
    """A queue with the reference's verbs only."""

    def __init__(self) -> None:
        self.refs: List[SampleRef] = []

    def put(self, refs: List[SampleRef]) -> None:
        self.refs += [ref for ref in refs if ref not in self.refs]

    def get(self, max_refs: int, timeout_s: Optional[float] = None) -> List[SampleRef]:
        return self.refs[:max_refs]

    def ack(self, refs: List[SampleRef]) -> None:
        self.refs = [ref for ref in self.refs if ref not in refs]


class TheirStore:
    """A metadata store with the reference's verbs only, not even of our base class."""

    def __init__(self) -> None:
        inner = InMemoryMetadataStore()
        verbs = "commit_sample get_committed committed_count all_committed_ids record_train_ack durable_marker"
        for verb in verbs.split():
            setattr(self, verb, getattr(inner, verb))


def test_a_queue_and_a_store_made_for_the_reference_serve() -> None:
    queue: Any = TheirQueue()
    books: Any = TheirStore()
    flow = DataFlowController("run", sample_queue=queue, metadata_store=books)
    flow.commit_samples("w0", make_refs(3))
    flow.ack_train_refs("t0", ids(flow.lease_train_refs("t0", 1)), global_step=2, optimizer_durable=True)
    assert ids(queue.refs) == ["s1", "s2"]
    report = flow.reconcile_on_restart()
    assert (report["released"], report["requeued"]) == (["s0"], ["s1", "s2"])
    queue.depth, queue.in_flight = (lambda: len(queue.refs)), (lambda: 0)
    assert (flow.status()["durable_acked"], flow.status()["durable_global_step"]) == (1, 2)


def old_verbs(kind: Any, *path: str) -> Any:
    """A store of ours whose subclass, written for the reference, overrides its verbs."""
    calls: List[str] = []

    class Overrides(kind):  # type: ignore[misc]
        def commit_sample(self, ref: SampleRef) -> bool:
            calls.append(f"commit {ref.sample_id}")
            is_new: bool = super().commit_sample(ref)
            return is_new

        def durable_marker(self) -> Dict[str, Any]:
            calls.append("marker")
            return {**super().durable_marker(), "acked": {"s0"}, "global_step": 9, "optimizer_durable": True}

    return Overrides, calls


@pytest.mark.parametrize("kind", [InMemoryMetadataStore, SQLiteMetadataStore])
def test_the_references_verbs_of_a_subclass_are_called(kind: Any, tmp_path: Path) -> None:
    path = [] if kind is InMemoryMetadataStore else [str(tmp_path / "ledger.sqlite3")]
    overrides, calls = old_verbs(kind)
    flow = DataFlowController("run", metadata_store=overrides(*path))
    flow.commit_samples("w0", make_refs(2))
    assert calls == ["commit s0", "commit s1"]
    status = flow.status()
    assert (status["durable_global_step"], status["durable_acked"], status["train_backlog"]) == (9, 1, 1)
    found = flow.reconcile_on_restart()
    assert (found["released"], found["requeued"]) == (["s0"], ["s1"])


@pytest.mark.parametrize("kind", [InMemoryMetadataStore, SQLiteMetadataStore])
def test_the_verb_of_the_lowest_class_is_called(kind: Any, tmp_path: Path) -> None:
    path = [] if kind is InMemoryMetadataStore else [str(tmp_path / "ledger.sqlite3")]
    overrides, calls = old_verbs(kind)

    class Batches(overrides):  # type: ignore[misc]
        def commit_samples(self, refs: List[SampleRef]) -> List[bool]:
            calls.append(f"commit {len(refs)} of them")
            return [super(overrides, self).commit_sample(ref) for ref in refs]

    store = Batches(*path)
    DataFlowController("run", metadata_store=store).commit_samples("w0", make_refs(2))
    assert calls == ["commit 2 of them"]
    store.commit_sample = lambda ref: calls.append("the object's own") or False
    DataFlowController("run", metadata_store=store).commit_samples("w0", make_refs(1))
    assert calls[-1] == "the object's own"
