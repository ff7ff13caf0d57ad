# SPDX-License-Identifier: Apache-2.0
"""What a trainer asks of whoever owns the module, the gradients and the optimizer."""

from __future__ import annotations

import abc
import logging
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Dict, Optional

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

# Field of ParallelConfig -> the function of specforge.distributed that has it.
_GETTERS = {
    "dp_group": "get_dp_group",
    "draft_dp_group": "get_draft_dp_group",
    "tp_group": "get_tp_group",
    "sp_ulysses_group": "get_sp_ulysses_group",
    "sp_ring_group": "get_sp_ring_group",
    "draft_sp_group": "get_draft_sp_group",
    "device_mesh": "get_device_mesh",
    "tp_device_mesh": "get_tp_device_mesh",
}


def _bfloat16() -> "torch.dtype":
    import torch

    return torch.bfloat16


@dataclass
class ParallelConfig:
    """The parallel layout and the handles of its groups and meshes (None: not distributed), carried for a backend to read."""

    world_size: int = 1
    tp_size: int = 1
    sp_ulysses_size: int = 1
    sp_ring_size: int = 1
    sharding_strategy: str = "SHARD_GRAD_OP"
    param_dtype: "torch.dtype" = field(default_factory=_bfloat16)
    fsdp_process_group: Any = None
    dp_group: Any = None
    draft_dp_group: Any = None
    tp_group: Any = None
    sp_ulysses_group: Any = None
    sp_ring_group: Any = None
    draft_sp_group: Any = None
    device_mesh: Any = None
    tp_device_mesh: Any = None
    extra: Dict[str, Any] = field(default_factory=dict)

    @property
    def sp_size(self) -> int:
        """Ranks that share one sequence."""
        return self.sp_ulysses_size * self.sp_ring_size

    @classmethod
    def from_distributed(
        cls,
        *,
        tp_size: int = 1,
        sp_ulysses_size: int = 1,
        sp_ring_size: int = 1,
        sharding_strategy: str = "SHARD_GRAD_OP",
        param_dtype: Optional["torch.dtype"] = None,
    ) -> "ParallelConfig":
        """With the world of torch.distributed, if it is initialized, and the groups that ``specforge.distributed`` made.

        ``param_dtype`` None is bfloat16.
        """
        import torch.distributed as dist

        config = cls(
            tp_size=tp_size, sp_ulysses_size=sp_ulysses_size, sp_ring_size=sp_ring_size, sharding_strategy=sharding_strategy
        )
        if param_dtype is not None:
            config.param_dtype = param_dtype
        if not (dist.is_available() and dist.is_initialized()):
            return config
        config.world_size = dist.get_world_size()
        config.fsdp_process_group = dist.group.WORLD
        # Whoever made groups there has imported it; to import it here would make it a dependency.
        theirs = sys.modules.get("specforge.distributed")
        for name, getter in _GETTERS.items():
            ask = getattr(theirs, getter, None)
            if ask is not None:
                try:
                    setattr(config, name, ask())
                except Exception as error:
                    logger.warning("ParallelConfig.%s stays None: specforge.distributed.%s() failed: %s", name, getter, error)
        return config


class _OnTheClass:
    """``ParallelConfig.param_dtype``, the default. An instance's own comes before it."""

    def __get__(self, config: Any, kind: Any) -> "torch.dtype":
        return _bfloat16()


ParallelConfig.param_dtype = _OnTheClass()  # type: ignore[assignment]


class TrainingBackend(abc.ABC):
    """Owns the wrapped module and the optimizer. A trainer saves the state of ``optimizer``, if it has one so called."""

    name: str

    @abc.abstractmethod
    def prepare_model(self, model: "torch.nn.Module") -> "torch.nn.Module":
        """The module that the strategy must run: the model itself, or wrapped."""

    @abc.abstractmethod
    def backward(self, loss: "torch.Tensor") -> None:
        """Adds the gradients of ``loss``, a scalar."""

    @abc.abstractmethod
    def step(self) -> Optional["torch.Tensor"]:
        """Takes the optimizer's step, clears the gradients, and returns their norm before clipping, over all ranks, or None."""

    @abc.abstractmethod
    def state_dict(self) -> Dict[str, Any]:
        """The module's whole state, by name. A collective where the module is sharded: every rank calls it."""

    @abc.abstractmethod
    def load_state_dict(self, state: Dict[str, Any]) -> None: ...


__all__ = ["ParallelConfig", "TrainingBackend"]
