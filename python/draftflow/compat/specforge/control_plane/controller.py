# SPDX-License-Identifier: Apache-2.0
"""DataFlowController: prompts to workers, refs to trainers, acks to the metadata store. Metadata only; thread-safe.

What must outlive the process is in the metadata store (``store``); prompts, leases and the queue (``sample_queue``) are the
process's own, and ``reconcile_on_restart`` makes the queue again from the store.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import threading
import uuid
from collections import OrderedDict
from typing import Any, Callable, Dict, Iterable, List, Optional, Set, Tuple, cast

from draftflow.compat.specforge.contracts import PromptTask, SampleRef, assert_no_tensors
from draftflow.compat.specforge.control_plane.backpressure import BackpressureController
from draftflow.compat.specforge.control_plane.metadata_store import InMemoryMetadataStore, MetadataStore
from draftflow.compat.specforge.data_plane.sample_ref_queue import SampleRefQueue
from draftflow.compat.specforge.limits import check_count, check_flag, check_ids, check_step, check_task_ids

logger = logging.getLogger(__name__)

_MAX_ATTEMPTS = 100  # failures of one prompt before it is failed for good, so that no prompt kills its workers for ever
_MAX_HANDED = 1 << 17  # refs handed to trainers that are remembered, to tell a late call from one by somebody else


class TrainLease:
    """One trainer's view of the controller in the shape of a queue: what ``FeatureDataLoader`` asks of one."""

    def __init__(self, controller: "DataFlowController", trainer_id: str) -> None:
        self._controller = controller
        self._trainer_id = trainer_id

    def get(self, max_refs: int, timeout_s: Optional[float] = None) -> List[SampleRef]:
        return self._controller.lease_train_refs(self._trainer_id, max_refs, timeout_s)

    def ack(self, refs: List[SampleRef], *, global_step: Optional[int] = None, optimizer_durable: bool = False) -> None:
        ids = [ref.sample_id for ref in refs]
        self._controller.ack_train_refs(self._trainer_id, ids, global_step=global_step, optimizer_durable=optimizer_durable)

    def fail(self, refs: List[SampleRef], reason: str, retryable: bool) -> None:
        self._controller.fail_refs(self._trainer_id, [ref.sample_id for ref in refs], reason, retryable)


class _Prompts:
    """Prompts that are pending or leased, and why some failed. Guarded by the controller's lock."""

    def __init__(self) -> None:
        self.known: Set[str] = set()
        self.pending: "OrderedDict[str, PromptTask]" = OrderedDict()
        self.leased: Dict[str, Tuple[str, PromptTask]] = {}  # with the worker
        self.held: Dict[str, int] = {}  # leases of each worker
        self.failed: Dict[str, str] = {}

    def add(self, task: PromptTask) -> None:
        if task.task_id not in self.known or task.task_id in self.failed:
            self.failed.pop(task.task_id, None)
            self.known.add(task.task_id)
            self.pending[task.task_id] = task

    def lease(self, worker_id: str, count: int) -> List[PromptTask]:
        tasks: List[PromptTask] = []
        while self.pending and len(tasks) < count:
            task_id, task = self.pending.popitem(last=False)
            self.leased[task_id] = (worker_id, task)
            self.held[worker_id] = self.held.get(worker_id, 0) + 1
            tasks.append(task)
        return tasks

    def complete(self, task_id: str) -> None:
        self._end_lease(task_id)

    def fail(self, worker_id: str, task_id: str, reason: str, retryable: bool) -> None:
        owner, task = self.leased.get(task_id, (None, self.pending.get(task_id)))
        if task is None or owner not in (None, worker_id):
            return
        self._end_lease(task_id)
        task = dataclasses.replace(task, attempt=task.attempt + 1)
        if retryable and task.attempt < _MAX_ATTEMPTS:
            self.pending[task_id] = task
            return
        self.pending.pop(task_id, None)
        self.failed[task_id] = reason if not retryable else f"failed {task.attempt} times, at last: {reason}"

    def _end_lease(self, task_id: str) -> None:
        worker_id, _ = self.leased.pop(task_id, (None, None))
        if worker_id is not None:
            self.held[worker_id] -= 1


class DataFlowController:
    """Schedules by metadata. ``sample_queue``, ``metadata_store`` and ``backpressure`` (None: no limits) may be given."""

    def __init__(
        self,
        run_id: str,
        *,
        sample_queue: Optional[SampleRefQueue] = None,
        metadata_store: Optional[MetadataStore] = None,
        backpressure: Optional[BackpressureController] = None,
    ) -> None:
        self.run_id = run_id
        self.sample_queue = sample_queue if sample_queue is not None else SampleRefQueue()
        self.store = metadata_store if metadata_store is not None else InMemoryMetadataStore()
        self.backpressure = backpressure
        self._lock = threading.Lock()
        self._prompts = _Prompts()
        self._workers: Dict[str, Dict[str, Any]] = {}
        self._trainers: Dict[str, Dict[str, Any]] = {}
        self._handed: "OrderedDict[Tuple[str, str], SampleRef]" = OrderedDict()  # by trainer and sample

    # Who is there.

    def register_rollout_worker(self, info: Dict[str, Any]) -> str:
        """The worker's id: ``info["worker_id"]``, or a new one. TypeError for a tensor in ``info``."""
        return self._register(self._workers, info, "worker_id", "rollout")

    def register_trainer(self, info: Dict[str, Any]) -> str:
        """The trainer's id: ``info["trainer_id"]``, or a new one. TypeError for a tensor in ``info``."""
        return self._register(self._trainers, info, "trainer_id", "trainer")

    def train_lease(self, trainer_id: Optional[str] = None) -> TrainLease:
        """What a loader may take for a queue; acks go through this controller. None: registers a trainer."""
        return TrainLease(self, self.register_trainer({"role": "trainer"}) if trainer_id is None else trainer_id)

    def _register(self, table: Dict[str, Dict[str, Any]], info: Dict[str, Any], key: str, prefix: str) -> str:
        assert_no_tensors(info)
        name = info.get(key) or f"{prefix}-{uuid.uuid4().hex[:8]}"
        with self._lock:
            table[name] = dict(info)
        return name

    # Prompts.

    def ingest_prompts(self, prompts: List[Dict[str, Any]]) -> List[str]:
        """The task ids, in order; a prompt without ``task_id`` gets one, a ``task_id`` known already is not taken again.

        One that failed for good is: it is pending with the prompt that is given now, as if it were new.

        All or none: TypeError for a tensor, naming the path to it. Other keys: ``source_id``, ``payload`` (default: the prompt
        itself), ``max_length`` (2048), ``chat_template``, ``loss_mask_policy``, ``target_model_version``,
        ``draft_weight_version``, ``metadata``.
        """
        tasks = [self._task(prompt) for prompt in prompts]
        with self._lock:
            for task in tasks:
                self._prompts.add(task)
        return [task.task_id for task in tasks]

    def _task(self, prompt: Dict[str, Any]) -> PromptTask:
        assert_no_tensors(prompt)
        return PromptTask(
            task_id=prompt.get("task_id") or f"task-{uuid.uuid4().hex[:12]}",
            run_id=self.run_id,
            source_id=str(prompt.get("source_id", "prompt_source")),
            payload=prompt.get("payload", prompt),
            max_length=int(prompt.get("max_length", 2048)),
            chat_template=prompt.get("chat_template"),
            loss_mask_policy=prompt.get("loss_mask_policy") or {},
            target_model_version=str(prompt.get("target_model_version", "unknown")),
            draft_weight_version=prompt.get("draft_weight_version"),
            metadata=prompt.get("metadata") or {},
        )

    def lease_prompt_tasks(self, worker_id: str, max_tasks: int) -> List[PromptTask]:
        """Up to ``max_tasks`` prompts for the worker until it commits or fails them; [] while paused, too."""
        max_tasks = check_count("max_tasks", max_tasks, least=None)
        policy = self.backpressure
        if policy is not None and policy.should_pause_prompts():
            policy.note_rollout_starved()
            return []
        with self._lock:
            if policy is not None:
                max_tasks = policy.cap_prompt_grant(self._prompts.held.get(worker_id, 0), max_tasks)
            return self._prompts.lease(worker_id, max_tasks)

    def fail_prompt_tasks(self, worker_id: str, task_ids: List[str], reason: str, retryable: bool) -> None:
        """Ends the worker's leases: pending again with one more attempt (100 at most), or failed for good with the reason.

        A prompt that another worker has, or that is finished, is left as it is.
        """
        task_ids = check_task_ids("task_ids", task_ids)
        with self._lock:
            for task_id in task_ids:
                self._prompts.fail(worker_id, task_id, reason, retryable)

    def failed_prompts(self) -> Dict[str, str]:
        """Why prompts were failed for good, by task id."""
        with self._lock:
            return dict(self._prompts.failed)

    # Samples.

    def commit_samples(self, worker_id: str, refs: List[SampleRef]) -> None:
        """As ``enqueue_offline_refs``, and completes the prompts that the refs name."""
        refs = self._commit(refs)
        with self._lock:
            for ref in refs:
                if ref.source_task_id is not None:
                    self._prompts.complete(ref.source_task_id)

    def enqueue_offline_refs(self, refs: List[SampleRef]) -> None:
        """Commits and queues the samples that are new. All or none: TypeError for a tensor."""
        self._commit(refs)

    def _commit(self, refs: Iterable[SampleRef]) -> List[SampleRef]:
        refs = list(refs)
        for ref in refs:
            assert_no_tensors(ref)
        check_ids("refs", (ref.sample_id for ref in refs))  # or the queue would refuse what is committed
        new = _verb(self.store, "commit_samples")(refs)
        self.sample_queue.put([ref for ref, is_new in zip(refs, new) if is_new])
        return refs

    def lease_train_refs(self, trainer_id: str, max_refs: int, timeout_s: Optional[float] = None) -> List[SampleRef]:
        """Up to ``max_refs`` refs, waiting up to ``timeout_s`` for the first one (None: not at all)."""
        if self.backpressure is not None:
            max_refs = self.backpressure.cap_train_lease(max_refs)
        refs = self.sample_queue.get(max_refs, timeout_s=timeout_s)
        if not refs and self.backpressure is not None:
            self.backpressure.note_trainer_starved()
        with self._lock:
            for ref in refs:
                self._handed[(trainer_id, ref.sample_id)] = ref
                self._handed.move_to_end((trainer_id, ref.sample_id))
            while len(self._handed) > _MAX_HANDED:
                self._handed.popitem(last=False)
        return refs

    def ack_train_refs(
        self, trainer_id: str, sample_ids: List[str], *, global_step: Optional[int] = None, optimizer_durable: bool = False
    ) -> None:
        """Records the ack in one transaction, then ends the leases.

        ``optimizer_durable``: a checkpoint with these samples is on disk; without it they are trained again after a restart. A
        trainer whose lease expired and went to another consumer changes nothing for that sample.
        """
        ids, global_step = check_ids("sample_ids", sample_ids), check_step(global_step)
        optimizer_durable = check_flag("optimizer_durable", optimizer_durable)
        refs = self._held_refs(trainer_id, ids)
        if ids and not refs:
            return
        self.store.record_train_ack(list(refs), global_step=global_step, optimizer_durable=optimizer_durable)
        self.sample_queue.ack([ref for ref in refs.values() if ref is not None])
        with self._lock:
            for sample_id in refs:  # it may ack them again, when they are durable
                self._handed.pop((trainer_id, sample_id), None)

    def fail_refs(self, owner_id: str, sample_ids: List[str], reason: str, retryable: bool) -> None:
        """Ends the leases: back to the queue's tail, or out of it for good. Late calls as in ``ack_train_refs``."""
        refs = self._held_refs(owner_id, check_ids("sample_ids", sample_ids))
        self.sample_queue.fail([ref for ref in refs.values() if ref is not None], reason, retryable)

    def _held_refs(self, trainer_id: str, sample_ids: List[str]) -> Dict[str, Optional[SampleRef]]:
        """By sample: the ref that the trainer leased here, or the committed one, or None; without those that it lost."""
        with self._lock:
            refs = {sample_id: self._handed.get((trainer_id, sample_id)) for sample_id in sample_ids}
        is_late = getattr(self.sample_queue, "is_late", None)
        late = [sample_id for sample_id, ref in refs.items() if ref is not None and is_late is not None and is_late(ref)]
        for sample_id in late:
            del refs[sample_id]
        if late:
            text = "%s lost its leases on %d samples, %r first: its call changes nothing there"
            logger.warning(text, trainer_id, len(late), late[0])
        return {sample_id: ref if ref is not None else self.store.get_committed(sample_id) for sample_id, ref in refs.items()}

    def reconcile_on_restart(self, feature_store: Optional[Any] = None) -> Dict[str, Any]:
        """Makes the queue again from the metadata store, voiding every lease, and frees what is trained for good.

        Returns ``{"requeued": ids, "released": ids, "global_step", "optimizer_durable"}``: released are the committed samples
        whose ack is durable (``feature_store.abort`` frees them; its first error is raised when all were tried), requeued the
        other committed ones, in the order of their commits. Calling it again is harmless.
        """
        marker = self.store.durable_marker()
        durable = _verb(self.store, "durable_ids")()
        released: List[str] = []
        waiting: List[SampleRef] = []
        for sample_id in self.store.all_committed_ids():
            ref = None if sample_id in durable else self.store.get_committed(sample_id)
            if ref is not None:
                waiting.append(ref)
            elif sample_id in durable:
                released.append(sample_id)
        restart = getattr(self.sample_queue, "restart", None)
        if restart is not None:
            restart(waiting, released)
        else:
            self.sample_queue.put(waiting)
        if feature_store is not None:
            _free(feature_store, released)
        return {
            "requeued": [ref.sample_id for ref in waiting],
            "released": released,
            "global_step": marker["global_step"],
            "optimizer_durable": marker["optimizer_durable"],
        }

    def status(self) -> Dict[str, Any]:
        """Counts; ``train_backlog`` is committed less acked, ``durable_acked`` counts all acks."""
        with self._lock:
            prompts = self._prompts
            counts = {
                "run_id": self.run_id,
                "prompts": len(prompts.known),
                "prompts_pending": len(prompts.pending),
                "prompts_leased": len(prompts.leased),
                "prompts_failed": len(prompts.failed),
                "rollout_workers": len(self._workers),
                "trainers": len(self._trainers),
            }
        committed, acked = self.store.committed_count(), _verb(self.store, "acked_count")()
        status = {
            **counts,
            "samples_committed": committed,
            "train_backlog": committed - acked,
            "queue_depth": self.sample_queue.depth(),
            "queue_in_flight": self.sample_queue.in_flight(),
            "durable_global_step": _verb(self.store, "global_step")(),
            "durable_acked": acked,
        }
        if self.backpressure is not None:
            status["backpressure"] = self.backpressure.snapshot()
        return status


def _verb(store: MetadataStore, name: str) -> Callable[..., Any]:
    """A verb that the reference's own stores lack: the store's, or in terms of the reference's where a subclass has only those."""
    old = "commit_sample" if name == "commit_samples" else "durable_marker"
    for names in (getattr(store, "__dict__", {}), *(vars(kind) for kind in type(store).__mro__)):
        if name in names:
            return cast(Callable[..., Any], getattr(store, name))
        if old in names:  # a subclass of ours, written for the reference, would not be asked otherwise
            return functools.partial(getattr(MetadataStore, name), store)
    return getattr(store, name, None) or functools.partial(getattr(MetadataStore, name), store)


def _free(feature_store: Any, sample_ids: List[str]) -> None:
    first: Optional[Exception] = None
    for sample_id in sample_ids:
        try:
            feature_store.abort(sample_id, reason="reconciled-released")
        except Exception as error:  # the others are to be freed all the same
            first = first or error
    if first is not None:
        raise first


__all__ = ["DataFlowController", "TrainLease"]
