# SPDX-License-Identifier: Apache-2.0
"""What a put's metadata becomes: the ref's own, and plain, before a byte is stored."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from collections import OrderedDict

import numpy
import pytest
import torch

from draftflow.compat.specforge.control_plane import sample_ref_from_json, sample_ref_to_json
from draftflow.compat.specforge.data_plane import LocalFeatureStore, SharedDirFeatureStore


@pytest.fixture(params=["local", "shared"])
def store(request, tmp_path):
    return LocalFeatureStore("st") if request.param == "local" else SharedDirFeatureStore(str(tmp_path), "st")


def put(store, metadata, sample_id="s0"):
    return store.put({"x": torch.ones(4), "target": torch.ones(2)}, sample_id=sample_id, metadata=metadata)


TENSORS = [
    ({"scores": torch.ones(2)}, r"\['scores'\]"),
    ({"run_id": "run", "deep": [1, {"a": (2, torch.ones(2))}]}, r"\['deep'\]\[1\]\['a'\]\[1\]"),
    ({"width": numpy.int64(4)}, r"\['width'\]"),
    ({"width": numpy.float64(4)}, r"\['width'\]"),
    ({"rows": OrderedDict(a=numpy.ones(2))}, r"\['rows'\]\['a'\]"),
    ({"run_id": torch.tensor(1)}, r"\['run_id'\]"),
    ({torch.ones(1): 1}, "a key"),
]


@pytest.mark.parametrize("metadata, path", TENSORS, ids=[path for _, path in TENSORS])
def test_a_tensor_in_the_metadata_is_refused_and_nothing_is_stored(store, metadata, path):
    kept = put(store, {})
    before = store.health()
    with pytest.raises(TypeError, match=f"put of sample 's1': metadata(: )?{path} holds a (torch|numpy)"):
        put(store, metadata, "s1")
    with pytest.raises(TypeError, match="put of sample 's0'"):
        put(store, metadata, "s0")
    after = store.health()
    assert [after[key] for key in ("resident_samples", "resident_bytes")] == [1, before["resident_bytes"]]
    store.get(kept)  # nothing replaced it


def test_a_number_of_tokens_may_be_of_numpy_or_torch(store):
    assert put(store, {"num_tokens": numpy.int64(7)}).num_tokens == 7
    ref = put(store, {"num_tokens": torch.tensor(7)})
    assert type(ref.num_tokens) is int and ref.num_tokens == 7 and "num_tokens" not in ref.metadata


def test_refs_share_nothing_that_can_change(store):
    metadata = {"run_id": "run", "layers": [1, 2], "deep": {"a": [{"b": [3]}]}, "pair": (4, [5]), "order": OrderedDict(a=[6])}
    before = copy.deepcopy(metadata)
    first, second = put(store, metadata, "s0"), put(store, metadata, "s1")
    first.metadata["layers"].append(9)
    first.metadata["deep"]["a"][0]["b"].append(9)
    first.metadata["pair"][1].append(9)
    first.metadata["order"]["a"].append(9)
    assert metadata == before
    assert {key: second.metadata[key] for key in before} == before
    metadata["layers"].append(8)
    assert second.metadata["layers"] == [1, 2] and first.metadata["layers"] == [1, 2, 9]
    assert type(second.metadata["order"]) is OrderedDict


def test_specs_share_nothing_that_can_change(store):
    refs = [put(store, {"target_repr": "pruned_logits", "vocab_map_version": "v3"}, f"s{i}") for i in range(2)]
    for name in ("x", "target"):
        try:
            refs[0].feature_specs[name].target_meta["mine"] = 1
        except TypeError as error:
            assert "dataclasses.replace" in str(error)
    del refs[0].feature_specs["x"]
    assert refs[1].feature_specs["x"].target_meta == {}
    assert refs[1].feature_specs["target"].target_meta == {"vocab_map_version": "v3"}


def test_a_cycle_in_the_metadata_is_no_end_of_it(store):
    knot = {"a": [1]}
    knot["a"].append(knot)
    ref = put(store, {"knot": knot})
    assert ref.metadata["knot"]["a"][1] is ref.metadata["knot"] and ref.metadata["knot"] is not knot


def test_what_cannot_be_copied_stays_as_it_is(store):
    class Stubborn:
        def __deepcopy__(self, memo):
            raise TypeError("no")

    mine = Stubborn()
    assert put(store, {"mine": mine}).metadata["mine"] is mine


@pytest.mark.parametrize("metadata", [None, [("run_id", "run")], "run", 5], ids=repr)
def test_metadata_is_a_dict(store, metadata):
    with pytest.raises(TypeError, match="put of sample 's0': metadata is a "):
        put(store, metadata)
    assert store.health()["resident_samples"] == 0


def test_a_ref_is_the_plain_record_for_whoever_looks(store):
    ref = put(store, {"run_id": "run", "target_repr": "logits", "layers": [1]})
    pickled = pickle.loads(pickle.dumps(ref))
    for other in (copy.copy(ref), copy.deepcopy(ref), pickled, sample_ref_from_json(sample_ref_to_json(ref))):
        assert other == ref and repr(other) == repr(ref)
    fields = dataclasses.asdict(ref)
    assert json.loads(json.dumps(fields))["feature_specs"]["x"]["target_meta"] == {}
    fields["feature_specs"]["x"]["target_meta"]["mine"] = 1  # a copy is the caller's own
    copy.deepcopy(ref).feature_specs["x"].target_meta["mine"] = 1
    pickle.loads(pickle.dumps(ref)).feature_specs["x"].target_meta["mine"] = 1
    assert ref.feature_specs["x"].target_meta == {}
    spec = dataclasses.replace(ref.feature_specs["x"], target_meta={"mine": 1})
    assert spec.target_meta == {"mine": 1} and ref.feature_specs["x"].target_meta == {}
