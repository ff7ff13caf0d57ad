# SPDX-License-Identifier: Apache-2.0
"""capture: hidden states of ordinary torch models."""

import pytest
import torch
from torch import nn

import draftflow
from stage import name

WIDTH, TOKENS = 16, 32


class Layer(nn.Module):
    def __init__(self, gives_tuple):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.gives_tuple = gives_tuple

    def forward(self, states):
        states = states + torch.tanh(self.linear(states))
        return (states, "a cache") if self.gives_tuple else states


class Inner(nn.Module):
    def __init__(self, gives_tuple):
        super().__init__()
        self.embed_tokens = nn.Embedding(TOKENS, WIDTH)
        self.layers = nn.ModuleList(Layer(gives_tuple) for _ in range(4))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, input_ids):
        states = self.embed_tokens(input_ids)
        for layer in self.layers:
            states = layer(states)
            states = states[0] if isinstance(states, tuple) else states
        return self.norm(states)


class Llama(nn.Module):
    """As the usual ones are built: model.layers, model.norm, lm_head."""

    def __init__(self, gives_tuple=False):
        super().__init__()
        torch.manual_seed(1)
        self.model = Inner(gives_tuple)
        self.lm_head = nn.Linear(WIDTH, TOKENS)

    def forward(self, input_ids):
        return self.lm_head(self.model(input_ids))

    def states(self, input_ids):
        """What capture must find, computed beside it."""
        found, states = [], self.model.embed_tokens(input_ids)
        for layer in self.model.layers:
            states = layer(states)
            states = states[0] if isinstance(states, tuple) else states
            found.append(states.detach())
        return found, self.model.norm(states).detach()


@pytest.mark.parametrize("gives_tuple", [False, True], ids=["tensor", "tuple"])
def test_rows_are_stored_without_their_padding_and_committed(store, ledger, gives_tuple):
    model = Llama(gives_tuple)
    ids = torch.randint(0, TOKENS, (2, 6))
    attention = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 0]])
    loss = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 0, 1, 1, 1]])
    layers, last = model.states(ids)
    with draftflow.capture(model, [3, 1], store=store, ledger=ledger, run_id="r", dtype=torch.float32) as captured:
        model(ids)
        assert torch.equal(captured.hidden_state, last)
        assert torch.equal(captured.aux_hidden_state, torch.cat([layers[3], layers[1]], dim=-1))
        refs = captured.put([name(0), name(1)], ids, loss_mask=loss, attention_mask=attention)
    assert ledger.all_committed_ids() == [name(0), name(1)]
    for row, kept in enumerate((range(6), range(2, 5))):
        kept = list(kept)
        ref = ledger.get_committed(name(row))
        assert ref == refs[row] and ref.run_id == "r" and ref.num_tokens == len(kept)
        assert ref.metadata["aux_hidden_state_layer_ids"] == [3, 1]
        found = store.read(ref)
        assert torch.equal(found["input_ids"], ids[row][kept]) and torch.equal(found["loss_mask"], loss[row][kept])
        assert torch.equal(found["hidden_state"], last[row][kept][None])
        assert torch.equal(found["aux_hidden_state"], torch.cat([layers[3], layers[1]], dim=-1)[row][kept][None])
    wanted = {}
    for row, kept in enumerate((range(6), range(2, 5))):
        for at in kept:
            if loss[row, at]:
                wanted[int(ids[row, at])] = wanted.get(int(ids[row, at]), 0) + 1
    assert ledger.token_counts() == wanted
    ledger.close_prompts()
    (batch,) = draftflow.Stream(store, ledger, group="g", window=2, check="finite")
    assert batch.lengths == [6, 3] and not batch.failed


def test_what_is_stored_is_bfloat16_unless_asked(store):
    model, ids = Llama(), torch.tensor([[1, 2, 3]])
    with draftflow.capture(model, [0], store=store) as captured:
        model(ids)
        (ref,) = captured.put([name(0)], ids)
    assert {spec.dtype for spec in ref.feature_specs.values()} == {"int64", "bfloat16"}
    assert store.read(ref)["loss_mask"].tolist() == [1, 1, 1]


def test_hooks_are_there_only_within(store):
    model, ids = Llama(), torch.tensor([[1, 2, 3]])
    captured = draftflow.capture(model, [0], store=store)
    model(ids)
    with pytest.raises(draftflow.InvalidArgument, match="nothing is captured: run the model inside the `with` first"):
        captured.hidden_state
    with captured:
        with pytest.raises(draftflow.InvalidArgument, match=r"decoder layers \[0\] have not run"):
            captured.aux_hidden_state
        model(ids)
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(draftflow.InvalidArgument, match="nothing is captured"):
        captured.put([name(0)], ids)


def test_prompts_are_completed_under_their_leases(store, ledger):
    model, ids = Llama(), torch.tensor([[1, 2, 3], [4, 5, 6]])
    ledger.ingest_prompts([draftflow.PromptTask(name(n), run_id="run", payload={"ids": ids[n].tolist()}) for n in (0, 1)])
    leases, _ = ledger.lease_prompts("worker", 2)
    with draftflow.capture(model, [0, 1], store=store, ledger=ledger) as captured:
        model(ids)
        captured.put([lease.task.task_id for lease in leases], ids, leases=leases)
    status = ledger.status()
    assert (status["prompts_done"], status["committed"]) == (2, 2) and ledger.check() == []


def test_a_lost_lease_is_fenced(store, ledger):
    model, ids = Llama(), torch.tensor([[1, 2, 3]])
    ledger.ingest_prompts([draftflow.PromptTask(name(0), run_id="run", payload="p")])
    lost, _ = ledger.lease_prompts("first", 1)
    ledger.return_leases("first")
    held, _ = ledger.lease_prompts("second", 1)
    with draftflow.capture(model, [0], store=store, ledger=ledger) as captured:
        model(ids)
        with pytest.raises(draftflow.Conflict, match=name(0)):
            captured.put([name(0)], ids, leases=lost)
        assert store.health()["resident_samples"] == 0 and ledger.status()["committed"] == 0
        captured.put([name(0)], ids, leases=held)
    assert ledger.all_committed_ids() == [name(0)]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused_by_name_and_nothing_is_stored(store, ledger, value):
    model, ids = Llama(), torch.tensor([[1, 2, 3], [4, 5, 6]])
    with torch.no_grad():
        model.model.embed_tokens.weight[5] = value
    with draftflow.capture(model, [0, 1], store=store, ledger=ledger) as captured:
        model(ids)
        with pytest.raises(ValueError, match=f"sample '{name(1)}': hidden_state holds NaN or infinity"):
            captured.put([name(0), name(1)], ids)
    assert store.health()["resident_samples"] == 0 and ledger.all_committed_ids() == []


def test_what_overflows_the_stored_type_is_refused(store):
    model, ids = Llama(), torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        model.model.layers[0].linear.weight.zero_()
        model.model.embed_tokens.weight.fill_(1e6)
    with draftflow.capture(model, [0], store=store, dtype=torch.float16) as captured:
        model(ids)
        with pytest.raises(ValueError, match="aux_hidden_state holds NaN or infinity"):
            captured.put([name(0)], ids)


def test_misuse_is_told(store):
    model, ids = Llama(), torch.tensor([[1, 2, 3], [4, 5, 6]])
    with pytest.raises(ValueError, match=r"Linear has its decoder layers or final norm in none of the usual places"):
        draftflow.capture(nn.Linear(2, 2), [0])
    with pytest.raises(ValueError, match=r"layers are \[4\]: one or more from 0 to 3 are allowed"):
        draftflow.capture(model, [4])
    with pytest.raises(ValueError, match=r"layers are \[\]: one or more from 0 to 3 are allowed"):
        draftflow.capture(model, [])
    with draftflow.capture(model, [0]) as captured:
        model(ids)
        with pytest.raises(ValueError, match="capture was made without a store: pass store="):
            captured.put([name(0), name(1)], ids)
        with pytest.raises(ValueError, match="1 sample ids and input_ids .*B and T must be those of the forward"):
            captured.put([name(0)], ids)
        with pytest.raises(ValueError, match="B and T must be those of the forward"):
            captured.put([name(0), name(1)], ids[:, :2])


def test_modules_of_another_place_are_named(store):
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks, self.out = nn.ModuleList(Layer(False) for _ in range(2)), nn.LayerNorm(WIDTH)

        def forward(self, states):
            for block in self.blocks:
                states = block(states)
            return self.out(states)

    model, states = Other(), torch.randn(1, 3, WIDTH)
    places = {"decoder_layers": model.blocks, "final_norm": model.out}
    with draftflow.capture(model, [1], store=store, dtype=torch.float32, **places) as captured:
        wanted = model(states)
        (ref,) = captured.put([name(0)], torch.tensor([1, 2, 3]))
    assert torch.equal(store.read(ref)["hidden_state"], wanted.detach())


def test_a_ledger_has_one_store(store, ledger):
    model, ids = Llama(), torch.tensor([[1, 2, 3]])
    with draftflow.Store.create("mem://other") as other:
        with draftflow.capture(model, [0], store=store, ledger=ledger) as captured:
            assert ledger.declared("store") is None  # nothing is put yet
            model(ids)
            captured.put([name(0)], ids)
            assert ledger.declared("store") == "{store_id}/{incarnation}".format(**store.health())
        with pytest.raises(draftflow.Conflict, match="has its samples in store .*, and this is store other/"):
            draftflow.capture(model, [0], store=other, ledger=ledger).__enter__()
        late = draftflow.Ledger.open("mem://")
        with draftflow.capture(model, [0], store=other, ledger=late) as captured:
            model(ids)
            late.commit_samples([store.put({"x": ids}, "made meanwhile")])
            with pytest.raises(draftflow.Conflict, match="has its samples in store"):
                captured.put([name(0)], ids)
        assert other.health()["resident_samples"] == 0 and late.all_committed_ids() == ["made meanwhile"]


def test_a_text_is_no_list_of_names_and_an_integer_no_type_of_hidden_states(store):
    model = Llama()
    for dtype in (torch.int64, torch.bool, "float16", None):
        with pytest.raises(TypeError, match="dtype is .*: a floating type of torch's is needed"):
            draftflow.capture(model, [0], store=store, dtype=dtype)
    ids = torch.arange(8).reshape(2, 4)
    with draftflow.capture(model, [0], store=store) as captured:
        model(ids)
        with pytest.raises(TypeError, match="sample_ids is 'ab': a list of names is needed"):
            captured.put("ab", ids)
    assert store.health()["resident_samples"] == 0
