# SPDX-License-Identifier: Apache-2.0
"""What put and get, which take their arguments without pybind11, say of arguments that do not fit."""

import pytest
import torch

import draftflow

SMALL = {"x": torch.ones(2)}


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda store, ref: store.put(SMALL), r"put\(\) needs sample_id"),
        (lambda store, ref: store.put(sample_id="s"), r"put\(\) needs tensors"),
        (lambda store, ref: store.put(SMALL, "s", "run"), r"put\(\) takes 2 arguments without a name: 3 were given"),
        (lambda store, ref: store.put(SMALL, "s", sample_id="s"), r"put\(\) got sample_id twice"),
        (lambda store, ref: store.put(SMALL, "s", run="run"), r"put\(\) has no argument 'run'"),
        (lambda store, ref: store.put([SMALL], "s"), r"put\(\): tensors is a list: a dict is taken"),
        (lambda store, ref: store.put(SMALL, 3), r"put\(\): sample_id is a int: a str is taken"),
        (lambda store, ref: store.put(SMALL, "\udc80"), r"'\\udc80': a str of valid UTF-8 is taken"),
        (lambda store, ref: store.put(SMALL, "s", run_id=None), r"put\(\): run_id is a NoneType: a str is taken"),
        (lambda store, ref: store.put(SMALL, "s", num_tokens="3"), r"put\(\): num_tokens is a str: an int is taken"),
        (lambda store, ref: store.put(SMALL, "s", metadata=[1]), r"put\(\): metadata is a list: a dict is taken"),
        (lambda store, ref: store.put(SMALL, "s", fence=ref), r"fence is a .*SampleRef: what Ledger.fence returns is taken"),
        (lambda store, ref: store.get(), r"get\(\) needs ref"),
        (lambda store, ref: store.get("s"), r"get\(\): ref is a str: a SampleRef is taken"),
        (lambda store, ref: store.get(None), r"get\(\): ref is a NoneType: a SampleRef is taken"),
        (lambda store, ref: store.get(ref, "x"), r"get\(\): names is a str: a list of names is taken"),
        (lambda store, ref: store.get(ref, [3]), r"get\(\): names is a list: a list of names is taken"),
        (lambda store, ref: store.get(ref, None, True), r"get\(\) takes 2 arguments without a name: 3 were given"),
    ],
)
def test_an_argument_that_does_not_fit_is_named(store, call, said):
    ref = store.put(SMALL, "kept")
    with pytest.raises(TypeError, match=said):
        call(store, ref)
    assert store.health()["live_leases"] == 0 and [each.sample_id for each in store.resident()] == ["kept"]


def test_names_need_not_be_interned(store):
    ref = store.put(**{"".join(["ten", "sors"]): SMALL, "".join(["sample", "_id"]): "s", "".join(["run", "_id"]): "r"})
    assert (ref.sample_id, ref.run_id) == ("s", "r")


def test_another_object_than_a_store_has_no_put(store):
    with pytest.raises(TypeError):
        type(store).put(object(), SMALL, "s")


def test_an_id_is_a_str(store, ledger):
    ref = store.put(SMALL, "s")
    handle = store.get(ref).handle
    calls = [
        lambda: store.put(SMALL, b"s"),
        lambda: store.put(SMALL, "s", run_id=b"run"),
        lambda: store.get(ref, [b"x"]),
        lambda: store.read(ref, [b"x"]),
        lambda: store.find(b"s"),
        lambda: store.abort(b"s"),
        lambda: draftflow.SampleRef(b"s", run_id="run", feature_store_uri="", feature_specs=[]),
        lambda: draftflow.FeatureHandle(b"s", handle.generation, handle.lease_token),
        lambda: draftflow.PromptTask(b"p", run_id="run", payload={}),
        lambda: draftflow.dp_partition(b"s", 2),
        lambda: ledger.is_committed(b"s"),
        lambda: ledger.get_committed(b"s"),
        lambda: ledger.freed([b"s"]),
        lambda: ledger.declare_group(b"g", window=1),
        lambda: ledger.lease_prompts(b"me"),
    ]
    for number, call in enumerate(calls):
        with pytest.raises(TypeError):
            call()
            pytest.fail(f"call {number} took bytes")
    assert store.find("s").generation == ref.generation
    store.release(handle)
