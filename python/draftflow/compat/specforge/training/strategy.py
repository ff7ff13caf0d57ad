# SPDX-License-Identifier: Apache-2.0
"""How a batch becomes a loss: the one place of the trainer that knows a kind of draft."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Dict, Set

from draftflow.compat.specforge.contracts import TrainBatch

if TYPE_CHECKING:
    import torch

_DRAFT = "draft_model."


@dataclass(frozen=True)
class StepOutput:
    """``loss``: a scalar with its graph. ``metrics``: scalars, or lists of them, detached."""

    loss: "torch.Tensor"
    metrics: Dict[str, Any]


class DraftTrainStrategy(abc.ABC):
    """One kind of draft: what a batch must hold, its loss, and which of its weights a checkpoint keeps."""

    name: str
    required_features: Set[str]

    @abc.abstractmethod
    def trainable_module(self) -> "torch.nn.Module":
        """The module whose parameters are trained."""

    @abc.abstractmethod
    def forward_loss(self, batch: TrainBatch) -> StepOutput: ...

    def validate_batch(self, batch: TrainBatch) -> None:
        """ValueError, naming them, if the batch lacks required features."""
        missing = sorted(set(self.required_features).difference(batch.tensors))
        if missing:
            raise ValueError(
                f"a batch of {self.name} lacks {missing}; it has {sorted(batch.tensors)}, "
                f"wanted {sorted(self.required_features)}: capture these, or train with the strategy that the samples are for"
            )

    def checkpoint_state_filter(self, state_dict: Dict[str, Any]) -> Dict[str, Any]:
        """The draft's weights of a module's whole state, under the names that the draft knows them by."""
        return state_dict

    def load_checkpoint_state(self, state: Dict[str, Any]) -> None:
        """Loads what ``checkpoint_state_filter`` kept; what it left out stays. ValueError for names that the draft lacks."""
        module = self.trainable_module()
        modules = [module, *(getattr(module, part) for part in ("draft_model",) if hasattr(module, part))]
        for candidate in modules:
            if state.keys() <= candidate.state_dict().keys():
                candidate.load_state_dict(state, strict=False)
                return
        unknown = sorted(state.keys() - modules[-1].state_dict().keys())
        raise ValueError(f"the draft has no weights {unknown}: the checkpoint is of another model; resume with its own")


class DFlashTrainStrategy(DraftTrainStrategy):
    """DFlash: ``dflash_model(input_ids [B,S], hidden_states [B,S,n*H], loss_mask [B,S])`` returns (loss, accuracy), scalars."""

    name = "dflash"
    required_features = {"input_ids", "hidden_states", "loss_mask"}

    def __init__(self, dflash_model: "torch.nn.Module") -> None:
        self.dflash_model = dflash_model

    def trainable_module(self) -> "torch.nn.Module":
        return self.dflash_model

    def forward_loss(self, batch: TrainBatch) -> StepOutput:
        self.validate_batch(batch)
        device = next(self.dflash_model.parameters()).device
        inputs = {name: batch.tensors[name].to(device) for name in sorted(self.required_features)}
        loss, accuracy = self.dflash_model(**inputs)
        return StepOutput(loss=loss, metrics={"accuracy": accuracy.detach()})

    def checkpoint_state_filter(self, state_dict: Dict[str, Any]) -> Dict[str, Any]:
        # The embedding and the head are the target's, frozen, beside the draft.
        return {name.partition(_DRAFT)[2]: value for name, value in state_dict.items() if _DRAFT in name}


__all__ = ["DraftTrainStrategy", "DFlashTrainStrategy", "StepOutput"]
