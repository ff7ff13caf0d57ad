# SPDX-License-Identifier: Apache-2.0
"""Metadata only: prompts, refs, leases, acks and when to pause. Imports neither torch nor numpy."""

from __future__ import annotations

from draftflow.compat.specforge.control_plane.backpressure import BackpressureConfig, BackpressureController
from draftflow.compat.specforge.control_plane.controller import DataFlowController, TrainLease
from draftflow.compat.specforge.control_plane.metadata_store import (
    InMemoryMetadataStore,
    MetadataStore,
    SQLiteMetadataStore,
    sample_ref_from_json,
    sample_ref_to_json,
)

__all__ = [
    "DataFlowController",
    "TrainLease",
    "MetadataStore",
    "InMemoryMetadataStore",
    "SQLiteMetadataStore",
    "sample_ref_to_json",
    "sample_ref_from_json",
    "BackpressureConfig",
    "BackpressureController",
]
