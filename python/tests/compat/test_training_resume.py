# SPDX-License-Identifier: Apache-2.0
"""A step may take batches of two epochs, and a run may go on at any of them: each batch is seen once."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterator, List

import pytest
from training_story import Backend

from draftflow.compat.specforge.contracts import TrainBatch
from draftflow.compat.specforge.training.strategy import DraftTrainStrategy, StepOutput
from draftflow.compat.specforge.training.trainer import Checkpoint, TrainerController, TrainerCore

torch = pytest.importorskip("torch")


class Position:
    """A run whose draft counts how often it has seen each batch of each epoch: what a checkpoint knows of its samples."""

    def __init__(self, folder: Path, accumulation: int, batches: int, epochs: int, **more: Any) -> None:
        class Counts(torch.nn.Module):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.seen = torch.nn.Parameter(torch.zeros(epochs * batches))

        class Counting(DraftTrainStrategy):
            name, required_features = "counting", {"x"}

            def __init__(self) -> None:
                self.model = Counts()

            def trainable_module(self) -> Any:
                return self.model

            def forward_loss(self, batch: TrainBatch) -> StepOutput:
                return StepOutput((self.model.seen * -accumulation * batch.tensors["x"]).sum(), {})

        class Adding(Backend):
            def __init__(self, model: Any) -> None:
                self.model = model
                self.backwards = 0
                self.optimizer = torch.optim.SGD(model.parameters(), lr=1.0)

            def step(self) -> Any:
                self.optimizer.step()
                self.optimizer.zero_grad()

        class Data:
            epoch = 0

            def set_epoch(self, epoch: int) -> None:
                self.epoch = epoch

            def __iter__(self) -> Iterator[TrainBatch]:
                for number in range(self.epoch * batches, (self.epoch + 1) * batches):
                    yield TrainBatch([f"{number}"], "eagle3", {"x": torch.eye(epochs * batches)[number]})

        strategy = Counting()
        core = TrainerCore(strategy, Adding(strategy.model), accumulation_steps=accumulation)
        self.acked: List[str] = []
        self.run = TrainerController(
            core, run_id="r", output_dir=str(folder), num_epochs=epochs, ack_fn=lambda names, _: self.acked.extend(names), **more
        )
        self.data = Data()

    def seen(self) -> List[int]:
        return [round(each) for each in self.run.core.strategy.trainable_module().seen.tolist()]


@pytest.mark.parametrize("accumulation, batches, epochs", [(2, 3, 4), (3, 4, 3), (4, 3, 3), (4, 1, 9), (5, 2, 6), (2, 4, 2)])
def test_a_run_resumed_at_any_step_sees_each_batch_once(tmp_path: Path, accumulation: int, batches: int, epochs: int) -> None:
    whole = Position(tmp_path, accumulation, batches, epochs, save_interval=1)
    steps = batches * epochs // accumulation
    assert whole.run.fit(whole.data) == steps
    trained = steps * accumulation
    wanted = [1] * trained + [0] * (batches * epochs - trained)
    assert whole.seen() == wanted and whole.acked == [f"{number}" for number in range(trained)]
    for step in range(1, steps + 1):
        again = Position(tmp_path, accumulation, batches, epochs)
        assert again.run.resume(str(tmp_path / f"r-step{step}")) == step
        assert again.seen() == [1] * (step * accumulation) + [0] * (batches * epochs - step * accumulation)
        assert again.run.fit(again.data) == steps
        assert again.seen() == wanted and again.acked == [f"{number}" for number in range(step * accumulation, trained)]
        # The same object, which has trained beyond the checkpoint and has batches that wait for a step.
        again.acked.clear()
        assert again.run.resume(str(tmp_path / f"r-step{step}")) == step and again.run.fit(again.data) == steps
        assert again.seen() == wanted and again.acked == [f"{number}" for number in range(step * accumulation, trained)]


@pytest.mark.parametrize("stop", range(1, 13))
def test_a_checkpoint_between_two_steps_knows_which_batches_wait(tmp_path: Path, stop: int) -> None:
    # Four epochs of three batches, two a step: saved before the batch `stop`, also in an epoch without a step yet, or at the end.
    first = Position(tmp_path, 2, 3, 4)
    saved: List[Checkpoint] = []

    class Saving:
        set_epoch = first.data.set_epoch

        def __iter__(self) -> Iterator[TrainBatch]:
            for batch in first.data:
                if batch.sample_ids == [f"{stop}"]:
                    saved.append(first.run.save_checkpoint(first.run.global_step))
                yield batch

    first.run.fit(Saving())
    if stop == 12:
        saved.append(first.run.save_checkpoint(first.run.global_step))
    again = Position(tmp_path, 2, 3, 4)
    assert again.run.resume(saved[0]) == stop // 2
    assert again.run.fit(again.data) == 6 and again.seen() == [1] * 12
    assert again.acked == [f"{number}" for number in range(stop // 2 * 2, 12)]


def test_a_checkpoint_of_a_resumed_run_that_has_not_stepped_yet(tmp_path: Path) -> None:
    first, second, third = (Position(tmp_path / f"{number}", 2, 3, 4, save_interval=1) for number in range(3))
    first.run.fit(first.data)
    second.run.resume(str(tmp_path / "0" / "r-step2"))
    third.run.resume(second.run.save_checkpoint(2))
    assert third.run.fit(third.data) == 6
    assert third.seen() == [1] * 12 and third.acked == [f"{number}" for number in range(4, 12)]
