# SPDX-License-Identifier: Apache-2.0
"""Two ranks train one draft with torch's DistributedDataParallel; then one rank goes on from their checkpoint.

    PYTHONPATH=build/python python3 examples/python/ddp.py out/ddp

Each rank reads its share of each window. The bytes of two samples are gone, so that the second rank has nothing to train in one
window: it takes part in the step all the same, since the sum of the gradients waits for it.
"""

import datetime
import os
import pathlib
import sys
import tempfile

import torch
import torch.distributed as dist

import draftflow
from small_llama import HIDDEN, Draft, SmallLlama, draft_loss, prompts

WINDOW, CHECKPOINT_EVERY = 4, 2


def prepare(out):
    """A target that knows nothing yet, and 32 captured samples; of two the bytes are lost before they are trained."""
    torch.manual_seed(0)
    target = SmallLlama()
    draftflow.save_feature_file(out / "target.safetensors", target.state_dict())
    input_ids, attention_mask = prompts(32)
    with draftflow.Store.create(str(out / "store")) as store, draftflow.Ledger.open(str(out / "ledger.sqlite3")) as ledger:
        with draftflow.capture(target, layers=[0, 2, 4], store=store, ledger=ledger) as captured:
            target(input_ids)
            refs = captured.put([f"run:{row:08d}" for row in range(32)], input_ids, attention_mask=attention_mask)
        ledger.close_prompts()
        for lost in (refs[5], refs[7]):  # of the window 4, 5, 6, 7 the second of two ranks has 5 and 7
            store.remove(lost)


def rank_main(rank, world, out, rendezvous, stop_after):
    torch.set_num_threads(1)
    patience = datetime.timedelta(seconds=60)  # with a rank that has died the others end, instead of waiting
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world, timeout=patience)
    store, ledger = draftflow.Store.open(str(out / "store")), draftflow.Ledger.open(str(out / "ledger.sqlite3"))
    target = SmallLlama().requires_grad_(False)
    target.load_state_dict(draftflow.load_feature_file(out / "target.safetensors"))
    torch.manual_seed(1)
    draft = torch.nn.parallel.DistributedDataParallel(Draft(target))
    optimizer = torch.optim.AdamW(draft.module.trainable(), lr=2e-3)
    stream = draftflow.Stream(store, ledger, group="draft", window=WINDOW)  # rank and world are torch.distributed's
    parts, file, step = {"draft": draft.module, "optimizer": optimizer, "stream": stream}, out / "checkpoint.pt", 0
    if file.exists():
        saved = torch.load(file)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        step = saved["stream"]["step"]
    for batch in stream:
        if batch.tensors:
            loss, positions, _ = draft_loss(draft, target.lm_head, batch)
        else:  # nothing here, but every parameter has a gradient, of zeros
            loss, positions = 0 * draft(torch.zeros(1, 1).long(), torch.zeros(1, 1, 3 * HIDDEN)).sum(), 0
        for lost, why in batch.failed.items():
            print(f"rank {rank}: {lost} has no weight: {why}", flush=True)
        sums = torch.tensor([float(loss), positions])
        dist.all_reduce(sums)
        optimizer.zero_grad()
        (loss * world / max(float(sums[1]), 1)).backward()  # DDP takes the mean over the ranks; the loss is that of the window
        optimizer.step()
        step += 1
        stream.trained(step)
        if rank == 0:
            print(f"step {step} of {world} ranks: loss {float(sums[0] / sums[1]):.3f} at {int(sums[1])} positions", flush=True)
        if step == stop_after:
            break
        if step % CHECKPOINT_EVERY == 0:
            if rank == 0:
                torch.save({name: part.state_dict() for name, part in parts.items()}, file.with_suffix(".tmp"))
                file.with_suffix(".tmp").replace(file)
            dist.barrier()  # nobody says so before the file is there
            stream.checkpointed(step)
    dist.destroy_process_group()


def launch(world, out, stop_after=None):
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(rank_main, (world, out, f"{folder}/rendezvous", stop_after), nprocs=world)


if __name__ == "__main__":
    out = pathlib.Path(sys.argv[1])
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # one host
    prepare(out)
    launch(2, out, stop_after=5)  # step 5 is in no checkpoint, as after a crash
    launch(1, out)
    with draftflow.Ledger.open(str(out / "ledger.sqlite3"), read_only=True) as ledger:
        trained = ledger.trained_ids("draft")
        lost = list(ledger.failed_refs("draft"))
        print(f"done: {len(trained)} samples trained, {len(set(trained))} different ones; lost: {lost}")
