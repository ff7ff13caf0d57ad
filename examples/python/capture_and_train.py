# SPDX-License-Identifier: Apache-2.0
"""Captures hidden states of a small torch Llama and trains a draft on them; started again, it goes on where it was.

    export PYTHONPATH=build/python
    python3 examples/python/capture_and_train.py out/example 7     # stops after step 7 without a word, as if killed
    python3 examples/python/capture_and_train.py out/example

capture() and train() could run in two processes at once, on one store and one ledger.
"""

import pathlib
import sys

import torch

import draftflow
from small_llama import Draft, SmallLlama, draft_loss, prompts, train_target

SAMPLES, WINDOW, CHECKPOINT_EVERY = 99, 8, 3  # 99: the last 3 make no window, and are dropped by name


def make_target(file):
    torch.manual_seed(0)
    target = SmallLlama()
    if not file.exists():
        print(f"target: trained to a loss of {train_target(target):.2f}")
        draftflow.save_feature_file(file, target.state_dict())
    target.load_state_dict(draftflow.load_feature_file(file))
    return target.requires_grad_(False)


def capture(target, store, ledger):
    input_ids, attention_mask = prompts(SAMPLES)
    for rows in torch.arange(SAMPLES).split(9):
        names = [f"text:{row:08d}" for row in rows.tolist()]
        if not ledger.is_committed(names[0]):
            with draftflow.capture(target, layers=[0, 2, 4], store=store, ledger=ledger, run_id="text") as captured:
                target(input_ids[rows])
                captured.put(names, input_ids[rows], attention_mask=attention_mask[rows])
    ledger.close_prompts()  # no more will come, so that the stream has an end


def save(file, parts, step):
    torch.save({name: part.state_dict() for name, part in parts.items()}, file.with_suffix(".tmp"))
    file.with_suffix(".tmp").replace(file)
    print(f"checkpoint of step {step}: the bytes of {parts['stream'].checkpointed(step)} samples are freed")


def train(target, store, ledger, file, stop_after):
    draft = Draft(target)
    optimizer = torch.optim.AdamW(draft.trainable(), lr=2e-3)
    stream = draftflow.Stream(store, ledger, group="draft", window=WINDOW)
    parts = {"draft": draft, "optimizer": optimizer, "stream": stream}
    step = 0
    if file.exists():
        saved = torch.load(file)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        step = saved["stream"]["step"]
        print(f"resumed from the checkpoint of step {step}")
    for batch in stream:  # a window: the samples of one optimizer step
        if batch.tensors:  # else none of its samples could be read; the step counts all the same
            loss, positions, alike = draft_loss(draft, target.lm_head, batch)
            optimizer.zero_grad()
            (loss / positions).backward()
            optimizer.step()
            print(f"step {step + 1}: loss {loss / positions:.3f}, chooses as the target {alike / positions:.0%}")
        step += 1
        stream.trained(step)
        if step == stop_after:
            return
        if step % CHECKPOINT_EVERY == 0:
            save(file, parts, step)
    save(file, parts, step)
    print(f"done: {len(ledger.trained_ids('draft'))} samples trained, {store.health()['resident_samples']} in the store")


out = pathlib.Path(sys.argv[1])
store = draftflow.Store.create(str(out / "store"))
ledger = draftflow.Ledger.open(str(out / "ledger.sqlite3"))
target = make_target(out / "target.safetensors")
capture(target, store, ledger)
train(target, store, ledger, out / "checkpoint.pt", int(sys.argv[2]) if len(sys.argv) > 2 else None)
