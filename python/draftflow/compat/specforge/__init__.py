# SPDX-License-Identifier: Apache-2.0
"""SpecForge's ``specforge.runtime`` under its own names and with its habits.

``from specforge.runtime.X import Y`` becomes ``from draftflow.compat.specforge.X import Y``; nothing else changes. The control
plane needs the standard library only; torch is imported where a tensor is made, stored or trained on.
"""

from __future__ import annotations

from draftflow.compat.specforge.contracts import (
    SCHEMA_VERSION,
    FeatureHandle,
    FeatureSpec,
    PromptTask,
    SampleRef,
    TrainBatch,
    assert_no_tensors,
)

__all__ = ["SCHEMA_VERSION", "PromptTask", "FeatureSpec", "SampleRef", "FeatureHandle", "TrainBatch", "assert_no_tensors"]
