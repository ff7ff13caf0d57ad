# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections import UserDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional
from unittest.mock import Mock

import pytest
from compat_refs import ids, make_ref

from draftflow.compat.specforge.contracts import PromptTask, SampleRef
from draftflow.compat.specforge.control_plane import DataFlowController
from draftflow.compat.specforge.data_plane import LocalFeatureStore, SharedDirFeatureStore
from draftflow.compat.specforge.inference.capture import CaptureConfig, CaptureMismatchError
from draftflow.compat.specforge.inference.rollout_worker import HEALTH_STATES, RolloutWorker

torch = pytest.importorskip("torch")

HIDDEN, VOCAB = 8, 32
NAMES = frozenset({"input_ids", "hidden_state", "target"})
CAPTURE = CaptureConfig(NAMES, (1, 2, 3), "logits", HIDDEN, target_vocab_size=VOCAB)


class Store:
    """What the worker asks of a feature store, and what it did there."""

    def __init__(self) -> None:
        self.held: Dict[str, Dict[str, Any]] = {}
        self.metadata: Dict[str, Dict[str, Any]] = {}
        self.aborted: List[str] = []
        self.before_put: Callable[[str], None] = lambda _: None

    def put(self, tensors: Dict[str, Any], *, sample_id: str, metadata: Dict[str, Any]) -> SampleRef:
        self.before_put(sample_id)
        self.held[sample_id], self.metadata[sample_id] = dict(tensors), metadata
        return make_ref(sample_id, task_id=metadata["source_task_id"])

    def abort(self, sample_id: str, *, reason: str) -> None:
        assert reason
        self.aborted.append(sample_id)
        self.held.pop(sample_id, None)


class RemovingStore(Store):
    def __init__(self) -> None:
        super().__init__()
        self.removed: List[str] = []

    def remove(self, ref: SampleRef) -> None:
        self.removed.append(ref.sample_id)
        self.held.pop(ref.sample_id, None)


class Source:
    """Captures each prompt as ``make`` says, by default well."""

    def __init__(self, make: Optional[Callable[[PromptTask], Any]] = None) -> None:
        self.make = make or (lambda _: features())
        self.calls = 0

    def generate_features(self, tasks: List[PromptTask], *, capture: CaptureConfig) -> List[Dict[str, Any]]:
        assert capture is CAPTURE
        self.calls += 1
        return [self.make(task) for task in tasks]


def features(layers: Any = (1, 2, 3)) -> Dict[str, Any]:
    return {
        "input_ids": torch.zeros(1, 4, dtype=torch.long),
        "hidden_state": torch.randn(1, 4, 3 * HIDDEN),
        "target": torch.randn(1, 4, VOCAB),
        "__aux_layer_ids__": layers,
    }


class Plant:
    """A controller with prompts, a store, and a worker between them."""

    def __init__(self, source: Any, prompts: int = 2, store: Optional[Store] = None, **more: Any) -> None:
        self.flow = DataFlowController("run")
        self.flow.ingest_prompts([{"task_id": f"t{number}", "payload": {}} for number in range(prompts)])
        self.store = store or Store()
        self.worker = RolloutWorker(self.flow, self.store, source, CAPTURE, run_id="run", **more)
        self.worker.start()

    def prompts(self) -> Dict[str, int]:
        status = self.flow.status()
        return {state: status[f"prompts_{state}"] for state in ("pending", "leased", "failed")}

    def committed(self) -> List[str]:
        return list(self.flow.store.all_committed_ids())


def test_prompts_become_committed_samples() -> None:
    plant = Plant(Source(), worker_id="w7")
    refs = plant.worker.run_once(max_tasks=8)
    assert ids(refs) == ["run:t0", "run:t1"] == plant.committed()
    assert plant.flow.sample_queue.depth() == 2
    assert plant.prompts() == {"pending": 0, "leased": 0, "failed": 0}
    assert set(plant.store.held["run:t0"]) == {"input_ids", "hidden_state", "target"}
    health = plant.worker.health()
    assert (health["worker_id"], health["state"], health["in_flight"], health["committed"]) == ("w7", "ready", 0, 2)
    assert health["recent_failures"] == [] and health["state"] in HEALTH_STATES
    assert plant.worker.run_once(8) == []


def test_what_is_said_of_a_sample() -> None:
    versions = {"target_model_version": "m1", "tokenizer_version": "k1", "draft_weight_version": "d1"}
    plant = Plant(Source(), 0, strategy="dflash", **versions)
    plant.flow.ingest_prompts([{"task_id": "t0", "metadata": {"num_tokens": "4"}}])
    plant.worker.run_once(1)
    assert plant.store.metadata["run:t0"] == {
        **{"run_id": "run", "source_task_id": "t0", "strategy": "dflash", "target_repr": "logits", "num_tokens": 4},
        **{"vocab_map_version": None, "ttt_length": None, "aux_hidden_state_layer_ids": [1, 2, 3]},
        **versions,
    }


def test_at_most_so_many_prompts_at_a_time() -> None:
    plant = Plant(Source(), 3)
    assert len(plant.worker.run_once(2)) == 2
    assert plant.prompts() == {"pending": 1, "leased": 0, "failed": 0}


@pytest.mark.parametrize("end, state", [("stop", "stopped"), ("drain", "draining")])
def test_a_stopped_worker_takes_no_prompts(end: str, state: str) -> None:
    plant = Plant(Source())
    getattr(plant.worker, end)()
    assert plant.worker.run_once(8) == [] and plant.worker.health()["state"] == state
    plant.worker.start()
    assert len(plant.worker.run_once(8)) == 2


def test_a_worker_starts_as_starting_and_its_stop_in_the_middle_lasts() -> None:
    plant = Plant(Source())
    assert RolloutWorker(plant.flow, plant.store, Source(), CAPTURE, run_id="run").health()["state"] == "starting"
    plant.store.before_put = lambda _: plant.worker.stop("enough")
    assert len(plant.worker.run_once(8)) == 2  # what it had leased is finished
    assert plant.worker.health()["state"] == "stopped"


def test_a_stopped_worker_that_fails_stays_stopped() -> None:
    def stop_and_fail(_: PromptTask) -> Any:
        plant.worker.stop()
        raise RuntimeError("the engine is gone")

    plant = Plant(Source(stop_and_fail))
    with pytest.raises(RuntimeError):
        plant.worker.run_once(8)
    assert plant.worker.health()["state"] == "stopped" and plant.worker.run_once(8) == []


# Failures before a write


def test_a_source_that_raises_gives_the_prompts_back() -> None:
    def broken(_: PromptTask) -> Any:
        raise RuntimeError("the engine is gone")

    plant = Plant(Source(broken))
    with pytest.raises(RuntimeError, match="the engine is gone"):
        plant.worker.run_once(8)
    assert plant.prompts() == {"pending": 2, "leased": 0, "failed": 0}
    health = plant.worker.health()
    assert (health["state"], health["in_flight"]) == ("unhealthy", 0) and "the engine is gone" in health["recent_failures"][-1]
    assert [task.attempt for task in plant.flow.lease_prompt_tasks("w2", 8)] == [1, 1]


@pytest.mark.parametrize("ids_given", [[1, 2], ["a", 2]], ids=repr)
def test_ids_that_are_numbers_do_not_hide_what_the_source_raised(ids_given: List[Any]) -> None:
    def broken(_: PromptTask) -> Any:
        raise RuntimeError("the engine is gone")

    plant = Plant(Source(broken), 0)
    plant.flow.ingest_prompts([{"task_id": each} for each in ids_given])
    with pytest.raises(RuntimeError, match="the engine is gone"):
        plant.worker.run_once(8)
    assert plant.prompts() == {"pending": 2, "leased": 0, "failed": 0}
    plant.worker.feature_source = Source()
    assert ids(plant.worker.run_once(8)) == [f"run:{each}" for each in ids_given]


def test_a_controller_that_fails_does_not_hide_what_the_source_raised() -> None:
    def broken(_: PromptTask) -> Any:
        raise RuntimeError("the engine is gone")

    def gone(*_: Any, **__: Any) -> None:
        raise OSError("the controller is gone")

    plant = Plant(Source(broken))
    plant.flow.fail_prompt_tasks = gone  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="the engine is gone"):
        plant.worker.run_once(8)
    assert "fail_prompt_tasks: the controller is gone" in plant.worker.health()["recent_failures"]


class Fixed(Mapping):  # type: ignore[type-arg]
    """A mapping that cannot be changed."""

    def __init__(self, items: Dict[str, Any]) -> None:
        self.items_ = items

    def __getitem__(self, key: str) -> Any:
        return self.items_[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.items_)

    def __len__(self) -> int:
        return len(self.items_)


@pytest.mark.parametrize("kind", [UserDict, Fixed])  # transformers' BatchFeature is a UserDict
@pytest.mark.parametrize("store", ["local", "shared"])
def test_a_capture_may_be_any_mapping(kind: Any, store: str, tmp_path: Path) -> None:
    held = LocalFeatureStore() if store == "local" else SharedDirFeatureStore(str(tmp_path), "st")
    plant = Plant(Source(lambda _: kind(features())), store=held)  # type: ignore[arg-type]
    refs = plant.worker.run_once(8)
    assert ids(refs) == ["run:t0", "run:t1"] and set(held.get(refs[0])[0]) == NAMES
    plant = Plant(Source(lambda _: kind(features((1, 2, 99)))), store=held)  # type: ignore[arg-type]
    with pytest.raises(CaptureMismatchError, match="aux-layer id mismatch"):
        plant.worker.run_once(8)


def test_masked_logits_are_stored() -> None:
    def masked(_: PromptTask) -> Any:
        made = features()
        made["target"][..., 5:] = float("-inf")
        return made

    plant = Plant(Source(masked))
    assert len(plant.worker.run_once(8)) == 2


def test_a_mock_for_a_controller_has_committed_nothing() -> None:
    flow = Mock()
    flow.register_rollout_worker.return_value = "w"
    flow.lease_prompt_tasks.return_value = [PromptTask("t0", "run", "s", {}, 8)]
    store = Store()
    refs = RolloutWorker(flow, store, Source(), CAPTURE, run_id="run").run_once(1)
    assert ids(refs) == ["run:t0"] and set(store.held) == {"run:t0"}
    flow.commit_samples.assert_called_once_with("w", refs)


def test_an_interrupt_gives_the_prompts_back() -> None:
    def interrupted(_: PromptTask) -> Any:
        raise KeyboardInterrupt

    plant = Plant(Source(interrupted))
    with pytest.raises(KeyboardInterrupt):
        plant.worker.run_once(8)
    assert plant.prompts() == {"pending": 2, "leased": 0, "failed": 0}


def test_a_source_that_returns_too_few_fails_the_prompts() -> None:
    class Short(Source):
        def generate_features(self, tasks: List[PromptTask], *, capture: CaptureConfig) -> List[Dict[str, Any]]:
            return [features()]

    plant = Plant(Short())
    with pytest.raises(ValueError, match="1 dicts for 2 tasks"):
        plant.worker.run_once(8)
    assert plant.prompts() == {"pending": 0, "leased": 0, "failed": 2} and plant.store.held == {}


@pytest.mark.parametrize(
    "made", [lambda: features((1, 2, 99)), lambda: {"input_ids": torch.zeros(1)}, lambda: None, lambda: [1]]
)
def test_one_bad_capture_fails_its_prompt_and_stops_no_other(made: Callable[[], Any]) -> None:
    plant = Plant(Source(lambda task: made() if task.task_id == "t1" else features()), 3)
    with pytest.raises(CaptureMismatchError, match="run:t1"):
        plant.worker.run_once(8)
    assert plant.committed() == ["run:t0", "run:t2"] and set(plant.store.held) == {"run:t0", "run:t2"}
    assert plant.prompts() == {"pending": 0, "leased": 0, "failed": 1}
    assert "run:t1" in plant.flow.failed_prompts()["t1"]
    assert plant.worker.health()["state"] == "unhealthy"


# Failures of a write


def test_a_put_that_fails_gives_its_prompt_back() -> None:
    plant = Plant(Source())
    plant.store.before_put = lambda sample_id: full(sample_id == "run:t0")
    assert ids(plant.worker.run_once(8)) == ["run:t1"]
    assert plant.prompts() == {"pending": 1, "leased": 0, "failed": 0}
    assert plant.store.aborted == ["run:t0"]
    plant.store.before_put = lambda _: None
    assert ids(plant.worker.run_once(8)) == ["run:t0"]


def full(is_full: bool) -> None:
    if is_full:
        raise MemoryError("1 byte over the budget")


def test_an_abort_that_fails_strands_no_prompt() -> None:
    plant = Plant(Source())

    def broken(sample_id: str, *, reason: str) -> None:
        raise OSError("the folder is gone")

    plant.store.abort = broken  # type: ignore[method-assign]
    plant.store.before_put = lambda _: full(True)
    assert plant.worker.run_once(8) == []
    assert plant.prompts() == {"pending": 2, "leased": 0, "failed": 0}
    assert any("the folder is gone" in each for each in plant.worker.health()["recent_failures"])


def test_an_interrupted_put_leaves_nothing() -> None:
    plant = Plant(Source(), store=RemovingStore())

    def interrupt(sample_id: str) -> None:
        if sample_id == "run:t1":
            raise KeyboardInterrupt

    plant.store.before_put = interrupt
    with pytest.raises(KeyboardInterrupt):
        plant.worker.run_once(8)
    assert plant.store.held == {} and plant.prompts() == {"pending": 2, "leased": 0, "failed": 0}


# Failures of a commit


@pytest.mark.parametrize("store", [Store, RemovingStore])
def test_a_commit_that_fails_removes_the_bytes_and_gives_the_prompts_back(store: Callable[[], Store]) -> None:
    plant = Plant(Source(), store=store())
    commit = plant.flow.commit_samples

    def broken(worker_id: str, refs: List[SampleRef]) -> None:
        raise OSError("the ledger's disk is full")

    plant.flow.commit_samples = broken  # type: ignore[method-assign]
    with pytest.raises(OSError):
        plant.worker.run_once(8)
    assert plant.store.held == {} and plant.prompts() == {"pending": 2, "leased": 0, "failed": 0}
    assert plant.store.aborted == ([] if isinstance(plant.store, RemovingStore) else ["run:t0", "run:t1"])
    plant.flow.commit_samples = commit  # type: ignore[method-assign]
    assert ids(plant.worker.run_once(8)) == ["run:t0", "run:t1"]
    assert plant.worker.health()["committed"] == 2


@pytest.mark.parametrize("store", [Store, RemovingStore])
def test_a_commit_whose_reply_was_lost_keeps_its_bytes_and_is_not_made_again(store: Callable[[], Store]) -> None:
    plant = Plant(Source(), store=store())
    commit = plant.flow.commit_samples

    def lost(worker_id: str, refs: List[SampleRef]) -> None:
        for ref in refs:
            plant.flow.store.commit_sample(ref)
        raise OSError("the connection is gone")

    plant.flow.commit_samples = lost  # type: ignore[method-assign]
    with pytest.raises(OSError):
        plant.worker.run_once(8)
    kept = dict(plant.store.held)
    assert set(kept) == {"run:t0", "run:t1"}
    plant.flow.commit_samples = commit  # type: ignore[method-assign]
    assert ids(plant.worker.run_once(8)) == ["run:t0", "run:t1"]
    assert all(plant.store.held[sample_id] == kept[sample_id] for sample_id in kept)  # no second put
    assert plant.prompts() == {"pending": 0, "leased": 0, "failed": 0}


def test_in_doubt_the_bytes_stay() -> None:
    plant = Plant(Source(), store=RemovingStore())
    asks = plant.flow.store.is_committed
    silent = [False]

    def is_committed(sample_id: str) -> bool:
        if silent[0]:
            raise OSError("the ledger does not answer")
        return asks(sample_id)

    def broken(worker_id: str, refs: List[SampleRef]) -> None:
        silent[0] = True
        raise OSError("the ledger does not answer")

    plant.flow.store.is_committed = is_committed  # type: ignore[method-assign]
    plant.flow.commit_samples = broken  # type: ignore[method-assign]
    with pytest.raises(OSError):
        plant.worker.run_once(8)
    assert set(plant.store.held) == {"run:t0", "run:t1"}
    assert plant.prompts()["leased"] == 0


def test_a_failing_put_of_a_committed_sample_aborts_nothing() -> None:
    plant = Plant(Source(), 1)

    def committed_meanwhile(sample_id: str) -> None:
        plant.flow.store.commit_sample(make_ref(sample_id))
        raise OSError("the disk is full")

    plant.store.before_put = committed_meanwhile
    assert plant.worker.run_once(8) == [] and plant.store.aborted == []


def test_failures_are_told_the_last_five_of_them() -> None:
    plant = Plant(Source(), 7)
    plant.store.before_put = lambda _: full(True)
    plant.worker.run_once(8)
    assert len(plant.worker.health()["recent_failures"]) == 5


def test_a_controller_with_the_references_verbs_only() -> None:
    class Theirs:
        def __init__(self) -> None:
            self.refs: List[SampleRef] = []

        def register_rollout_worker(self, info: Dict[str, Any]) -> str:
            return "w"

        def lease_prompt_tasks(self, worker_id: str, max_tasks: int) -> List[PromptTask]:
            return [PromptTask("t0", "run", "s", {}, 8)]

        def commit_samples(self, worker_id: str, refs: List[SampleRef]) -> None:
            self.refs += refs

    theirs = Theirs()
    RolloutWorker(theirs, Store(), Source(), CAPTURE, run_id="run").run_once(1)
    assert ids(theirs.refs) == ["run:t0"]


@pytest.mark.parametrize("left", [0, 1])
def test_a_source_that_changes_its_list_of_tasks_leaves_no_prompt_leased(left: int) -> None:
    class Taker:
        def generate_features(self, tasks: List[PromptTask], *, capture: CaptureConfig) -> List[Dict[str, Any]]:
            del tasks[left:]
            return [features() for _ in tasks]

    plant = Plant(Taker())
    with pytest.raises(ValueError, match=f"returned {left} dicts for 2 tasks"):
        plant.worker.run_once(2)
    assert plant.prompts() == {"pending": 0, "leased": 0, "failed": 2} and plant.committed() == []


def test_a_mistake_that_each_put_makes_again_is_raised() -> None:
    def refuse(sample_id: str) -> None:
        if sample_id == "run:t1":
            raise TypeError("no tensor")

    plant = Plant(Source())
    plant.store.before_put = refuse
    with pytest.raises(TypeError, match="no tensor"):
        plant.worker.run_once(2)
    assert plant.prompts() == {"pending": 2, "leased": 0, "failed": 0} and plant.committed() == []
    assert sorted(plant.store.aborted) == ["run:t0", "run:t1"] and plant.store.held == {}
    assert plant.worker.health()["state"] == "unhealthy"


def test_what_the_store_refuses_is_failed_at_once_and_the_rest_goes_on() -> None:
    def refuse(sample_id: str) -> None:
        if sample_id == "run:t0":
            raise ValueError("an id with a slash")

    plant = Plant(Source())
    plant.store.before_put = refuse
    assert ids(plant.worker.run_once(2)) == ["run:t1"]
    assert plant.prompts() == {"pending": 0, "leased": 0, "failed": 1} and plant.committed() == ["run:t1"]
    assert plant.store.aborted == ["run:t0"]
    assert plant.worker.health()["recent_failures"] == ["put: an id with a slash"]
