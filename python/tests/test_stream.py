# SPDX-License-Identifier: Apache-2.0
"""Stream: a ledger's samples as batches, each in the weights exactly once, whatever dies."""

import os
import signal
import time

import pytest
import torch

import draftflow
from stage import LIMIT_S, fill, finish_fork, fork, name, sample


def train(stream, weights, *, save=None, stop_after=None):
    """Trains on each window: the "weights" are the ids they have seen. save(stream, weights) writes a checkpoint."""
    seen, steps = [], 0
    for batch in stream:
        seen += [ident for ident in batch.sample_ids if ident not in batch.failed]
        if batch.last:
            weights += seen
            seen = []
            stream.trained(stream.state_dict()["step"] + 1)
            steps += 1
            if save is not None:
                save(stream, weights)
            if steps == stop_after:
                return


def test_a_batch_is_padded_and_says_what_it_is(store, ledger):
    fill(store, ledger, 5)
    batches = list(draftflow.Stream(store, ledger, group="g", window=5, batch_size=3))
    assert [(b.window, b.index, b.last, len(b)) for b in batches] == [(0, 0, False, 3), (0, 1, True, 2)]
    batch = batches[0]
    lengths = [sample(number)["input_ids"].numel() for number in range(3)]
    assert batch.lengths == lengths and batch.failed == {}
    assert batch["hidden_state"].dtype == torch.bfloat16 and batch["hidden_state"].shape == (3, max(lengths), 8)
    for row, length in enumerate(lengths):
        for key, wanted in sample(row).items():
            found = batch[key][row]
            assert torch.equal(found[:length], wanted.squeeze(0) if wanted.dim() == 3 else wanted)
            assert not found[length:].any()
        assert batch.mask()[row].tolist() == [at < length for at in range(max(lengths))]
    assert "input_ids" in batch and "logits" not in batch
    moved = batch.to("cpu")
    assert moved.sample_ids == batch.sample_ids and torch.equal(moved["input_ids"], batch["input_ids"])


def test_batches_outlive_the_stream(folder_store, ledger):
    fill(folder_store, ledger, 12)
    stream = draftflow.Stream(folder_store, ledger, group="g", window=1)
    kept = [batch["input_ids"] for batch in stream]
    del stream
    folder_store.close()
    ledger.close()
    assert [tensor[0, 0].item() for tensor in kept] == list(range(12))


def exchange(folder, rank, batch):
    """The ids of both ranks' shares of the window, by files."""
    mine = folder / f"share.{rank}.{batch.window}"
    torch.save(batch.sample_ids, f"{mine}.new")
    os.replace(f"{mine}.new", mine)
    other = folder / f"share.{1 - rank}.{batch.window}"
    for _ in range(LIMIT_S * 50):
        if other.exists():
            break
        time.sleep(0.01)
    return [torch.load(folder / f"share.{r}.{batch.window}") for r in (0, 1)]


def test_exactly_once_over_kills_and_another_width(folder_store, ledger, tmp_path):
    fill(folder_store, ledger, 48)
    checkpoint = tmp_path / "checkpoint.pt"

    def save(stream, weights):
        torch.save({"weights": list(weights), "stream": stream.state_dict()}, str(checkpoint) + ".new")
        os.replace(str(checkpoint) + ".new", checkpoint)
        stream.checkpointed(stream.state_dict()["step"])

    def start(rank=0, world=1, launch=None, kill_at=None, every=2):
        stream = draftflow.Stream(
            folder_store, ledger, group="g", window=4, batch_size=1, rank=rank, world=world, launch=launch, timeout_s=LIMIT_S
        )
        weights = []
        if checkpoint.exists():
            state = torch.load(checkpoint)
            weights = state["weights"]
            stream.load_state_dict(state["stream"])

        def maybe_save(stream, weights):
            step = stream.state_dict()["step"]
            if kill_at is not None and step >= kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            if step % every == 0:
                save(stream, weights)

        train(stream, weights, save=maybe_save)
        if rank == 0:
            save(stream, weights)

    for kill_at in (1, 3, 3, 6):  # before a checkpoint, after one, again at once, between two
        assert finish_fork(fork(lambda kill_at=kill_at: start(kill_at=kill_at))) == -signal.SIGKILL
    trained = torch.load(checkpoint)["weights"] if checkpoint.exists() else []
    assert 0 < len(trained) < 48

    # Two ranks for some steps: each sees its half, and rank 0's checkpoint holds what both have trained.
    def two(rank):
        stream = draftflow.Stream(
            folder_store, ledger, group="g", window=4, rank=rank, world=2, launch="two", timeout_s=LIMIT_S
        )
        state = torch.load(checkpoint)
        stream.load_state_dict(state["stream"])
        weights = state["weights"]
        done = iter(stream)
        for _ in range(2):
            batch = next(done)
            assert batch.last and len(batch) == 2
            shares = exchange(tmp_path, rank, batch)
            weights += [shares[i % 2][i // 2] for i in range(4)]
            stream.trained(stream.state_dict()["step"] + 1)
        if rank == 0:
            save(stream, weights)
        done.close()

    ranks = [fork(lambda rank=rank: two(rank)) for rank in (0, 1)]
    assert [finish_fork(rank) for rank in ranks] == [0, 0]
    middle = torch.load(checkpoint)["weights"]
    assert len(middle) == len(trained) + 8

    assert finish_fork(fork(lambda: start(kill_at=9))) == -signal.SIGKILL
    assert finish_fork(fork(start)) == 0
    weights = torch.load(checkpoint)["weights"]
    assert weights == ledger.trained_ids("g")
    assert sorted(weights) == [name(number) for number in range(48)]
    group = ledger.status()["groups"]["g"]
    assert (group["durable"], group["trained"], group["failed"], group["dropped"]) == (48, 0, 0, 0)
    assert ledger.check() == [] and folder_store.health()["resident_samples"] == 0


def test_another_launch_takes_over(store, ledger):
    fill(store, ledger, 4)
    first = draftflow.Stream(store, ledger, group="g", window=2).open()
    draftflow.Stream(store, ledger, group="g", window=2).open()
    with pytest.raises(draftflow.Conflict):
        first.trained(1)
    with pytest.raises(draftflow.Conflict):
        next(iter(first))


def test_a_rank_without_a_sample_gets_an_empty_batch(store, ledger):
    """An epoch's tail is dropped; within a window each rank has its share, and one whose samples failed has no tensors."""
    refs = fill(store, ledger, 4)
    store.remove(refs[1])
    ranks = [draftflow.Stream(store, ledger, group="g", window=2, rank=rank, world=2, launch="a") for rank in (0, 1)]
    batches = [list(rank) for rank in ranks]
    assert [[b.last for b in rank] for rank in batches] == [[True, True], [True, True]]
    empty = batches[1][0]
    assert empty.tensors == {} and empty.sample_ids == [name(1)] and empty.lengths == [0] and list(empty.failed) == [name(1)]
    assert empty.mask().shape == (1, 0) and empty.mask().dtype == torch.bool
    assert empty.empty and not batches[0][0].empty
    assert draftflow.Batch({}, [], [], {}, 0, 0, True).mask().shape == (0, 0)
    assert empty.to("cpu").tensors == {}


def test_failed_samples_are_masked_and_reported(folder_store, ledger):
    refs = fill(folder_store, ledger, 8)
    folder_store.remove(refs[2])
    for path in [found.path for found in folder_store.resident() if found.sample_id == name(5)]:
        os.truncate(path, 100)
    bad = sample(8)
    bad["hidden_state"][0, 1, 3] = float("nan")
    stream = draftflow.Stream(folder_store, ledger, group="g", window=4, batch_size=4)
    weights, failed = [], {}
    for batch in stream:
        failed.update(batch.failed)
        for row, ident in enumerate(batch.sample_ids):
            if ident in batch.failed:
                assert batch.lengths[row] == 0 and not batch["loss_mask"][row].any() and not batch["hidden_state"][row].any()
            else:
                weights.append(ident)
        stream.trained(stream.state_dict()["step"] + 1)
    assert sorted(failed) == [name(2), name(5)] and "NotFound" not in failed[name(2)]
    assert ledger.failed_refs("g") == failed
    assert weights == ledger.trained_ids("g") == [name(n) for n in (0, 1, 3, 4, 6, 7)]
    group = ledger.status()["groups"]["g"]
    assert (group["failed"], group["trained"]) == (2, 6)
    assert bad["hidden_state"].isnan().any()


def test_what_is_not_finite_is_masked(store, ledger):
    samples = [sample(number) for number in range(2)]
    samples[1]["hidden_state"][0, 1, 3] = float("nan")
    ledger.commit_samples([store.put(tensors, name(number)) for number, tensors in enumerate(samples)])
    ledger.close_prompts()
    for check in ("eagle3", "finite"):
        (batch,) = draftflow.Stream(store, ledger, group=check, window=2, check=check)
        assert list(batch.failed) == [name(1)] and "hidden_state" in batch.failed[name(1)]


def test_an_offline_set_is_read_in_seeded_epochs(store, ledger):
    ledger.declare("kind", "offline")
    fill(store, ledger, 7)

    def ids(stream):
        return [batch.sample_ids for batch in stream]

    whole = ids(draftflow.Stream(store, ledger, window=2, epochs=2, seed=5))
    assert len(whole) == 6 and whole[:3] != whole[3:]
    for epoch in (whole[:3], whole[3:]):
        assert len({ident for batch in epoch for ident in batch}) == 6
    assert ids(draftflow.Stream(store, ledger, window=2, epochs=2, seed=5)) == whole
    assert ids(draftflow.Stream(store, ledger, window=2, epochs=2, seed=6)) != whole
    shares = [ids(draftflow.Stream(store, ledger, window=2, epochs=2, seed=5, rank=rank, world=2)) for rank in (0, 1)]
    assert [first + second for first, second in zip(*shares)] == whole

    stream = draftflow.Stream(store, ledger, window=2, epochs=2, seed=5)
    batches = iter(stream)
    for step in (1, 2, 3, 4):
        next(batches)
        stream.trained(step)
    state = stream.state_dict()
    assert stream.checkpointed(4) == 0
    resumed = draftflow.Stream(store, ledger, window=2, epochs=2, seed=5)
    resumed.load_state_dict(state)
    assert ids(resumed) == whole[4:] and resumed.state_dict()["step"] == 4
    for other, differs in (({"seed": 6, "window": 2}, "seed 5.* 6"), ({"seed": 5, "window": 1}, "window 2.* 1")):
        wrong = draftflow.Stream(store, ledger, epochs=2, **other)
        wrong.load_state_dict(state)
        with pytest.raises(draftflow.InvalidArgument, match=differs):
            wrong.open()
    with pytest.raises(draftflow.InvalidArgument, match="window is None for 1 ranks"):
        draftflow.Stream(store, ledger).open()
    with pytest.raises(draftflow.InvalidArgument, match="window is 3 for 2 ranks"):
        draftflow.Stream(store, ledger, window=3, rank=0, world=2).open()


def test_a_stream_is_replayed_in_passes(store, ledger):
    fill(store, ledger, 4)
    stream = draftflow.Stream(store, ledger, group="g", window=2, passes=2)
    weights = []
    train(stream, weights)
    assert weights == [name(n) for n in (0, 1, 2, 3)] * 2 == ledger.trained_ids("g")


def test_bytes_go_when_a_checkpoint_has_them(store, ledger):
    fill(store, ledger, 4)
    stream = draftflow.Stream(store, ledger, group="g", window=2)
    batches = iter(stream)
    next(batches)
    stream.trained(1)
    assert draftflow.sweep(store, ledger) == 0
    assert stream.checkpointed(1) == 2 and store.health()["resident_samples"] == 2
    assert ledger.status()["freed"] == 2 and draftflow.sweep(store, ledger) == 0
    old = stream.state_dict()
    next(batches)
    stream.trained(2)
    stream.checkpointed(2)
    resumed = draftflow.Stream(store, ledger, group="g", window=2)
    resumed.load_state_dict(old)
    with pytest.raises(draftflow.InvalidArgument, match="2"):
        resumed.open()
    lossy = draftflow.Stream(store, ledger, group="g", window=2, accept_loss=True)
    lossy.load_state_dict(old)
    assert list(lossy.open()) == [] and ledger.status()["groups"]["g"]["dropped"] == 2


def test_nothing_in_time_is_a_timeout_and_the_stream_goes_on(store, ledger):
    fill(store, ledger, 1, close=False)
    stream = draftflow.Stream(store, ledger, group="g", window=2, timeout_s=0.2)
    with pytest.raises(TimeoutError, match="no batch of group 'g' came for 0.2 s: is a producer still at work?"):
        next(iter(stream))
    assert stream.wait_seconds > 0
    fill(store, ledger, 1, first=1)
    stream = draftflow.Stream(store, ledger, group="g", window=2, timeout_s=LIMIT_S)
    assert [batch.sample_ids for batch in stream] == [[name(0), name(1)]]
    assert list(stream) != []  # not said to be trained: it comes again


def test_misuse_is_told(store, ledger):
    make = lambda **options: draftflow.Stream(store, ledger, **{"group": "g", **options})  # noqa: E731
    with pytest.raises(draftflow.InvalidArgument, match="rank is 1 and world None: both are given, or neither"):
        make(rank=1)
    with pytest.raises(draftflow.InvalidArgument, match="rank is None and world 2: both are given, or neither"):
        make(world=2)
    with pytest.raises(draftflow.InvalidArgument, match="rank is 2 of 2: 0 to 1 is allowed"):
        make(rank=2, world=2)
    with pytest.raises(draftflow.InvalidArgument, match="2 ranks without torch.distributed: pass launch="):
        make(window=2, rank=0, world=2).open()
    with pytest.raises(draftflow.Error, match="'?unheard'?"):
        make(group="unheard").open()
    with pytest.raises(draftflow.InvalidArgument, match="window of 2, not 4"):
        make(window=4).open()
    with pytest.raises(draftflow.InvalidArgument, match="3"):
        make(group="h", window=4, rank=0, world=3, launch="a").open()
    with pytest.raises(draftflow.InvalidArgument, match="check is 'none': 'eagle3' and 'finite' are allowed"):
        list(make(window=2, check="none"))
    with pytest.raises(draftflow.InvalidArgument, match="batch"):
        list(make(window=2, batch_size=-1))
    for call in (lambda s: s.trained(1), lambda s: s.checkpointed(1), lambda s: s.state_dict()):
        with pytest.raises(draftflow.InvalidArgument, match="the stream is not open: iterate it, or call open"):
            call(make(window=2))
    stream = make(window=2).open()
    with pytest.raises(draftflow.InvalidArgument, match="the stream is open already: load_state_dict comes before open"):
        stream.load_state_dict({})
    assert stream.open() is stream


def test_a_checkpoint_of_another_ledger_is_refused(store, ledger, tmp_path):
    fill(store, ledger, 2)
    state = draftflow.Stream(store, ledger, group="g", window=2).open().state_dict()
    with draftflow.Ledger.open(str(tmp_path / "other.sqlite3")) as other:
        fill(store, other, 2)
        stream = draftflow.Stream(store, other, group="g", window=2)
        stream.load_state_dict(state)
        with pytest.raises(draftflow.Conflict):
            stream.open()


def test_a_width_of_the_target_is_checked(store, ledger):
    fill(store, ledger, 2)
    with pytest.raises(draftflow.InvalidArgument, match="8"):
        list(draftflow.Stream(store, ledger, group="g", window=2, hidden_size=16))
    (batch,) = draftflow.Stream(store, ledger, group="v", window=2, vocab_size=4)
    assert list(batch.failed) == [name(1)] and draftflow.Stream.__doc__


def test_options_of_the_other_kind_are_refused(store, ledger):
    fill(store, ledger, 4)
    with pytest.raises(draftflow.InvalidArgument, match="epochs is 2, .* passes= replays"):
        draftflow.Stream(store, ledger, group="g", window=2, epochs=2).open()
    assert "g" not in ledger.status()["groups"]
    ledger.declare("kind", "offline")
    with pytest.raises(draftflow.InvalidArgument, match="passes is 2, .* offline set: .* epochs="):
        draftflow.Stream(store, ledger, window=2, passes=2).open()
    with pytest.raises(draftflow.InvalidArgument, match="max_window_tokens is 9, .* offline set"):
        draftflow.Stream(store, ledger, window=2, max_window_tokens=9).open()


def test_a_window_is_capped_in_tokens(store, ledger):
    refs = [store.put(sample(number), name(number)) for number in range(5)]
    ledger.commit_samples(refs)
    ledger.close_prompts()
    cap = refs[0].num_tokens + refs[1].num_tokens
    windows = [
        batch.sample_ids for batch in draftflow.Stream(store, ledger, group="g", window=4, max_window_tokens=cap, tail="carry")
    ]
    tokens = {ref.sample_id: ref.num_tokens for ref in refs}
    assert windows and [ident for window in windows for ident in window] == [name(n) for n in range(len(sum(windows, [])))]
    assert all(len(window) == 1 or sum(tokens[ident] for ident in window) <= cap for window in windows)
    assert windows[0] == [name(0), name(1)]


def test_another_store_than_the_ledgers_is_refused_before_anything_changes(store, ledger, tmp_path):
    fill(store, ledger, 4)
    ledger.declare_group("g", window=2)
    other = draftflow.Store.create(tmp_path / "other")
    before = ledger.status()
    for refused in (
        draftflow.Stream(other, ledger, group="h", window=2).open,
        lambda: list(draftflow.Stream(other, ledger, group="g")),
        lambda: draftflow.sweep(other, ledger),
    ):
        with pytest.raises(draftflow.Conflict, match="has its samples in store .*, and .* is store other/.*: name the store"):
            refused()
    assert ledger.status() == before and set(before["groups"]) == {"g"}
    assert [batch.failed for batch in draftflow.Stream(store, ledger, group="g")] == [{}, {}]


def test_a_sweep_of_another_store_hands_nothing_out(store, ledger, tmp_path):
    refs = fill(store, ledger, 2)
    stream = draftflow.Stream(store, ledger, group="g", window=2)
    for _ in stream:
        stream.trained(1)
    ledger.checkpointed("g", 1, 1)
    other = draftflow.Store.create(tmp_path / "other")
    with pytest.raises(draftflow.Conflict, match="name the store"):
        draftflow.sweep(other, ledger)
    assert ledger.status()["freed"] == 0 and [store.remove(ref) for ref in refs] == [True, True]
    assert draftflow.sweep(store, ledger) == 2
    assert draftflow.sweep(other, ledger) == 0  # nothing is anywhere


def test_samples_that_come_after_the_stream_tell_their_store_too(store, ledger, tmp_path):
    other = draftflow.Store.create(tmp_path / "other")
    stream = draftflow.Stream(other, ledger, group="g", window=2, timeout_s=LIMIT_S).open()
    fill(store, ledger, 2)
    with pytest.raises(draftflow.Conflict, match="name the store"):
        next(iter(stream))
    with pytest.raises(draftflow.Conflict, match="name the store"):
        stream.checkpointed(1)
    assert ledger.failed_refs("g") == {}
    assert [batch.failed for batch in draftflow.Stream(store, ledger, group="g")] == [{}]


def test_files_in_place_are_not_looked_for_in_a_store(store, ledger, tmp_path):
    for number in range(2):
        draftflow.save_feature_file(tmp_path / f"{number}.ckpt", sample(number))
    ledger.declare("kind", "offline")
    ledger.commit_samples([draftflow.make_file_ref(tmp_path / f"{number}.ckpt", name(number)) for number in range(2)])
    with pytest.raises(draftflow.Conflict, match="has its samples in files where they lie .*file:// reads"):
        draftflow.Stream(store, ledger, window=2).open()
    (batch,) = draftflow.Stream(draftflow.Store.open("file://"), ledger, window=2)
    assert not batch.failed


def test_files_in_place_are_not_read_through_a_folder(folder_store, ledger, tmp_path):
    file = tmp_path / "a.safetensors"
    draftflow.save_feature_file(file, {"x": torch.ones(3)})
    ledger.commit_samples([draftflow.make_file_ref(file, "a")])
    ledger.close_prompts()
    with pytest.raises(draftflow.Conflict, match=f"samples in files where they lie .file://{file} is one.*is store store/"):
        list(draftflow.Stream(folder_store, ledger, window=1, check="finite"))
    assert ledger.status()["groups"] == {}
    with draftflow.Store.open("file://") as files:
        stream = draftflow.Stream(files, ledger, window=1, check="finite")
        assert [batch["x"].tolist() for batch in stream] == [[[1.0, 1.0, 1.0]]]
