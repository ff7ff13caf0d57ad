# SPDX-License-Identifier: Apache-2.0
"""draftflow: hidden states from a target model to those who train its draft, each sample exactly once.

    store = draftflow.Store.create("out/store")
    ledger = draftflow.Ledger.open("out/ledger.sqlite3")
    ref = store.put({"input_ids": ids, "hidden_state": hidden}, "run:00000000", run_id="run")
    ledger.commit_samples([ref])
    with store.get(ref) as tensors:
        tensors["hidden_state"]          # a torch tensor
"""

from typing import TYPE_CHECKING, Any

from draftflow._errors import (
    Conflict,
    Corrupt,
    Error,
    Exhausted,
    InDoubt,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from draftflow._core import (
    SCHEMA_VERSION,
    CheckpointMark,
    FeatureHandle,
    FeatureSpec,
    Fence,
    Ledger,
    PromptLease,
    PromptTask,
    RefLease,
    ResidentSample,
    Sample,
    SampleRef,
    Store,
    Tensor,
    Timeline,
    __version__,
    dp_partition,
    list_feature_files,
    load_feature_file,
    make_file_ref,
    pad_batch,
    read_ref_manifest,
    save_feature_file,
    write_ref_manifest,
)

if TYPE_CHECKING:
    from draftflow._capture import capture
    from draftflow._stream import Batch, Stream, sweep

_NEED_TORCH = {"Batch": "_stream", "Stream": "_stream", "sweep": "_stream", "capture": "_capture"}


def __getattr__(name: str) -> Any:
    """What needs torch is loaded when it is asked for."""
    if name in _NEED_TORCH:
        import importlib

        value = getattr(importlib.import_module("draftflow." + _NEED_TORCH[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'draftflow' has no attribute '{name}'")


__all__ = [
    "Batch",
    "CheckpointMark",
    "Conflict",
    "Corrupt",
    "Error",
    "Exhausted",
    "FeatureHandle",
    "FeatureSpec",
    "Fence",
    "InDoubt",
    "InvalidArgument",
    "Ledger",
    "NotFound",
    "PermissionDenied",
    "PromptLease",
    "PromptTask",
    "RefLease",
    "ResidentSample",
    "SCHEMA_VERSION",
    "Sample",
    "SampleRef",
    "Store",
    "Stream",
    "Tensor",
    "Timeline",
    "Unavailable",
    "__version__",
    "capture",
    "dp_partition",
    "list_feature_files",
    "load_feature_file",
    "make_file_ref",
    "pad_batch",
    "read_ref_manifest",
    "save_feature_file",
    "sweep",
    "write_ref_manifest",
]
