# SPDX-License-Identifier: Apache-2.0
"""Where tensors are kept, and how refs become batches. A name is imported when first used: the queue needs no torch."""

from __future__ import annotations

import importlib
from typing import Any, List

_HOME = {
    "AuthPolicy": "disaggregated",
    "SharedDirFeatureStore": "disaggregated",
    "ingest_offline_features": "disagg_ingest",
    "read_ref_manifest": "disagg_ingest",
    "write_ref_manifest": "disagg_ingest",
    "FeatureDataLoader": "feature_dataloader",
    "FeatureStore": "feature_store",
    "LocalFeatureStore": "feature_store",
    "load_feature_file": "feature_store",
    "spec_from_tensor": "feature_store",
    "OfflineManifestReader": "offline_reader",
    "list_feature_files": "offline_reader",
    "SampleRefQueue": "sample_ref_queue",
    "dp_partition": "sample_ref_queue",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> List[str]:
    return sorted([*globals(), *__all__])
