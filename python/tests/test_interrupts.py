# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C ends whatever waits, and what was interrupted can be used again."""

import fcntl
import os
import signal
import threading

import pytest

import draftflow
from stage import LIMIT_S, Thread, fill, finish_fork, fork, name, sample

GIVE_UP_S = 10  # then the wait is ended from outside, and the test is red


def assert_interrupted(call, end_the_wait):
    """SIGINT while `call` waits: KeyboardInterrupt, and not only once the wait is over by itself."""
    over, returned = threading.Event(), threading.Event()

    def give_up():
        over.set()
        end_the_wait()

    interrupt = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
    patience = threading.Timer(GIVE_UP_S, give_up)
    interrupt.start()
    patience.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            call()
            returned.set()
            interrupt.join()
        assert not over.is_set(), "it was the end of the wait that let the signal through"
        assert not returned.is_set(), "the call did not wait"
    finally:
        interrupt.join()
        patience.cancel()
        patience.join()


def test_a_stream_that_waits(folder_store, ledger):
    fill(folder_store, ledger, 1, close=False)
    stream = draftflow.Stream(folder_store, ledger, group="g", window=2)
    end = lambda: fill(folder_store, ledger, 1, first=1, close=False)  # noqa: E731
    for _ in range(2):
        assert_interrupted(lambda: next(iter(stream)), end)
    batches = iter(stream)
    fill(folder_store, ledger, 1, first=1)
    assert [batch.sample_ids for batch in batches] == [[name(0), name(1)]]
    stream.trained(1)
    assert ledger.trained_ids("g") == [name(0), name(1)]


def test_a_loop_over_a_stream(folder_store, ledger):
    fill(folder_store, ledger, 2, close=False)
    stream = draftflow.Stream(folder_store, ledger, group="g", window=1)
    seen = []

    def loop():
        for batch in stream:
            seen.append(batch.sample_ids)
            stream.trained(len(seen))

    assert_interrupted(loop, ledger.close_prompts)
    assert seen == [[name(0)], [name(1)]]
    fill(folder_store, ledger, 1, first=2)
    loop()
    assert seen == [[name(0)], [name(1)], [name(2)]] and len(ledger.trained_ids("g")) == 3


def test_a_stream_over_workers(folder_store, ledger):
    from torch.utils.data import DataLoader

    fill(folder_store, ledger, 1, close=False)
    stream = draftflow.Stream(folder_store, ledger, group="g", window=2).open()
    loader = DataLoader(stream, batch_size=None, num_workers=1, multiprocessing_context="fork", timeout=LIMIT_S)
    assert_interrupted(lambda: next(iter(loader)), lambda: fill(folder_store, ledger, 1, first=1, close=False))
    fill(folder_store, ledger, 1, first=1)
    assert [batch.sample_ids for batch in stream] == [[name(0), name(1)]]


@pytest.mark.parametrize("verb", ["commit", "lease", "put"])
def test_a_ledger_whose_write_turn_another_holds(folder_store, ledger, verb):
    ref = folder_store.put(sample(0), name(0))
    ledger.ingest_prompts([draftflow.PromptTask(name(n), run_id="run", payload="p") for n in range(2)])
    (lease,), _ = ledger.lease_prompts("me")
    with open(ledger.url + ".lock", "r+b") as turn:
        fcntl.lockf(turn, fcntl.LOCK_EX, 1, 1)  # as another process does that is in a long transaction
        calls = {
            "commit": lambda: ledger.commit_samples([ref]),
            "lease": lambda: ledger.lease_prompts("me"),
            "put": lambda: folder_store.put(sample(1), name(0), fence=ledger.fence(lease, lease_ms=600_000)),
        }
        assert_interrupted(calls[verb], lambda: fcntl.lockf(turn, fcntl.LOCK_UN, 1, 1))
        fcntl.lockf(turn, fcntl.LOCK_UN, 1, 1)
    assert not ledger.is_committed(name(0)) and folder_store.health()["resident_samples"] == 1
    ledger.commit_sample(folder_store.put(sample(1), name(0), fence=ledger.fence(lease)), lease)
    assert ledger.check() == []


def test_a_ledger_that_another_thread_uses(folder_store, ledger):
    """The other one waits in its call, and this one for it."""
    refs = [folder_store.put(sample(number), name(number)) for number in range(2)]
    with open(ledger.url + ".lock", "r+b") as turn:
        fcntl.lockf(turn, fcntl.LOCK_EX, 1, 1)
        other = Thread(lambda: ledger.commit_samples(refs[:1]))
        other.join(0.2)
        assert_interrupted(lambda: ledger.commit_samples(refs[1:]), lambda: fcntl.lockf(turn, fcntl.LOCK_UN, 1, 1))
        fcntl.lockf(turn, fcntl.LOCK_UN, 1, 1)
    assert other.finish() == 1
    assert ledger.commit_samples(refs) == 1 and ledger.check() == []


def test_a_thread_that_is_not_the_main_one_is_not_interrupted(folder_store, ledger):
    fill(folder_store, ledger, 1, close=False)
    waiting = Thread(lambda: next(iter(draftflow.Stream(folder_store, ledger, group="g", window=2))))
    main_ends = threading.Event()
    assert_interrupted(lambda: main_ends.wait(LIMIT_S), main_ends.set)
    fill(folder_store, ledger, 1, first=1)
    assert waiting.finish().sample_ids == [name(0), name(1)]


def test_a_child_that_a_thread_has_forked_is_interrupted(folder_store, ledger):
    fill(folder_store, ledger, 1, close=False)

    def work():  # this thread is the child's main one
        stream = draftflow.Stream(folder_store, ledger, group="g", window=2)
        assert_interrupted(lambda: next(iter(stream)), lambda: fill(folder_store, ledger, 1, first=1, close=False))
        ref = folder_store.put(sample(1), name(1))
        with open(ledger.url + ".lock", "r+b") as turn:
            fcntl.lockf(turn, fcntl.LOCK_EX, 1, 1)
            assert_interrupted(lambda: ledger.commit_samples([ref]), lambda: fcntl.lockf(turn, fcntl.LOCK_UN, 1, 1))

    assert Thread(lambda: finish_fork(fork(work))).finish() == 0


def test_an_ingest_of_many_files(tmp_path):
    ledger = draftflow.Ledger.open("mem://")  # which never waits itself
    draftflow.save_feature_file(tmp_path / "one.ckpt", sample(0))
    many = [str(tmp_path / "one.ckpt")] * 40_000
    assert_interrupted(lambda: ledger.ingest_features(many), lambda: None)
    assert 0 < ledger.status()["committed"] < len(many)
    assert ledger.ingest_features(many[:100])["failed"] == {}
