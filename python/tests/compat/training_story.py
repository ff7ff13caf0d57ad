# SPDX-License-Identifier: Apache-2.0
"""A draft, a strategy and a backend that are small enough to follow, for the tests of the trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict

import pytest

from draftflow.compat.specforge.contracts import TrainBatch
from draftflow.compat.specforge.training.backend import TrainingBackend
from draftflow.compat.specforge.training.strategy import DFlashTrainStrategy
from draftflow.compat.specforge.training.trainer import TrainerController, TrainerCore

torch = pytest.importorskip("torch")


class Draft(torch.nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(4, 4)
        self.dropout = torch.nn.Dropout(0.5)


class DFlash(torch.nn.Module):  # type: ignore[misc]
    """The shape of the reference's model: the draft inside, the target's frozen parts beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.draft_model = Draft()
        self.embed = torch.nn.Embedding(8, 4)
        self.seen: Dict[str, Any] = {}

    def forward(self, input_ids: Any, hidden_states: Any, loss_mask: Any) -> Tuple[Any, Any]:
        self.seen = {"input_ids": input_ids, "hidden_states": hidden_states, "loss_mask": loss_mask}
        out = self.draft_model.dropout(self.draft_model.fc(hidden_states))
        loss = ((out - 1.0) ** 2 * loss_mask[..., None]).mean()
        return loss, (out > 0).float().mean()


class Backend(TrainingBackend):
    name = "plain"

    def __init__(self, model: Any) -> None:
        self.model = model
        self.optimizer = torch.optim.AdamW(model.draft_model.parameters(), lr=0.05)
        self.backwards = self.steps = 0

    def prepare_model(self, model: Any) -> Any:
        return model

    def backward(self, loss: Any) -> None:
        self.backwards += 1
        loss.backward()

    def step(self) -> Any:
        self.steps += 1
        norm = torch.nn.utils.clip_grad_norm_(self.model.draft_model.parameters(), 0.5)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def state_dict(self) -> Dict[str, Any]:
        return dict(self.model.state_dict())

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        self.model.load_state_dict(state)


def make_batch(number: int, size: int = 1) -> TrainBatch:
    chance = torch.Generator().manual_seed(number)
    tensors = {
        "input_ids": torch.zeros(size, 3, dtype=torch.long),
        "hidden_states": torch.randn(size, 3, 4, generator=chance),
        "loss_mask": torch.ones(size, 3),
    }
    return TrainBatch([f"s{number}.{each}" for each in range(size)], "dflash", tensors)


def make_core(accumulation_steps: int = 1, seed: int = 5) -> TrainerCore:
    torch.manual_seed(seed)
    model = DFlash()
    return TrainerCore(DFlashTrainStrategy(model), Backend(model), accumulation_steps=accumulation_steps)


def make_trainer(folder: Path, accumulation_steps: int = 1, seed: int = 5, **more: Any) -> TrainerController:
    return TrainerController(make_core(accumulation_steps, seed), run_id="r", output_dir=str(folder), **more)


def weights(trainer_: Any) -> Dict[str, Any]:
    core = trainer_.core if isinstance(trainer_, TrainerController) else trainer_
    return {name: value.detach().clone() for name, value in core.strategy.trainable_module().state_dict().items()}


def same(one: Dict[str, Any], other: Dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# Backend
