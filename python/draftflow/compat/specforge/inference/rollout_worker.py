# SPDX-License-Identifier: Apache-2.0
"""RolloutWorker: leases prompts, has them captured, stores the features, commits the refs.

Whatever fails and whenever, each leased prompt ends in one of three ways: its sample is committed, it is pending again, or it
is failed with a reason. Bytes without a commit are removed, and bytes of a committed sample are never touched.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, MutableMapping
from typing import Any, Deque, Dict, List, Optional, Protocol

from draftflow.compat.specforge.contracts import PromptTask, SampleRef
from draftflow.compat.specforge.inference.capture import CaptureConfig, CaptureMismatchError, verify_capture

HEALTH_STATES = ("starting", "ready", "paused", "draining", "unhealthy", "stopped")
_AUX_LAYER_IDS = "__aux_layer_ids__"
_CLOSING = ("draining", "stopped")  # only start() leads out of these


class FeatureSource(Protocol):
    """An engine: one dict (or other mapping) of tensors a task, in the tasks' order.

    ``__aux_layer_ids__`` in it, if there, is taken out.
    """

    def generate_features(self, tasks: List[PromptTask], *, capture: CaptureConfig) -> List[Dict[str, Any]]: ...


class _Batch:
    """The prompts of one ``run_once``: which are still leased, and which bytes no commit names yet."""

    def __init__(self, tasks: List[PromptTask]) -> None:
        self.tasks = tasks
        self.open = [task.task_id for task in tasks]
        self.refs: List[SampleRef] = []
        self.uncommitted: List[SampleRef] = []


class RolloutWorker:
    """One worker. ``run_once`` from one thread at a time; ``stop``, ``drain`` and ``health`` from any."""

    def __init__(
        self,
        controller: Any,
        feature_store: Any,
        feature_source: FeatureSource,
        capture: CaptureConfig,
        *,
        run_id: str,
        worker_id: Optional[str] = None,
        strategy: str = "eagle3",
        target_model_version: str = "unknown",
        tokenizer_version: str = "unknown",
        draft_weight_version: Optional[str] = None,
    ) -> None:
        self.controller = controller
        self.feature_store = feature_store
        self.feature_source = feature_source
        self.capture = capture
        self.run_id = run_id
        self.strategy = strategy
        self.target_model_version = target_model_version
        self.tokenizer_version = tokenizer_version
        self.draft_weight_version = draft_weight_version
        self._lock = threading.Lock()
        self._state = "starting"
        self._inflight = 0
        self._failures: Deque[str] = deque(maxlen=5)
        self._committed = 0
        info = {"worker_id": worker_id, "strategy": strategy, "role": "rollout"}
        self.worker_id: str = controller.register_rollout_worker(info)

    def start(self) -> None:
        self._enter("ready", also_from_closing=True)

    def stop(self, reason: str = "stopped") -> None:
        """No new prompts; what ``run_once`` has leased it still finishes."""
        self._enter("stopped", also_from_closing=True)

    def drain(self) -> None:
        """As ``stop``, and says "draining"."""
        self._enter("draining", also_from_closing=True)

    def run_once(self, max_tasks: int) -> List[SampleRef]:
        """The refs committed from up to ``max_tasks`` prompts; [] when stopped, draining, paused or out of prompts.

        Raises what the source raised (the prompts are pending again), ValueError if it did not return one dict a prompt (they
        are failed), the first CaptureMismatchError when the others of its batch are done (its prompt is failed), and what the
        commit raised (the prompts are pending again). A sample that cannot be stored makes its prompt pending again; one that
        the store refuses (ValueError: its id, say) fails it. A TypeError of the store, such as for an array that is no tensor,
        is raised.
        """
        with self._lock:
            if self._state in _CLOSING:
                return []
        tasks = self.controller.lease_prompt_tasks(self.worker_id, max_tasks)
        if not tasks:
            return []
        self._enter("ready")
        batch = _Batch(tasks)
        self._inflight = len(tasks)
        try:
            features = self._generate(batch)
            mismatch = self._store(batch, features)
            self._commit(batch)
        except BaseException as error:  # an interrupt, too, must not leave prompts leased for ever
            self._enter("unhealthy")
            self._give_back(batch, error)
            raise
        finally:
            self._inflight = 0
        if mismatch is not None:
            self._enter("unhealthy")
            raise mismatch
        return batch.refs

    def health(self) -> Dict[str, Any]:
        """``state`` (HEALTH_STATES), prompts ``in_flight``, samples ``committed``, the last five ``recent_failures``."""
        with self._lock:
            return {
                "worker_id": self.worker_id,
                "state": self._state,
                "strategy": self.strategy,
                "draft_weight_version": self.draft_weight_version,
                "in_flight": self._inflight,
                "recent_failures": list(self._failures),
                "committed": self._committed,
            }

    def _enter(self, state: str, *, also_from_closing: bool = False) -> None:
        with self._lock:
            if also_from_closing or self._state not in _CLOSING:
                self._state = state

    def _generate(self, batch: _Batch) -> List[Dict[str, Any]]:
        try:
            features = self.feature_source.generate_features(list(batch.tasks), capture=self.capture)
        except Exception as error:
            self._fail_after(batch, f"generate_features: {error}")
            raise
        if len(features) != len(batch.tasks):
            reason = f"generate_features returned {len(features)} dicts for {len(batch.tasks)} tasks: one a task is wanted"
            self._fail(batch, batch.open, reason, retryable=False)
            raise ValueError(reason)
        return features

    def _store(self, batch: _Batch, features: List[Dict[str, Any]]) -> Optional[CaptureMismatchError]:
        first: Optional[CaptureMismatchError] = None
        for task, tensors in zip(batch.tasks, features):
            sample_id = self._sample_id(task)
            if self._is_committed(sample_id):  # by an attempt whose end nobody heard of: a put would take its bytes away
                batch.refs.append(self.controller.store.get_committed(sample_id))
                continue
            try:
                if not isinstance(tensors, Mapping):  # transformers' BatchFeature is no dict
                    raise CaptureMismatchError(f"[{sample_id}] captured a {type(tensors).__name__}, wanted a dict of tensors")
                recorded = None
                if _AUX_LAYER_IDS in tensors:
                    tensors = tensors if isinstance(tensors, MutableMapping) else dict(tensors)
                    recorded = tensors.pop(_AUX_LAYER_IDS)
                verify_capture(tensors, self.capture, sample_id=sample_id, recorded_aux_layer_ids=recorded)
            except CaptureMismatchError as error:
                self._fail(batch, [task.task_id], str(error), retryable=False)
                first = first or error
                continue
            try:
                ref = self.feature_store.put(tensors, sample_id=sample_id, metadata=self._put_metadata(task))
            except TypeError:  # a mistake in the program: the next try would make it again, and nobody would hear of it
                self._abort(sample_id, "put_failed")
                raise
            except Exception as error:
                self._abort(sample_id, f"put_failed: {error}")
                # What the store does not take, such as the id, it will not take from the next try either.
                self._fail(batch, [task.task_id], f"put: {error}", retryable=not isinstance(error, ValueError))
                continue
            batch.refs.append(ref)
            batch.uncommitted.append(ref)
        return first

    def _commit(self, batch: _Batch) -> None:
        if batch.refs:
            self.controller.commit_samples(self.worker_id, batch.refs)
            with self._lock:
                self._committed += len(batch.refs)
        batch.open, batch.uncommitted = [], []

    def _give_back(self, batch: _Batch, error: BaseException) -> None:
        for ref in batch.uncommitted:
            self._discard(ref)
        self._fail_after(batch, f"{type(error).__name__}: {error}")

    def _fail_after(self, batch: _Batch, reason: str) -> None:
        """Gives the prompts back after an error, which is the one that is raised whatever the controller says to it."""
        try:
            self._fail(batch, batch.open, reason, retryable=True)
        except Exception as error:
            with self._lock:
                self._failures.append(f"fail_prompt_tasks: {error}")

    def _fail(self, batch: _Batch, task_ids: List[str], reason: str, *, retryable: bool) -> None:
        if not task_ids:
            return
        with self._lock:
            self._failures.append(reason)
        self.controller.fail_prompt_tasks(self.worker_id, list(task_ids), reason=reason, retryable=retryable)
        batch.open = [task_id for task_id in batch.open if task_id not in task_ids]

    def _discard(self, ref: SampleRef) -> None:
        remove = getattr(self.feature_store, "remove", None)
        try:
            if self._is_committed(ref.sample_id):  # the commit was made, only its reply was lost
                return
            if remove is not None:
                remove(ref)
                return
        except Exception as error:  # in doubt the bytes stay: an orphan is swept, a committed sample is not made again
            with self._lock:
                self._failures.append(f"remove {ref.sample_id}: {error}")
            return
        self._abort(ref.sample_id, "commit_failed")

    def _abort(self, sample_id: str, reason: str) -> None:
        try:
            if not self._is_committed(sample_id):
                self.feature_store.abort(sample_id, reason=reason)
        except Exception as error:
            with self._lock:
                self._failures.append(f"abort {sample_id}: {error}")

    def _is_committed(self, sample_id: str) -> bool:
        asks = getattr(getattr(self.controller, "store", None), "is_committed", None)
        return asks is not None and asks(sample_id) is True  # not what a mock says to everything

    def _sample_id(self, task: PromptTask) -> str:
        return f"{self.run_id}:{task.task_id}"

    def _put_metadata(self, task: PromptTask) -> Dict[str, Any]:
        return {
            "run_id": self.run_id,
            "source_task_id": task.task_id,
            "strategy": self.strategy,
            "target_repr": self.capture.target_repr,
            "vocab_map_version": self.capture.vocab_map_version,
            "ttt_length": self.capture.extra.get("ttt_length"),
            "aux_hidden_state_layer_ids": list(self.capture.aux_hidden_state_layer_ids),
            "target_model_version": self.target_model_version,
            "tokenizer_version": self.tokenizer_version,
            "draft_weight_version": self.draft_weight_version,
            "num_tokens": int(task.metadata.get("num_tokens", 0)),
        }


__all__ = ["RolloutWorker", "FeatureSource", "HEALTH_STATES"]
