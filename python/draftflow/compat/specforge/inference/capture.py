# SPDX-License-Identifier: Apache-2.0
"""What a capture must hold, checked before anything is stored."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import Any, Dict, FrozenSet, Iterable, Optional, Tuple

from draftflow.compat.specforge.contracts import TargetRepr


class CaptureMismatchError(AssertionError):
    """What was captured is not what was asked for; the message names the sample, what was found and what was wanted."""


@dataclass(frozen=True)
class CaptureConfig:
    """What is asked of a capture. Widths are last dimensions; ``aux_hidden_state_layer_ids`` counted from 0, in order.

    ``hidden_state`` holds the outputs of those layers side by side, ``target`` what ``target_repr`` says: the target's
    vocabulary ("logits"), the draft's ("pruned_logits", which needs ``vocab_map_version``) or the target's hidden state.
    """

    feature_names: FrozenSet[str]
    aux_hidden_state_layer_ids: Tuple[int, ...]
    target_repr: TargetRepr
    target_hidden_size: int
    target_vocab_size: Optional[int] = None
    draft_vocab_size: Optional[int] = None
    vocab_map_version: Optional[str] = None
    extra: Dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_strategy(
        cls,
        required_features: Iterable[str],
        aux_hidden_state_layer_ids: Iterable[int],
        *,
        target_repr: TargetRepr,
        target_hidden_size: int,
        target_vocab_size: Optional[int] = None,
        draft_vocab_size: Optional[int] = None,
        vocab_map_version: Optional[str] = None,
    ) -> "CaptureConfig":
        """From a strategy's ``required_features`` and the layers that its draft asks for."""
        return cls(
            feature_names=frozenset(required_features),
            aux_hidden_state_layer_ids=tuple(aux_hidden_state_layer_ids),
            target_repr=target_repr,
            target_hidden_size=int(target_hidden_size),
            target_vocab_size=target_vocab_size,
            draft_vocab_size=draft_vocab_size,
            vocab_map_version=vocab_map_version,
        )

    @property
    def expected_aux_width(self) -> int:
        return len(self.aux_hidden_state_layer_ids) * self.target_hidden_size

    def expected_target_dim(self) -> Optional[int]:
        """The width of ``target``, or None where it is not known."""
        widths = {
            "logits": self.target_vocab_size,
            "pruned_logits": self.draft_vocab_size,
            "hidden_state": self.target_hidden_size,
        }
        return widths.get(self.target_repr)


def verify_capture(
    tensors: Dict[str, Any],
    capture: CaptureConfig,
    *,
    sample_id: str,
    recorded_aux_layer_ids: Optional[Tuple[int, ...]] = None,
    aux_feature_name: str = "hidden_state",
    target_feature_name: str = "target",
) -> None:
    """CaptureMismatchError, naming the sample, unless ``tensors`` are what ``capture`` asks for.

    Checked in this order: every named feature is there and is a tensor; the layers that the engine recorded (None: unknown) are
    those asked for; the widths of the auxiliary states and of the target; the vocabulary map of pruned logits is known by
    version; no floating value is NaN or +infinity (-infinity is what masked logits are).
    """

    refuse = functools.partial(_mismatch, sample_id)
    missing = sorted(frozenset(capture.feature_names).difference(tensors))  # which may be given as a list
    if missing:
        raise refuse(f"features {missing} were not captured; got {sorted(tensors)}, wanted {sorted(capture.feature_names)}")
    for name, tensor in tensors.items():
        if not hasattr(tensor, "shape"):
            raise refuse(f"feature {name!r} is a {type(tensor).__name__}; a tensor is wanted")
    if recorded_aux_layer_ids is not None:
        wanted = tuple(capture.aux_hidden_state_layer_ids)
        if not isinstance(recorded_aux_layer_ids, Iterable):
            raise refuse(f"aux-layer ids are {recorded_aux_layer_ids!r}, wanted a list of them: {wanted}")
        recorded = tuple(recorded_aux_layer_ids)
        if recorded != wanted:
            raise refuse(f"aux-layer id mismatch: the engine captured {recorded}, wanted {wanted}; configure it for these")
    if aux_feature_name in tensors and capture.aux_hidden_state_layer_ids:
        width = _width(tensors[aux_feature_name])
        if width != capture.expected_aux_width:
            layers = f"{len(capture.aux_hidden_state_layer_ids)} layers x {capture.target_hidden_size}"
            raise refuse(f"aux width of {aux_feature_name!r} is {width}, wanted {capture.expected_aux_width} ({layers})")
    expected = capture.expected_target_dim()
    if target_feature_name in tensors and expected is not None:
        width = _width(tensors[target_feature_name])
        if width != expected:
            raise refuse(f"width of {target_feature_name!r} is {width}, wanted {expected} for {capture.target_repr!r}")
        if capture.target_repr == "pruned_logits" and capture.vocab_map_version is None:
            raise refuse("pruned_logits need a vocab_map_version, which names the map to the trainer; set it in the config")
    for name, tensor in tensors.items():
        if not _usable(tensor):
            raise refuse(
                f"feature {name!r} holds NaN or +infinity; finite values are wanted, or -infinity where logits are masked: leave"
                " this prompt out"
            )


def _mismatch(sample_id: str, what: str) -> CaptureMismatchError:
    return CaptureMismatchError(f"[{sample_id}] {what}")


def _width(tensor: Any) -> Optional[int]:
    return int(tensor.shape[-1]) if len(tensor.shape) else None


def _usable(tensor: Any) -> bool:
    # Tensors of torch only: it is the caller who has torch. Others have no is_floating_point.
    is_floating_point = getattr(tensor, "is_floating_point", None)
    if is_floating_point is None or not is_floating_point() or bool(tensor.isfinite().all()):
        return True
    return not bool((tensor.isnan() | (tensor == math.inf)).any())


__all__ = ["CaptureConfig", "CaptureMismatchError", "verify_capture"]
