# SPDX-License-Identifier: Apache-2.0
"""Refs and real data for the tests of the compatibility layer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, List, Optional

import pytest

from draftflow.compat.specforge.contracts import FeatureSpec, SampleRef


def make_ref(sample_id: str, task_id: Optional[str] = None, **metadata: Any) -> SampleRef:
    return SampleRef(
        sample_id=sample_id,
        run_id="run",
        source_task_id=task_id,
        feature_store_uri=f"mem://st/{sample_id}?generation=1",
        feature_keys={"hidden_state": f"{sample_id}/hidden_state"},
        feature_specs={"hidden_state": FeatureSpec("hidden_state", (1, 8, 4), "bfloat16", target_meta={"map": "v1"})},
        strategy="eagle3",
        num_tokens=8,
        estimated_bytes=64,
        metadata={"generation": 1, **metadata},
    )


def make_refs(count: int) -> List[SampleRef]:
    return [make_ref(f"s{number}") for number in range(count)]


def ids(refs: List[SampleRef]) -> List[str]:
    return [ref.sample_id for ref in refs]


def real_data(name: str) -> Path:
    """The file or folder of real data, or the test is skipped, saying what is missing."""
    beside = Path(__file__).resolve().parents[3].parent / "shared" / "data"
    path = Path(os.environ.get("DRAFTFLOW_TEST_DATA", beside)) / name
    if not path.exists():
        pytest.skip(f"real data {path} is not there (DRAFTFLOW_TEST_DATA names its folder)")
    return path
