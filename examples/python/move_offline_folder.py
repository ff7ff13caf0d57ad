# SPDX-License-Identifier: Apache-2.0
"""What SpecForge left on disk, trained with draftflow: feature files, and a store's folder with its SQLite ledger.

    export PYTHONPATH=build/python
    python3 examples/python/move_offline_folder.py out/moved                            # makes such files first
    python3 examples/python/move_offline_folder.py out/moved FEATURES STORE/st LEDGER.sqlite3

Nothing of the user's is converted or changed. On the command line, the first and the last way begin with

    draftflow ingest FEATURES --ledger out/moved/offline.sqlite3
    draftflow ledger import out/moved/taken-over.sqlite3 --from LEDGER.sqlite3
"""

import pathlib
import sqlite3
import sys

import torch

import draftflow

WINDOW = 4


def in_place(features, ledger):
    """A ref for each file where it lies; an offline set is read in a seeded order, for as many epochs as wanted."""
    for file, why in ledger.ingest_features(features)["failed"].items():  # those that are there are skipped: harmless again
        print(f"left out {file}: {why}")
    return draftflow.Stream(draftflow.Store.open("file://"), ledger, window=WINDOW, epochs=2, seed=1)


def into_store(features, store, ledger):
    """Copies, checksummed, in a store that several hosts may share; a stream, whose bytes go once they are trained."""
    for index, file in enumerate(draftflow.list_feature_files(features)):
        sample_id = f"offline:{index:08d}"
        if not ledger.is_committed(sample_id):
            ledger.commit_samples([store.put(draftflow.load_feature_file(file), sample_id, run_id="offline")])
    ledger.close_prompts()
    return draftflow.Stream(store, ledger, window=WINDOW)


def taken_over(folder, reference_ledger, ledger):
    """SpecForge's own store and ledger: what its trainer has not finished. Its files stay; whoever made them frees them."""
    if not ledger.all_committed_ids():
        ledger.import_(reference_ledger)
    return draftflow.Stream(draftflow.Store.open(str(folder)), ledger, window=WINDOW)


def train(name, stream):
    """Where a training step would be."""
    for step, batch in enumerate(stream, start=1):
        for sample_id, why in batch.failed.items():
            print(f"{name}: {sample_id} has no weight: {why}")
        shape = list(batch["hidden_state"].shape) if batch.tensors else None
        print(f"{name}: step {step} {' '.join(batch.sample_ids)} hidden_state {shape}")
        stream.trained(step)
    stream.checkpointed(step)


def make_files(out):
    """Files as SpecForge's offline capture and its store write them."""
    samples = []
    for index in range(10):
        tokens = 16 + index
        samples.append({
            "input_ids": torch.arange(tokens),
            "loss_mask": torch.ones(tokens, dtype=torch.int64),
            "hidden_state": torch.randn(1, tokens, 8).bfloat16(),
            "aux_hidden_state": torch.randn(1, tokens, 24).bfloat16(),
        })
    features, folder, ledger = out / "features", out / "st", out / "specforge.sqlite3"
    for path in (features, folder):
        path.mkdir(parents=True)
    books = sqlite3.connect(ledger)
    books.execute("CREATE TABLE committed(sample_id TEXT PRIMARY KEY, ref_json TEXT NOT NULL)")
    books.execute("CREATE TABLE acked(sample_id TEXT PRIMARY KEY)")
    books.execute("CREATE TABLE marker(k TEXT PRIMARY KEY, v TEXT)")
    for index, sample in enumerate(samples):
        torch.save(sample, features / f"{index:04d}.ckpt")
        sample_id = f"run:{index:08d}"
        torch.save(sample, folder / f"{sample_id}.g1.ckpt")
        ref = draftflow.SampleRef(
            sample_id,
            run_id="run",
            feature_store_uri=f"disagg://st/{sample_id}",
            feature_specs=[
                draftflow.FeatureSpec(name, list(value.shape), str(value.dtype).split(".")[1]) for name, value in sample.items()
            ],
            num_tokens=len(sample["input_ids"]),
            metadata={"generation": 1},
        )
        books.execute("INSERT INTO committed VALUES (?, ?)", (sample_id, ref.to_json()))
    books.executemany("INSERT INTO acked VALUES (?)", [("run:00000000",), ("run:00000001",)])
    books.executemany("INSERT INTO marker VALUES (?, ?)", [("global_step", "1"), ("optimizer_durable", "true")])
    books.commit()
    books.close()
    return features, folder, ledger


if __name__ == "__main__":
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True)
    features, folder, reference = map(pathlib.Path, sys.argv[2:5]) if len(sys.argv) > 2 else make_files(out)
    train("in place", in_place(features, draftflow.Ledger.open(str(out / "offline.sqlite3"))))
    store, ledger = draftflow.Store.create(str(out / "store")), draftflow.Ledger.open(str(out / "stream.sqlite3"))
    train("into a store", into_store(features, store, ledger))
    train("taken over", taken_over(folder, reference, draftflow.Ledger.open(str(out / "taken-over.sqlite3"))))
    left = len(draftflow.list_feature_files(features)), len(list(folder.iterdir()))
    print(f"{left[0]} feature files and {left[1]} of the store are where they were")
