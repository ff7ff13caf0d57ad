# SPDX-License-Identifier: Apache-2.0
"""The records that processes exchange, and the check that none of them carries a tensor.

Records are plain values that nothing validates when they are built; those who take them in do. Only ``TrainBatch`` holds
tensors. Field names and their order are those of the JSON (docs/formats/records.md).
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Dict, Iterable, List, Literal, Optional, Set, Tuple

if TYPE_CHECKING:
    import torch

SCHEMA_VERSION = 1  # of a SampleRef's fields

RunMode = Literal["online", "offline"]
DeploymentMode = Literal["local_colocated", "dataflow_colocated", "disaggregated"]
DraftStrategyName = Literal["eagle3", "dflash", "domino", "dspark", "peagle"]
# What the feature `target` holds: [.., target vocabulary], [.., draft vocabulary], or the target's last hidden state.
TargetRepr = Literal["logits", "pruned_logits", "hidden_state"]


@dataclass(frozen=True)
class PromptTask:
    """One prompt waiting to be captured. ``max_length`` in tokens; ``attempt`` counts the failures before this lease."""

    task_id: str
    run_id: str
    source_id: str
    payload: Dict[str, Any]
    max_length: int
    chat_template: Optional[str] = None
    loss_mask_policy: Dict[str, Any] = field(default_factory=dict)
    target_model_version: str = "unknown"
    draft_weight_version: Optional[str] = None
    attempt: int = 0
    metadata: Dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FeatureSpec:
    """Name, shape and dtype ("bfloat16", without "torch.") of one tensor in a store."""

    name: str
    shape: Tuple[int, ...]
    dtype: str
    device_hint: Optional[str] = None
    required: bool = True
    target_repr: Optional[TargetRepr] = None
    target_meta: Dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SampleRef:
    """Points at the tensors of one training sample in one feature store. ``estimated_bytes`` are those of the tensors."""

    sample_id: str
    run_id: str
    source_task_id: Optional[str]
    feature_store_uri: str
    feature_keys: Dict[str, str]
    feature_specs: Dict[str, FeatureSpec]
    strategy: DraftStrategyName
    schema_version: int = SCHEMA_VERSION
    target_model_version: str = "unknown"
    draft_weight_version: Optional[str] = None
    tokenizer_version: str = "unknown"
    num_tokens: int = 0
    estimated_bytes: int = 0
    metadata: Dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FeatureHandle:
    """What a store's ``get`` gives beside the tensors and ``release`` takes back: which lease on which bytes."""

    sample_id: str
    generation: int
    lease_token: str


@dataclass
class TrainBatch:
    """Collated tensors of some samples, on the trainer's side only. ``metadata``: ``target_repr``, ``ttt_length``."""

    sample_ids: List[str]
    strategy: DraftStrategyName
    tensors: Dict[str, "torch.Tensor"]
    metadata: Dict[str, Any] = field(default_factory=dict)


_PLAIN = (str, bytes, bool, int, float, type(None))
_SEQUENCES = (list, tuple, set, frozenset, deque)
_CODE = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType)


@functools.lru_cache(maxsize=256)
def _of_torch_or_numpy(kind: type) -> bool:
    # By the modules of the class and of its bases, so that neither is imported for the question.
    return any(base.__module__.partition(".")[0] in ("torch", "numpy") for base in kind.__mro__)


def _is_tensor(value: Any) -> bool:
    if _of_torch_or_numpy(type(value)):  # type: ignore[arg-type]
        return True
    return all(hasattr(value, name) for name in ("dtype", "shape", "device"))


def _refuse_tensor(value: Any, path: str) -> None:
    if _is_tensor(value):
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise TypeError(
            f"{path} holds a {kind}: records are metadata only; put tensors into the feature store and plain Python values here"
        )


def _attributes(value: Any) -> Iterable[Tuple[str, Any]]:
    attributes = getattr(value, "__dict__", None)
    if attributes is not None:
        return list(attributes.items())
    if dataclasses.is_dataclass(value):  # with slots
        return [(each.name, getattr(value, each.name, None)) for each in dataclasses.fields(value)]
    return ()


def _walk(value: Any, path: str, seen: Set[int]) -> None:
    kind = type(value)
    if kind in _PLAIN or isinstance(value, _CODE):
        return
    if kind is not dict and kind is not list:
        _refuse_tensor(value, path)
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Mapping):
        for key, member in value.items():
            if type(key) not in _PLAIN:
                _walk(key, f"{path}: a key", seen)
            if type(member) not in _PLAIN:
                _walk(member, f"{path}[{key!r}]", seen)
    elif isinstance(value, _SEQUENCES):
        for index, member in enumerate(value):
            if type(member) not in _PLAIN:
                _walk(member, f"{path}[{index}]", seen)
    else:
        for name, member in _attributes(value):
            if type(member) not in _PLAIN:
                _walk(member, f"{path}.{name}", seen)


def assert_no_tensors(obj: Any, *, _path: str = "<root>") -> None:
    """TypeError if a torch or numpy object is anywhere in ``obj``, naming the path to it: ``<root>.metadata['scores'][3]``.

    Looks into dataclasses, mappings, sequences, sets and the attributes of other objects; cycles are fine.
    """
    _walk(obj, _path, set())


__all__ = [
    "SCHEMA_VERSION",
    "RunMode",
    "DeploymentMode",
    "DraftStrategyName",
    "TargetRepr",
    "PromptTask",
    "FeatureSpec",
    "SampleRef",
    "FeatureHandle",
    "TrainBatch",
    "assert_no_tensors",
]
