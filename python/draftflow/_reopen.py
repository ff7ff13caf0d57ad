# SPDX-License-Identifier: Apache-2.0
"""How a process opens what another one has sent it: the other half of Store.__reduce__ and Ledger.__reduce__."""

from __future__ import annotations

from typing import Optional

from draftflow import _core


def store(url: str, secret_file: Optional[str], retain_on_release: bool, lease_ms: int) -> _core.Store:
    return _core.Store.open(url, secret_file=secret_file, retain_on_release=retain_on_release, lease_ms=lease_ms)


def ledger(url: str, read_only: bool) -> _core.Ledger:
    return _core.Ledger.open(url, read_only=read_only)
