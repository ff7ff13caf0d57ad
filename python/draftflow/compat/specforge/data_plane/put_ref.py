# SPDX-License-Identifier: Apache-2.0
"""The ref of a put, from the tensors and the metadata that it was given."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Optional

from draftflow.compat.specforge.contracts import SCHEMA_VERSION, FeatureSpec, SampleRef, assert_no_tensors

if TYPE_CHECKING:
    import torch

_PLAIN = frozenset((str, bytes, bool, int, float, type(None)))  # the types themselves: a subclass may be numpy's


def make_ref(sample_id: str, uri: str, tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> SampleRef:
    """The ref of a put; its metadata, a dict of its own, is what `metadata` holds beside num_tokens, copied deeply.

    ValueError without tensors; TypeError for a value that is none, and for a tensor in `metadata`, naming the path to it.
    """
    fields, target = begin_ref(sample_id, uri, metadata)
    check_tensors(tensors, sample_id)
    specs: dict[str, FeatureSpec] = {}
    fields["feature_specs"] = specs
    keys = fields["feature_keys"] = {}
    fields["estimated_bytes"] = 0
    for name, tensor in tensors.items():
        if not isinstance(name, str):
            raise TypeError(f"{name!r} is a {type(name).__name__}: the names of features are strings")
        plain = str(name)
        specs[plain] = describe(plain, tuple(tensor.shape), str(tensor.dtype).replace("torch.", ""))
        keys[plain] = f"{sample_id}/{plain}"
        fields["estimated_bytes"] += tensor.numel() * tensor.element_size()
    if target is not None:
        target.stamp(specs)
    made: SampleRef = record(SampleRef, fields)
    return made


def begin_ref(sample_id: str, uri: str, metadata: dict[str, Any]) -> tuple[dict[str, Any], Optional[_Target]]:
    """The fields of a put's ref that its tensors do not say, and what they say of the target. TypeError as make_ref."""
    # In one function, with as few calls as can be: between two puts the processor forgets most of this code, and fetching it
    # again costs more than running it.
    fields = _BLANK.copy()
    others = {}
    if metadata.__class__ is not dict:
        _check_mapping(metadata, sample_id)
    for key, value in metadata.items():
        convert = _CONVERSIONS.get(key)
        if convert is not None:
            fields[key] = convert(value)
        if key != "num_tokens":
            others[key] = value if type(value) in _PLAIN and type(key) is str else _own(value, key, sample_id)
    fields["sample_id"] = sample_id
    fields["feature_store_uri"] = uri
    fields["metadata"] = others
    return fields, _target_of(others) if "target_repr" in others else None


def _as_it_is(value: Any) -> Any:
    return value


# A SampleRef's fields, in their order, where a put's metadata says nothing; and how what it says becomes one of them.
_BLANK: dict[str, Any] = {
    **dict.fromkeys(each.name for each in dataclasses.fields(SampleRef)),
    "run_id": "unknown",
    "strategy": "eagle3",
    "schema_version": SCHEMA_VERSION,
    "target_model_version": "unknown",
    "tokenizer_version": "unknown",
    "num_tokens": 0,
}
_CONVERSIONS: dict[Any, Callable[[Any], Any]] = {
    "run_id": str,
    "source_task_id": _as_it_is,
    "strategy": _as_it_is,
    "schema_version": int,
    "target_model_version": str,
    "draft_weight_version": _as_it_is,
    "tokenizer_version": str,
    "num_tokens": int,
}


def _check_mapping(metadata: Any, sample_id: str) -> None:
    if not isinstance(metadata, Mapping):
        raise TypeError(f"put of sample {sample_id!r}: metadata is a {type(metadata).__name__}: a dict is needed")


def _own(value: Any, key: Any, sample_id: str) -> Any:
    """A deep copy of a value in a put's metadata. An object that cannot be copied is kept as it is."""
    if type(value) is list and type(key) is str and _PLAIN.issuperset(map(type, value)):  # as layer ids are
        return value.copy()
    assert_no_tensors({key: value}, _path=f"put of sample {sample_id!r}: metadata")
    try:
        return copy.deepcopy(value)
    except Exception:
        return value


class _Target(NamedTuple):
    """What a put's metadata says of the feature `name`."""

    name: Any
    target_repr: Any
    version: Any
    make: Callable[..., FeatureSpec]

    def stamp(self, specs: dict[str, FeatureSpec]) -> None:
        """Says it in the feature's spec, if there is one. It never fails: the bytes are stored."""
        spec = specs.get(self.name)
        if spec is not None:
            specs[self.name] = self.make(spec.name, spec.shape, spec.dtype, self.target_repr, self.version)


def _target_of(metadata: dict[str, Any]) -> Optional[_Target]:
    target_repr = metadata["target_repr"]
    if not target_repr:
        return None
    name, version = metadata.get("target_feature_name", "target"), metadata.get("vocab_map_version") or None
    hash(name)  # what can be no name of a feature fails before anything is stored
    plain = type(target_repr) is str and type(version) in _PLAIN
    return _Target(name, target_repr, version, _known_target_spec if plain else _target_spec)


def _target_spec(name: str, shape: tuple[int, ...], dtype: str, target_repr: Any, version: Any) -> FeatureSpec:
    meta = _ReadOnlyDict.of({"vocab_map_version": version} if version else {})
    return FeatureSpec(name=name, shape=shape, dtype=dtype, target_repr=target_repr, target_meta=meta)


_known_target_spec = functools.lru_cache(maxsize=4096, typed=True)(_target_spec)


def check_tensors(tensors: dict[str, torch.Tensor], sample_id: str) -> None:
    """ValueError for no tensors; TypeError, naming it, for a value that is none."""
    import torch

    if not isinstance(tensors, Mapping):
        raise TypeError(f"put of sample {sample_id!r}: a {type(tensors).__name__} was given: a dict of tensors is needed")
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(
                f"put of sample {sample_id!r}: {name!r} is a {type(tensor).__name__}: every feature must be a torch.Tensor"
            )
    if not tensors:
        raise ValueError(f"put of sample {sample_id!r}: no tensors were given: at least one is needed")


def record(kind: type, fields: dict[str, Any]) -> Any:
    """What `kind(**fields)` makes of all its fields. A frozen dataclass sets them one by one: most of what a put costs here."""
    made: Any = object.__new__(kind)
    object.__setattr__(made, "__dict__", fields)
    return made


class _ReadOnlyDict(dict):  # type: ignore[type-arg]
    """The `target_meta` of specs that refs share. Copies of it, by whatever means, are plain dicts."""

    __slots__ = ()

    @classmethod
    def of(cls, values: dict[str, Any]) -> dict[str, Any]:
        made: dict[str, Any] = dict.__new__(cls)
        dict.update(made, values)
        return made

    def __new__(cls, *args: Any) -> Any:  # as dataclasses.asdict calls it
        return dict(*args)

    def __reduce__(self) -> Any:
        return dict, (dict(self),)

    def _refuse(self, *args: Any, **others: Any) -> Any:
        raise TypeError("other refs have this target_meta, too: take dataclasses.replace(spec, target_meta={...}) instead")

    __setitem__ = __delitem__ = clear = pop = popitem = setdefault = update = __ior__ = _refuse  # type: ignore[assignment]


@functools.lru_cache(maxsize=8192)
def describe(name: str, shape: tuple[int, ...], dtype: str) -> FeatureSpec:
    """The spec that all refs to such a tensor share."""
    return FeatureSpec(name=name, shape=shape, dtype=dtype, target_meta=_ReadOnlyDict.of({}))


__all__ = ["begin_ref", "check_tensors", "describe", "make_ref", "record"]
