# SPDX-License-Identifier: Apache-2.0
"""TrainerCore takes steps, TrainerController runs epochs of them, acks and keeps checkpoints.

The order in which things become true, so that a restart neither loses a sample nor trains it twice: the
optimizer's step; the ack of its samples (``ack_fn``); the checkpoint, whole or not at all; that they are durable
(``durable_fn``), which lets their bytes go.
"""

from __future__ import annotations

import logging
import math
import os
import uuid
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Tuple, Union

from draftflow.compat.specforge.contracts import TrainBatch
from draftflow.compat.specforge.limits import check_count
from draftflow.compat.specforge.training.backend import TrainingBackend
from draftflow.compat.specforge.training.strategy import DraftTrainStrategy, StepOutput

_log = logging.getLogger(__name__)

_STATE_FILE = "training_state.pt"
_FLOAT = "float.hex"
_METRICS = {"acces": "acc", "accuracy": "acc", "acceptance_rates": "acceptance_rates", "plosses": "plosses"}


@dataclass(frozen=True)
class Checkpoint:
    """Where a checkpoint is (``file://`` and a folder's absolute path) and after which optimizer step it was taken."""

    checkpoint_uri: str
    global_step: int
    epoch: int
    strategy: str
    metadata: Dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StepResult:
    """One micro-batch: its loss, and whether it was the last one of an optimizer step (then with the gradient's norm)."""

    optimizer_stepped: bool
    loss: float
    grad_norm: Optional[float]
    metrics: Dict[str, Any] = field(default_factory=dict)


def _scalar(value: Any) -> float:
    """The mean of a tensor, or of a list of them."""
    if isinstance(value, (list, tuple)):
        return sum(_scalar(each) for each in value) / len(value) if value else math.nan
    if not hasattr(value, "detach"):
        return float(value)
    tensor = value.detach()
    wide = tensor.is_floating_point() and tensor.element_size() == 8
    return float((tensor if wide else tensor.float()).mean())


class TrainerCore:
    """One step: the strategy's loss, the backend's backward, and the optimizer's step after ``accumulation_steps`` of them."""

    def __init__(self, strategy: DraftTrainStrategy, backend: TrainingBackend, *, accumulation_steps: int = 1) -> None:
        self.strategy = strategy
        self.backend = backend
        self.accumulation_steps = max(1, check_count("accumulation_steps", accumulation_steps, least=None))
        self._micro = 0  # micro-batches since the last optimizer step

    def train_step(self, batch: TrainBatch) -> StepResult:
        """FloatingPointError, naming the samples, for a loss that is not finite; weights and gradients are as before then."""
        output = self.strategy.forward_loss(batch)
        loss = _scalar(output.loss)
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss of samples {batch.sample_ids} is {loss}: the weights are those of the last step;"
                " lower the learning rate and resume from the last checkpoint"
            )
        self.backend.backward(output.loss / self.accumulation_steps)
        self._micro += 1
        if self._micro < self.accumulation_steps:
            return _result(output, loss, None, stepped=False, mode="train")
        self._micro = 0
        return _result(output, loss, self.backend.step(), stepped=True, mode="train")

    def eval_step(self, batch: TrainBatch) -> StepResult:
        import torch

        with torch.no_grad():
            output = self.strategy.forward_loss(batch)
        return _result(output, _scalar(output.loss), None, stepped=False, mode="eval")

    def drop_partial_step(self) -> int:
        """Drops the gradients of a step that did not come to its end; returns the number of its micro-batches."""
        dropped, self._micro = self._micro, 0
        if dropped:
            for parameter in self.strategy.trainable_module().parameters():
                parameter.grad = None
        return dropped


def _result(output: StepOutput, loss: float, grad_norm: Any, *, stepped: bool, mode: str) -> StepResult:
    metrics: Dict[str, Any] = {"loss": loss, "mode": mode}
    metrics.update({ours: _scalar(output.metrics[theirs]) for theirs, ours in _METRICS.items() if theirs in output.metrics})
    norm = None if grad_norm is None else _scalar(grad_norm)
    if norm is not None:
        metrics["grad_norm"] = norm
    return StepResult(optimizer_stepped=stepped, loss=loss, grad_norm=norm, metrics=metrics)


class TrainerController:
    """Runs epochs of a core's steps. Steps are optimizer steps everywhere; ``micro_step`` counts batches.

    ``save_interval``, ``eval_interval`` (0 or None: never) and ``log_interval`` in steps. ``ack_fn(sample_ids, step)`` is called after
    each step with the samples of its batches; ``durable_fn(sample_ids, step)`` after each checkpoint with those acked since the
    last one. A run whose ``ack_fn`` calls each step durable, as programs without ``durable_fn`` do, loses what it trained after
    its last checkpoint when it resumes.
    """

    def __init__(
        self,
        core: TrainerCore,
        *,
        run_id: str,
        output_dir: str = "./output",
        save_interval: Optional[int] = 0,
        eval_interval: Optional[int] = 0,
        log_interval: int = 50,
        max_steps: Optional[int] = None,
        num_epochs: int = 1,
        logger: Optional[Callable[[Dict[str, Any], int], None]] = None,
        ack_fn: Optional[Callable[[List[str], int], None]] = None,
        start_step: int = 0,
        start_epoch: int = 0,
        durable_fn: Optional[Callable[[List[str], int], None]] = None,
    ) -> None:
        self.core = core
        self.run_id = run_id
        self.output_dir = output_dir
        self.save_interval = None if save_interval is None else check_count("save_interval", save_interval)
        self.eval_interval = None if eval_interval is None else check_count("eval_interval", eval_interval)
        self.log_interval = check_count("log_interval", log_interval)
        self.max_steps = None if max_steps is None else check_count("max_steps", max_steps)
        self.num_epochs = check_count("num_epochs", num_epochs)
        self.logger = logger
        self.ack_fn = ack_fn
        self.durable_fn = durable_fn
        self.global_step = check_count("start_step", start_step)
        self.micro_step = 0
        self.epoch = check_count("start_epoch", start_epoch)
        self.last_metrics: Dict[str, Any] = {}
        # The epoch in which the last step was taken, and how many of its batches were trained with it. Batches that wait for
        # their step come after these, maybe in a later epoch.
        self._trained = (self.epoch, 0)
        self._waiting: List[str] = []  # their samples
        self._skip = 0  # batches of the epoch that begins, trained before this process
        self._not_durable: List[str] = []

    def fit(self, data: Iterable[TrainBatch], eval_data: Optional[Iterable[TrainBatch]] = None) -> int:
        """Trains to ``max_steps`` or the end of ``num_epochs``; returns the last step.

        Batches that do not make a whole step at the end of an epoch wait for those of the next one; at the end of the last
        epoch they are left, neither trained nor acked.
        """
        self.core.strategy.trainable_module().train()
        for epoch in range(self.epoch, self.num_epochs):
            if self._is_done():
                break
            self.epoch = epoch
            if hasattr(data, "set_epoch"):
                data.set_epoch(epoch)
            if not self._fit_epoch(data, eval_data):
                break
        if self._waiting:
            text = "epoch %d: %d samples at the end make no whole step: they are not trained"
            _log.warning(text, self.epoch, len(self._waiting))
        return self.global_step

    def _is_done(self) -> bool:
        return self.max_steps is not None and self.global_step >= self.max_steps

    def _fit_epoch(self, data: Iterable[TrainBatch], eval_data: Optional[Iterable[TrainBatch]]) -> bool:
        """Whether the epoch came to its end before ``max_steps``."""
        batches = self._skip
        for batch in self._rest_of(data):
            batches += 1
            self.micro_step += 1
            result = self.core.train_step(batch)
            self._waiting.extend(batch.sample_ids)
            self.last_metrics = result.metrics
            if not result.optimizer_stepped:
                continue
            self.global_step += 1
            self._trained = (self.epoch, batches)
            stepped, self._waiting = self._waiting, []
            self._end_step(stepped, result)
            if self.eval_interval and eval_data is not None and self.global_step % self.eval_interval == 0:
                self.evaluate(eval_data)
            if self.save_interval and self.global_step % self.save_interval == 0:
                self.save_checkpoint(self.global_step)
            if self._is_done():
                return False
        return True

    def _rest_of(self, data: Iterable[TrainBatch]) -> Iterator[TrainBatch]:
        skip, self._skip = self._skip, 0
        batches = iter(data)
        for skipped in range(skip):
            if next(batches, None) is None:
                raise ValueError(
                    f"resuming in epoch {self.epoch} after {skip} batches, but the data has {skipped}: give it the data and the"
                    " batch size of the run that is resumed, or call resume(..., skip_trained=False) for a stream"
                )
        return batches

    def _end_step(self, sample_ids: List[str], result: StepResult) -> None:
        if self.ack_fn is not None:
            self.ack_fn(sample_ids, self.global_step)
        if self.durable_fn is not None:
            self._not_durable.extend(sample_ids)
        if self.logger is not None and self.global_step % max(1, self.log_interval) == 0:
            self.logger(result.metrics, self.global_step)

    def evaluate(self, data: Iterable[TrainBatch]) -> Dict[str, float]:
        """The mean of each metric over the batches, without gradients; the module is in the mode it was in afterwards."""
        module = self.core.strategy.trainable_module()
        was_training = module.training
        module.eval()
        values: Dict[str, List[float]] = {}
        try:
            for batch in data:
                for name, value in self.core.eval_step(batch).metrics.items():
                    if isinstance(value, (int, float)):
                        values.setdefault(name, []).append(value)
        finally:
            module.train(was_training)
        return {name: sum(of) / len(of) for name, of in values.items()}

    def save_checkpoint(self, step: int) -> Checkpoint:
        """Writes ``{output_dir}/{run_id}-step{step}/``, then tells ``durable_fn``. Every rank calls it.

        ``training_state.pt`` has the draft's weights and the position, ``rank{n}-{save}.pt`` that rank's optimizer and random
        state; ``torch.load(path, weights_only=True)`` reads them. Rank 0's ``training_state.pt`` comes last and in one step:
        with it the checkpoint is there, without it there is none, or the one that was there before.
        """
        import torch

        rank, save = _rank_and_world()[0], _name_of_save()
        folder = os.path.abspath(os.path.join(self.output_dir, f"{self.run_id}-step{step}"))
        full = self.core.backend.state_dict()
        os.makedirs(folder, exist_ok=True)
        optimizer = getattr(self.core.backend, "optimizer", None)
        rank_state = {"rng": torch.get_rng_state(), "optimizer": None if optimizer is None else _packed(optimizer.state_dict())}
        mine = f"rank{rank}-{save}.pt"
        _write(rank_state, os.path.join(folder, mine))
        _barrier()
        epoch, batches = self._trained
        if rank == 0:
            state = {
                "draft_state_dict": self.core.strategy.checkpoint_state_filter(full),
                "global_step": step,
                "epoch": epoch,
                "epoch_batches": batches,
                "strategy": self.core.strategy.name,
                "run_id": self.run_id,
                "save": save,
            }
            _write(state, os.path.join(folder, _STATE_FILE))
        _barrier()
        _remove_others(folder, f"rank{rank}-", mine)
        if self.durable_fn is not None and self._not_durable:
            self.durable_fn(list(self._not_durable), step)
            self._not_durable = []
        return Checkpoint(f"file://{folder}", step, epoch, self.core.strategy.name)

    def resume(self, checkpoint: Union[Checkpoint, str], *, skip_trained: bool = True) -> int:
        """Loads weights, optimizer, random state and position before ``fit``; returns the step. A URI or a folder.

        ``skip_trained``: the data begins its epoch anew, so the batches trained before the checkpoint are passed over; False
        for a stream, which gives what is left. FileNotFoundError if the folder holds no whole checkpoint, ValueError if it is
        one of another strategy or model.
        """
        import torch

        uri = checkpoint.checkpoint_uri if isinstance(checkpoint, Checkpoint) else checkpoint
        folder = uri[len("file://") :] if uri.startswith("file://") else uri
        path = os.path.join(folder, _STATE_FILE)
        if not os.path.isfile(path):
            raise FileNotFoundError(f"{folder} holds no {_STATE_FILE}: a checkpoint was not finished there; name an older one")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["strategy"] != self.core.strategy.name:
            theirs, ours = state["strategy"], self.core.strategy.name
            raise ValueError(f"{folder} is a checkpoint of {theirs!r}, this trainer's is {ours!r}: name one of its own")
        self.core.strategy.load_checkpoint_state(state["draft_state_dict"])
        self._load_rank_state(os.path.join(folder, f"rank{_rank_and_world()[0]}-{state.get('save', '')}.pt"))
        self.global_step, self.epoch = int(state["global_step"]), int(state["epoch"])
        self._skip = int(state.get("epoch_batches", 0)) if skip_trained else 0
        self._trained = (self.epoch, self._skip)
        # What this object trained before is not in the weights any more.
        self.core.drop_partial_step()
        self._waiting, self._not_durable = [], []
        return self.global_step

    def _load_rank_state(self, path: str) -> None:
        import torch

        if not os.path.isfile(path):
            _log.warning("%s is not there: the optimizer begins anew", path)
            return
        state = torch.load(path, map_location="cpu", weights_only=True)
        optimizer = getattr(self.core.backend, "optimizer", None)
        if optimizer is not None and state["optimizer"] is not None:
            optimizer.load_state_dict(_unpacked(state["optimizer"]))
        torch.set_rng_state(state["rng"])


def _packed(value: Any) -> Any:
    """Floats as text: torch.load(weights_only=True) of torch 1.13 refuses them."""
    if isinstance(value, float):
        return (_FLOAT, value.hex())
    if isinstance(value, dict):
        return {key: _packed(each) for key, each in value.items()}
    return type(value)(_packed(each) for each in value) if type(value) in (list, tuple) else value


def _unpacked(value: Any) -> Any:
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str) and value[0] == _FLOAT:
        return float.fromhex(value[1])
    if isinstance(value, dict):
        return {key: _unpacked(each) for key, each in value.items()}
    return type(value)(_unpacked(each) for each in value) if type(value) in (list, tuple) else value


def _rank_and_world() -> Tuple[int, int]:
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def _barrier() -> None:
    if _rank_and_world()[1] > 1:
        import torch.distributed as dist

        dist.barrier()  # type: ignore[no-untyped-call]


def _name_of_save() -> str:
    """One for all ranks: the files of two saves of one step must not be taken for one checkpoint."""
    names = [uuid.uuid4().hex[:12]]
    if _rank_and_world()[1] > 1:
        import torch.distributed as dist

        dist.broadcast_object_list(names, src=0)  # type: ignore[no-untyped-call]
    return names[0]


def _remove_others(folder: str, prefix: str, kept: str) -> None:
    for name in os.listdir(folder):
        if name.startswith(prefix) and name != kept:
            os.remove(os.path.join(folder, name))


def _write(state: Dict[str, Any], path: str) -> None:
    """In one step: after a crash or a full disk the file is the old one, or not there."""
    import torch

    temporary = path + ".tmp"
    try:
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.remove(temporary)
        raise
    folder = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


__all__ = ["TrainerCore", "TrainerController", "Checkpoint", "StepResult"]
