# SPDX-License-Identifier: Apache-2.0
"""Forks with everything open: a child works through what it attaches itself, and the parent goes on."""

import multiprocessing
import os
import pickle

import pytest
import torch
from torch.utils.data import DataLoader

import draftflow
from stage import LIMIT_S, fill, finish_fork, fork, in_forked_child, name, run_script, sample


def test_parent_and_children_go_on_and_share_what_is_committed(folder_store, ledger):
    fill(folder_store, ledger, 2, close=False)
    kept = folder_store.get(ledger.get_committed(name(0)))

    def work(child):
        assert ledger.is_committed(name(1))
        assert folder_store.read(ledger.get_committed(name(1)))["input_ids"][0] == 1
        kept.release()  # the parent's: nothing happens
        for number in range(100 * child, 100 * child + 10):
            ledger.commit_samples([folder_store.put(sample(number), name(number))])
        assert ledger.check() == []

    children = [fork(lambda child=child: work(child)) for child in (1, 2, 3)]
    fill(folder_store, ledger, 10, first=10, close=False)
    assert [finish_fork(child) for child in children] == [0, 0, 0]
    fill(folder_store, ledger, 10, first=20, close=False)
    assert len(ledger.all_committed_ids()) == 2 + 3 * 10 + 20 == len(set(ledger.all_committed_ids()))
    assert ledger.check() == []
    assert folder_store.health()["live_leases"] == 1
    for committed in ledger.all_committed_ids():
        found = folder_store.read(ledger.get_committed(committed))
        assert name(int(found["input_ids"][0])) == committed
        assert torch.equal(found["hidden_state"], sample(int(found["input_ids"][0]))["hidden_state"])


def test_a_ledger_keeps_what_a_child_commits_after_its_parent_has_closed_it(folder_store, ledger):
    fill(folder_store, ledger, 1, close=False)
    opened, closed = os.pipe(), os.pipe()

    def work():
        ledger.commit_samples([folder_store.put(sample(1), name(1))])
        os.write(opened[1], b"x")
        assert os.read(closed[0], 1) == b"x"
        ledger.commit_samples([folder_store.put(sample(2), name(2))])

    child = fork(work)
    assert os.read(opened[0], 1) == b"x"
    ledger.close()
    draftflow.Ledger.open(ledger.url).close()
    os.write(closed[1], b"x")
    assert finish_fork(child) == 0
    for end in (*opened, *closed):
        os.close(end)
    with draftflow.Ledger.open(ledger.url) as again:
        assert again.all_committed_ids() == [name(0), name(1), name(2)]
        assert again.check() == []


def test_generations_never_collide(folder_store):
    folder_store.put(sample(0), "one")
    reader, writer = os.pipe()

    def work(child):
        for i in range(30):
            ref = folder_store.put({"who": torch.tensor([child, i])}, "one")
            os.write(writer, f"{ref.generation}\n".encode())

    children = [fork(lambda child=child: work(child)) for child in (1, 2)]
    mine = [folder_store.put({"who": torch.tensor([0, i])}, "one").generation for i in range(30)]
    assert [finish_fork(child) for child in children] == [0, 0]
    os.close(writer)
    with os.fdopen(reader) as lines:
        theirs = [int(line) for line in lines]
    assert len(set(mine + theirs)) == 90
    assert folder_store.health()["resident_samples"] == 1
    assert folder_store.find("one").generation == max(mine + theirs)


def child_of_multiprocessing(store, ledger, numbers, answers):
    for number in numbers:
        ledger.commit_samples([store.put(sample(number), name(number))])
    answers.put((os.getpid(), ledger.id, store.read(ledger.get_committed(name(numbers[0])))["input_ids"].tolist()))


def test_multiprocessing_by_fork(folder_store, ledger):
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    given = [(folder_store, ledger, range(10 * i, 10 * i + 5), answers) for i in (1, 2)]
    children = [context.Process(target=child_of_multiprocessing, args=arguments) for arguments in given]
    for child in children:
        child.start()
    for child in children:
        child.join(LIMIT_S)
        assert child.exitcode == 0
    told = [answers.get() for _ in children]
    assert {ident for _, ident, _ in told} == {ledger.id}
    assert len(ledger.all_committed_ids()) == 10 and ledger.check() == []


def test_stores_and_ledgers_are_sent_by_what_opens_them(tmp_path, folder_store, ledger):
    secret = tmp_path / "secret"
    secret.write_text("a long enough secret\n")
    secret.chmod(0o600)
    with draftflow.Store.create(str(tmp_path / "sealed"), secret_file=secret) as sealed:
        ref = sealed.put(sample(1), "s")
        again = pickle.loads(pickle.dumps(sealed))
        assert torch.equal(again.read(ref)["input_ids"], sample(1)["input_ids"])
        assert b"long enough" not in pickle.dumps(sealed)
    assert pickle.loads(pickle.dumps(ledger)).id == ledger.id
    with draftflow.Store.create(str(tmp_path / "given"), secret=b"a long enough secret") as given:
        with pytest.raises(draftflow.InvalidArgument, match="sent nowhere: use secret_file"):
            pickle.dumps(given)
    with pytest.raises(draftflow.InvalidArgument, match="store 'mem://here' lies in this process's memory"):
        pickle.dumps(draftflow.Store.create("mem://here"))
    with pytest.raises(draftflow.InvalidArgument, match="ledger 'mem://' lies in this process's memory"):
        pickle.dumps(draftflow.Ledger.open("mem://"))


def test_memory_is_refused_in_a_child_by_name():
    store, ledger = draftflow.Store.create("mem://mine"), draftflow.Ledger.open("mem://")
    ref = store.put(sample(1), name(1))
    leased = store.get(ref, zero_copy=True)
    parent = os.getpid()

    def work():
        for call in (lambda: store.read(ref), lambda: store.put(sample(2), name(2)), lambda: store.health()):
            with pytest.raises(draftflow.InvalidArgument, match=f"store 'mem://mine' lies in the memory of process {parent}"):
                call()
        with pytest.raises(draftflow.InvalidArgument, match=f"ledger 'mem://' lies in the memory of process {parent}"):
            ledger.status()
        assert torch.equal(leased["input_ids"], sample(1)["input_ids"])  # its pages came along
        store.close()

    assert in_forked_child(work) == 0
    assert store.health()["live_leases"] == 1
    leased.release()
    assert torch.equal(store.read(ref)["input_ids"], sample(1)["input_ids"])
    assert ledger.status()["committed"] == 0


def test_a_stream_in_the_midst_of_it_is_refused_in_a_child(folder_store, ledger):
    fill(folder_store, ledger, 8)
    batches = iter(draftflow.Stream(folder_store, ledger, group="g", window=1))
    next(batches)

    def work():
        with pytest.raises(draftflow.InvalidArgument, match="the process that this one was forked from: make another"):
            next(batches)

    assert in_forked_child(work) == 0
    assert [batch.sample_ids for batch in batches] == [[name(number)] for number in range(1, 8)]


def ids_through(loader):
    return [(b.window, b.index, b.last, b.sample_ids, {key: t.tolist() for key, t in b.tensors.items()}) for b in loader]


@pytest.mark.parametrize("batch_size", [1, 3, 0])
def test_workers_by_fork_give_the_order_of_none(folder_store, ledger, batch_size):
    fill(folder_store, ledger, 24)
    stream = draftflow.Stream(folder_store, ledger, group="g", window=4, batch_size=batch_size).open()
    wanted = ids_through(stream)
    assert [ident for batch in wanted for ident in batch[3]] == [name(number) for number in range(24)]
    for workers in (1, 2, 3):
        loader = DataLoader(stream, batch_size=None, num_workers=workers, multiprocessing_context="fork", timeout=LIMIT_S)
        assert ids_through(loader) == wanted


def test_workers_by_spawn_give_the_order_of_none(tmp_path):
    script = """
        import sys, torch, draftflow
        from torch.utils.data import DataLoader
        from stage import fill, LIMIT_S
        if __name__ == "__main__":
            store = draftflow.Store.create(sys.argv[1] + "/store")
            ledger = draftflow.Ledger.open(sys.argv[1] + "/ledger.sqlite3")
            fill(store, ledger, 12)
            stream = draftflow.Stream(store, ledger, group="g", window=4, batch_size=1).open()
            wanted = [batch.sample_ids for batch in stream]
            loader = DataLoader(stream, batch_size=None, num_workers=2, multiprocessing_context="spawn", timeout=LIMIT_S)
            print([batch.sample_ids for batch in loader] == wanted, len(wanted))
    """
    done = run_script(script, tmp_path)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "True 12\n")


def test_workers_are_refused_before_open(folder_store, ledger):
    fill(folder_store, ledger, 4)
    stream = draftflow.Stream(folder_store, ledger, group="g", window=1)
    with pytest.raises(draftflow.InvalidArgument, match=r"call stream.open\(\) before a DataLoader starts its workers"):
        list(DataLoader(stream, batch_size=None, num_workers=1, multiprocessing_context="fork", timeout=LIMIT_S))
