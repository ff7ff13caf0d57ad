# SPDX-License-Identifier: Apache-2.0
"""Producers: what a capture must hold, and the worker that turns prompts into committed samples. Imports no torch."""

from __future__ import annotations

from draftflow.compat.specforge.inference.capture import CaptureConfig, CaptureMismatchError, verify_capture
from draftflow.compat.specforge.inference.rollout_worker import RolloutWorker

__all__ = ["RolloutWorker", "CaptureConfig", "CaptureMismatchError", "verify_capture"]
