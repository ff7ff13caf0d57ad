# SPDX-License-Identifier: Apache-2.0
"""What the tests of the data plane share."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import torch

from draftflow.compat.specforge.contracts import SampleRef


class Clock:
    """A clock that stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def sample(seed: int = 0, tokens: int = 8) -> dict[str, torch.Tensor]:
    """The four features of an EAGLE-3 sample, small: 8 tokens of width 4."""
    random = torch.Generator().manual_seed(seed)
    return {
        "input_ids": torch.arange(tokens) + seed,
        "loss_mask": torch.ones(tokens, dtype=torch.int64),
        "hidden_state": torch.randn(1, tokens, 4, generator=random).to(torch.bfloat16),
        "aux_hidden_state": torch.randn(1, tokens, 12, generator=random).to(torch.bfloat16),
    }


def write_files(folder: pathlib.Path, count: int, tokens: int = 8) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        torch.save(sample(i, tokens), folder / f"{i:03d}.ckpt")
    return str(folder)


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape, name
        assert torch.equal(found[name], tensor), name


def file_ref(sample_id: str = "s0", **others: object) -> SampleRef:
    """A ref to no file at all, for what is refused before anything is read."""
    fields = {
        "run_id": "run",
        "source_task_id": None,
        "feature_store_uri": f"file:///nowhere/{sample_id}.ckpt",
        "feature_keys": {"x": "x"},
        "feature_specs": {},
        "strategy": "eagle3",
    }
    return SampleRef(sample_id=sample_id, **{**fields, **others})


def in_another_process(code: str, *args: str) -> str:
    """Runs Python code in a process of its own, which sees `args` as sys.argv[1:], and returns what it printed."""
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
