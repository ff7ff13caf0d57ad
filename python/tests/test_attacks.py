# SPDX-License-Identifier: Apache-2.0
"""Ways in which a hurried user, or a hostile value, could lose samples or hang a process; each was one."""

import subprocess
import sys

import pytest
import torch

import draftflow
from stage import fill, name, sample


def test_threads_that_meet_json_first_do_not_hang():
    script = """
import threading, draftflow
start = threading.Barrier(8)
def make(i):
    start.wait()
    draftflow.PromptTask(f"p{i}", run_id="r", payload={"a": [1]})
threads = [threading.Thread(target=make, args=(i,)) for i in range(8)]
[thread.start() for thread in threads]; [thread.join() for thread in threads]
"""
    for _ in range(3):
        subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_tensors_without_memory_are_refused(store):
    with pytest.raises(TypeError, match="tensor 'a' has no memory"):
        store.put({"a": torch._efficientzerotensor(3)}, "x")


def test_a_negative_that_torch_has_put_off_is_stored(store):
    negative = torch.randn(5, dtype=torch.complex64).conj().imag
    assert negative.is_neg()
    assert torch.equal(store.read(store.put({"a": negative}, "x"))["a"], negative.resolve_neg())


def test_a_tensor_that_changes_the_dict_it_is_in(store):
    tensors = {}

    class Hostile:
        def __dlpack__(self, *_args, **_kwargs):
            tensors.clear()
            return torch.arange(3).__dlpack__()

    tensors.update(a=Hostile(), b=torch.arange(2))
    ref = store.put(tensors, "x")
    assert torch.equal(store.read(ref)["b"], torch.arange(2))


def test_values_of_the_wrong_kind_are_type_errors(store, ledger):
    with pytest.raises(TypeError):
        store.put({"a\ud800": torch.arange(2)}, "x")
    with pytest.raises(TypeError):
        store.put({"a": torch.arange(2)}, "x", metadata={"m": 10**5000})
    with pytest.raises(TypeError):
        ledger.report_failed("g", 1, 0, {1: 2})
    for shape in ([-1], [2**40, 2**40]):
        with pytest.raises(ValueError):
            draftflow.FeatureSpec("a", shape, "int64")
    for timeout in (float("nan"), -1.0):
        with pytest.raises(ValueError, match="timeout_s"):
            ledger.wait(timeout)


def test_trained_once_a_batch_instead_of_once_a_window(store, ledger):
    fill(store, ledger, 8)
    stream = draftflow.Stream(store, ledger, group="g", window=4, batch_size=2)
    batches = iter(stream)
    next(batches)
    with pytest.raises(draftflow.InvalidArgument, match="window 0 was not handed out whole"):
        stream.trained(1)
    next(batches)
    stream.trained(1)
    next(batches)
    with pytest.raises(draftflow.InvalidArgument, match="window 1 was not handed out whole"):
        stream.trained(2)
    assert ledger.trained_ids("g") == [name(n) for n in range(4)]


def test_workers_that_live_on_go_on_where_training_is(folder_store, ledger):
    from torch.utils.data import DataLoader

    fill(folder_store, ledger, 8)
    stream = draftflow.Stream(folder_store, ledger, group="g", window=2).open()
    loader = DataLoader(stream, batch_size=None, num_workers=1, persistent_workers=True, multiprocessing_context="fork")
    seen = []
    for batch in loader:
        seen += batch.sample_ids
        stream.trained(batch.window + 1)
        if len(seen) == 4:
            break
    for batch in loader:
        seen += batch.sample_ids
        stream.trained(batch.window + 1)
    assert seen == ledger.trained_ids("g") == [name(n) for n in range(8)]


def test_the_newest_iteration_of_a_stream_counts(store, ledger):
    fill(store, ledger, 4)
    stream = draftflow.Stream(store, ledger, group="g", window=2)
    old = iter(stream)
    next(old)
    new = iter(stream)
    assert next(new).sample_ids == [name(0), name(1)]
    with pytest.raises(draftflow.InvalidArgument, match="closed"):
        next(old)
    stream.trained(1)
    assert next(new).sample_ids == [name(2), name(3)]


@pytest.mark.parametrize("key", ["ledger_id", "timeline", "step", "position", "seed"])
def test_a_state_that_is_none_names_what_is_wrong(store, ledger, key):
    fill(store, ledger, 2)
    state = draftflow.Stream(store, ledger, group="g", window=2).open().state_dict()
    for junk in ({k: v for k, v in state.items() if k != key}, {**state, key: 1.5}):
        with pytest.raises(draftflow.InvalidArgument, match=f"the state's {key} is"):
            draftflow.Stream(store, ledger, group="g", window=2).load_state_dict(junk)


class Block(torch.nn.Module):
    def __init__(self, in_place=False):
        super().__init__()
        self.in_place = in_place
        self.fail = False

    def forward(self, x):
        if self.fail:
            raise RuntimeError("no memory")
        return x.add_(1.0) if self.in_place else x + 1.0


class Model(torch.nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.layers = torch.nn.ModuleList(layers)
        self.norm = torch.nn.Identity()

    def forward(self, ids):
        x = ids[..., None].float().repeat(1, 1, 4)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


IDS = torch.tensor([[1, 2, 3], [4, 5, 6]])


def test_capture_of_blocks_that_work_in_place(store):
    model = Model([Block(in_place=True) for _ in range(3)])
    with draftflow.capture(model, layers=[0, 1, 2], store=store) as captured:
        model(IDS)
        aux = captured.aux_hidden_state
    assert [float(aux[0, 0, 4 * layer]) for layer in range(3)] == [2.0, 3.0, 4.0]


def test_capture_after_a_forward_that_failed(store):
    model = Model([Block() for _ in range(3)])
    with draftflow.capture(model, layers=[0, 1], store=store) as captured:
        model(IDS)
        model.layers[2].fail = True
        with pytest.raises(RuntimeError):
            model(IDS + 1)
        with pytest.raises(draftflow.InvalidArgument, match="nothing is captured"):
            captured.put(["a", "b"], IDS + 1)


def test_capture_refuses_a_layer_that_is_used_twice():
    block = Block()
    with pytest.raises(draftflow.InvalidArgument, match="decoder layer 0 is used at several depths"):
        draftflow.capture(Model([block, block, Block()]), layers=[0])


def test_capture_leaves_what_is_committed(store, ledger):
    model = Model([Block()])
    with draftflow.capture(model, layers=[0], store=store, ledger=ledger) as captured:
        model(IDS)
        first = captured.put(["a", "b"], IDS)
        model(torch.cat([IDS[1:], IDS[:1]]))
        again = captured.put(["b", "c"], torch.cat([IDS[1:], IDS[:1]]))
        assert again[0] == first[1]
        with pytest.raises(draftflow.InvalidArgument, match="twice"):
            captured.put(["d", "d"], IDS)
    assert ledger.all_committed_ids() == ["a", "b", "c"]
    for ref in first:
        with store.get(ref):
            pass


@pytest.mark.parametrize(
    "masks, said",
    [
        ({"loss_mask": torch.ones(2, 2)}, "loss_mask is \\[2, 2\\]"),
        ({"loss_mask": torch.full((2, 3), 4)}, "loss_mask is"),
        ({"attention_mask": torch.ones(3, 3)}, "attention_mask is \\[3, 3\\]"),
        ({"attention_mask": torch.tensor([[1, 1, 1], [0, 0, 0]])}, "sample 'b' has no token"),
    ],
)
def test_capture_looks_at_masks(store, ledger, masks, said):
    model = Model([Block()])
    with draftflow.capture(model, layers=[0], store=store, ledger=ledger) as captured:
        model(IDS)
        with pytest.raises(draftflow.InvalidArgument, match=said):
            captured.put(["a", "b"], IDS, **masks)
    assert ledger.all_committed_ids() == [] and store.health()["resident_samples"] == 0


def test_capture_looks_at_leases(store, ledger):
    ledger.ingest_prompts([draftflow.PromptTask(task, run_id="run", payload="p") for task in ("a", "b")])
    leases, _ = ledger.lease_prompts("me", 2)
    model = Model([Block()])
    with draftflow.capture(model, layers=[0], store=store, ledger=ledger) as captured:
        model(IDS)
        for wrong in (leases[:1], leases[::-1]):
            with pytest.raises(draftflow.InvalidArgument, match="leases are of"):
                captured.put(["a", "b"], IDS, leases=wrong)
        assert [ref.sample_id for ref in captured.put(["a", "b"], IDS, leases=leases)] == ["a", "b"]
    with draftflow.capture(model, layers=[0], store=store) as captured:
        model(IDS)
        with pytest.raises(draftflow.InvalidArgument, match="without a ledger"):
            captured.put(["a", "b"], IDS, leases=leases)


@pytest.mark.parametrize("kind", [KeyError, torch.Tensor, draftflow.SampleRef, type(lambda: 0), 3])
def test_a_record_is_made_of_classes_that_object_makes_and_before_anything_is_stored(kind):
    with draftflow.Store.create("mem://records", kind="consume-once") as store:
        with pytest.raises(TypeError, match="a class of records is needed"):
            store._put_described({"x": torch.zeros(1)}, "s", {"metadata": {}}, lambda *said: said, kind)
        assert store.health()["resident_samples"] == 0


def test_what_one_describes_is_not_told_to_another():
    class Record:
        pass

    with draftflow.Store.create("mem://described", kind="consume-once") as store:
        made = [
            store._put_described({"x": torch.zeros(1)}, "s", {"metadata": {}}, lambda *said, who=who: who, Record)
            for who in ("one", "another")
        ]
    assert [each.feature_specs["x"] for each in made] == ["one", "another"]
