# SPDX-License-Identifier: Apache-2.0
"""One of two ranks that save a checkpoint together and resume it: ``checkpoint_rank.py FOLDER RANK``."""

from __future__ import annotations

import datetime
import os
import sys

import torch
from test_training import Backend, DFlash, make_batch

from draftflow.compat.specforge.training.strategy import DFlashTrainStrategy
from draftflow.compat.specforge.training.trainer import TrainerController, TrainerCore


def main(folder: str, rank: int) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60)
    )
    torch.manual_seed(rank)
    model = DFlash()
    backend = Backend(model)
    path = os.path.join(folder, "out", "r-step2", "training_state.pt")

    def durable(names: list, step: int) -> None:
        # Each rank hears of its own samples, and only when the file of rank 0 is there.
        assert names == [f"s{rank}.0", f"s{rank + 2}.0"], names
        assert os.path.exists(path), path

    core = TrainerCore(DFlashTrainStrategy(model), backend)
    run = TrainerController(core, run_id="r", output_dir=os.path.join(folder, "out"), save_interval=2, durable_fn=durable)
    run.fit([make_batch(rank), make_batch(rank + 2)])
    moments = backend.optimizer.state_dict()["state"][0]["exp_avg"].clone()
    run.save_checkpoint(2)
    run.fit([make_batch(9)])
    run.resume(os.path.dirname(path))
    assert torch.equal(backend.optimizer.state_dict()["state"][0]["exp_avg"], moments), "the optimizer of another rank"
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
