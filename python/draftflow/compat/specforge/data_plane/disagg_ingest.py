# SPDX-License-Identifier: Apache-2.0
"""The producer of an offline set for other machines: feature files go into a store, and their refs into a manifest.

    refs = ingest_offline_features(SharedDirFeatureStore("/shared", "st"), "features", run_id="run")
    write_ref_manifest(refs, "/shared/refs.json")
"""

from __future__ import annotations

import dataclasses
import json
import os
import uuid
from typing import Any, Optional

from draftflow.compat.specforge.contracts import SCHEMA_VERSION, FeatureSpec, SampleRef, assert_no_tensors
from draftflow.compat.specforge.data_plane.feature_store import FeatureStore, check_keys, load_feature_file
from draftflow.compat.specforge.data_plane.offline_reader import EAGLE3_KEYS, list_feature_files
from draftflow.compat.specforge.limits import one_of


def ingest_offline_features(
    store: FeatureStore,
    hidden_states_path: Optional[str] = None,
    *,
    path: Optional[str] = None,
    run_id: str = "disagg",
    ttt_length: int = 7,
    max_len: int = 2048,
    limit: Optional[int] = None,
) -> list[SampleRef]:
    """Puts the EAGLE-3 features of the files under `hidden_states_path` (or `path`), the first `limit`; refs in the files' order.

    The n-th file is sample `{run_id}:{n:08d}`. KeyError for a file that lacks a feature, TypeError for a feature that is no
    tensor, MemoryError when the store is full; what was put before stays there.
    """
    folder = one_of("ingest_offline_features", hidden_states_path=hidden_states_path, path=path)
    refs = []
    for index, file in enumerate(list_feature_files(folder)[:limit]):
        tensors = load_feature_file(file)
        check_keys(file, tensors, EAGLE3_KEYS)
        metadata = {
            "run_id": run_id,
            "strategy": "eagle3",
            "format": "offline_eagle3",
            "target_repr": "hidden_state",
            "ttt_length": ttt_length,
            "max_len": max_len,
            "num_tokens": int(tensors["input_ids"].numel()),
            "file_index": index,
        }
        features = {key: tensors[key] for key in EAGLE3_KEYS}
        refs.append(store.put(features, sample_id=f"{run_id}:{index:08d}", metadata=metadata))
    return refs


def _ref_to_dict(ref: SampleRef) -> dict[str, Any]:
    return dataclasses.asdict(ref)


def _ref_from_dict(item: dict[str, Any]) -> SampleRef:
    specs = {name: _spec_of(spec) for name, spec in item["feature_specs"].items()}
    fields: dict[str, Any] = {**item, "feature_specs": specs}
    return SampleRef(**fields)


def write_ref_manifest(refs: list[SampleRef], path: str) -> None:
    """Writes `{"schema_version": 1, "refs": [...]}` and gives it its name in one step, making folders that are missing.

    TypeError for a ref with a tensor in it, ValueError for one with NaN or infinity; then, as after any failure, what was at
    `path` before is still there.
    """
    refs = list(refs)
    assert_no_tensors(refs)
    try:
        manifest = {"schema_version": SCHEMA_VERSION, "refs": [_ref_to_dict(ref) for ref in refs]}
        text = json.dumps(manifest, allow_nan=False)
    except ValueError as error:  # NaN and infinity, which JSON has no numbers for
        raise ValueError(f"{path} is not written: metadata of a ref is no JSON: {error}; leave that value out") from error
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    temporary = f"{path}.{uuid.uuid4().hex}.tmp"
    try:
        with open(temporary, "x", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        if os.path.lexists(temporary):
            os.remove(temporary)
        raise


def read_ref_manifest(path: str) -> list[SampleRef]:
    """The refs of a manifest. ValueError for a file that is none, or of a schema version that this program does not know."""
    with open(path, encoding="utf-8") as file:
        try:
            payload = json.load(file)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is no manifest: it is no JSON ({error})") from error
    if not isinstance(payload, dict) or not isinstance(payload.get("refs"), list):
        raise ValueError(f"{path} is no manifest: an object with a list 'refs' is needed")
    _check_version(path, "the manifest", payload.get("schema_version", SCHEMA_VERSION))
    return [_ref_of(path, index, item) for index, item in enumerate(payload["refs"])]


def _spec_of(item: Any) -> FeatureSpec:
    fields: dict[str, Any] = {**item, "shape": tuple(item["shape"])}
    return FeatureSpec(**fields)


def _ref_of(path: str, index: int, item: Any) -> SampleRef:
    try:
        ref = _ref_from_dict(item)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: ref {index} is no sample ref: {error}") from error
    _check_version(path, f"ref {index}, sample {ref.sample_id!r},", ref.schema_version)
    return ref


def _check_version(path: str, what: str, version: Any) -> None:
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{path}: {what} has schema_version {version!r}: this program knows {SCHEMA_VERSION}; a newer one wrote it"
        )


__all__ = ["ingest_offline_features", "write_ref_manifest", "read_ref_manifest"]
