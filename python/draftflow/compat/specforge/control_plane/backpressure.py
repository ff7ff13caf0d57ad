# SPDX-License-Identifier: Apache-2.0
"""When producers pause: resident bytes between two marks, and caps on what is granted at a time."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any, Dict, Optional, Protocol

from draftflow.compat.specforge.limits import check_count, check_limit


class CapacityReporter(Protocol):
    """Any object whose ``health()`` is a dict with ``resident_bytes``, as a feature store's is."""

    def health(self) -> Dict[str, Any]: ...


@dataclass
class BackpressureConfig:
    """None switches a limit off. Without a low mark producers resume at the high one. ValueError if low is above high."""

    high_watermark_bytes: Optional[int] = None
    low_watermark_bytes: Optional[int] = None
    max_inflight_prompts_per_worker: Optional[int] = None
    max_train_lease: Optional[int] = None  # refs of one lease

    def __post_init__(self) -> None:
        check_limit("high_watermark_bytes", self.high_watermark_bytes, "bytes")
        check_limit("low_watermark_bytes", self.low_watermark_bytes, "bytes")
        for name in ("max_inflight_prompts_per_worker", "max_train_lease"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        high, low = self.high_watermark_bytes, self.low_watermark_bytes
        if high is None:
            return
        if low is None:
            self.low_watermark_bytes = high
        elif low > high:
            raise ValueError(f"low_watermark_bytes is {low}, high_watermark_bytes {high}: low must be at most high; lower it")


class BackpressureController:
    """Pauses at the high mark, resumes at the low one, and counts who starved meanwhile. Owns nothing. Thread-safe."""

    def __init__(self, config: Optional[BackpressureConfig] = None, capacity: Optional[CapacityReporter] = None) -> None:
        self.config = config if config is not None else BackpressureConfig()
        self.capacity = capacity
        self._lock = threading.Lock()
        self._paused = False
        self._counts = {"rollout_starved": 0, "trainer_starved": 0, "pause_transitions": 0, "resume_transitions": 0}

    def should_pause_prompts(self) -> bool:
        """Asks the capacity, and whether prompts must not be leased now."""
        high, low = self.config.high_watermark_bytes, self.config.low_watermark_bytes
        if high is None or self.capacity is None:
            return False
        resident = int(self.capacity.health().get("resident_bytes", 0))  # not under the lock: it may take the store's
        with self._lock:
            if not self._paused and resident >= high:
                self._paused = True
                self._counts["pause_transitions"] += 1
            elif self._paused and resident <= (high if low is None else low):
                self._paused = False
                self._counts["resume_transitions"] += 1
            return self._paused

    def cap_prompt_grant(self, worker_inflight: int, requested: int) -> int:
        """How many of the ``requested`` prompts a worker may have that holds ``worker_inflight`` already."""
        cap = self.config.max_inflight_prompts_per_worker
        return requested if cap is None else max(0, min(requested, cap - worker_inflight))

    def cap_train_lease(self, requested: int) -> int:
        cap = self.config.max_train_lease
        return requested if cap is None else min(requested, cap)

    def note_rollout_starved(self) -> None:
        """A worker asked for prompts while they are paused."""
        self._count("rollout_starved")

    def note_trainer_starved(self) -> None:
        """A trainer asked for refs and got none."""
        self._count("trainer_starved")

    def snapshot(self) -> Dict[str, Any]:
        """``paused``, the counts and, with a capacity, what its health says of bytes and ages (seconds)."""
        with self._lock:
            snapshot: Dict[str, Any] = {"paused": self._paused, **self._counts}
        if self.capacity is not None:
            health = self.capacity.health()
            resident, high = int(health.get("resident_bytes", 0)), self.config.high_watermark_bytes
            snapshot["resident_bytes"] = resident
            snapshot["max_resident_bytes"] = health.get("max_resident_bytes")
            snapshot["free_to_high_watermark_bytes"] = None if high is None else max(0, high - resident)
            snapshot["avg_feature_age_s"] = health.get("avg_age_s")
            snapshot["oldest_feature_age_s"] = health.get("oldest_age_s")
        return snapshot

    def _count(self, what: str) -> None:
        with self._lock:
            self._counts[what] += 1


__all__ = ["CapacityReporter", "BackpressureConfig", "BackpressureController"]
