# SPDX-License-Identifier: Apache-2.0
"""A ref's feature_keys may give what is stored another name."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from data_plane_story import file_ref

import draftflow
from draftflow.compat.specforge.data_plane import LocalFeatureStore, SharedDirFeatureStore


@pytest.fixture
def root(tmp_path):
    return str(tmp_path / "root")


def put_two(store):
    return store.put({"a": torch.zeros(2), "b": torch.ones(2)}, sample_id="s0", metadata={})


@pytest.mark.parametrize(
    "keys, names, values",
    [
        ({"target": "s0/b"}, None, {"target": [1, 1]}),
        ({"target": "b", "a": "a"}, None, {"target": [1, 1], "a": [0, 0]}),
        ({"a": "s0/b", "b": "s0/a"}, None, {"a": [1, 1], "b": [0, 0]}),  # both names have a spec
        ({"target": "s0/b", "a": "s0/a"}, ["target"], {"target": [1, 1]}),
        ({"target": "s0/b"}, ["a", "target"], {"a": [0, 0], "target": [1, 1]}),
    ],
)
@pytest.mark.parametrize("bare", [False, True], ids=["", "without generation and specs"])
def test_a_feature_under_another_name(root, keys, names, values, bare):
    store = SharedDirFeatureStore(root, "st", retain_on_release=True)
    ref = replace(put_two(store), feature_keys=keys)
    ref = replace(ref, metadata={}, feature_specs={}) if bare else ref
    tensors, handle = store.get(ref, names=names)
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == values and list(tensors) == list(values)
    store.release(handle)
    assert store.health()["active_leases"] == 0


def test_a_feature_with_a_slash_in_its_name(root):
    store = SharedDirFeatureStore(root, "st=1")  # which has draftflow's own layout: the reference's takes no such name
    ref = store.put({"a/b": torch.ones(2), "b": torch.zeros(2)}, sample_id="s0", metadata={})
    assert store.get(ref)[0]["a/b"].tolist() == [1, 1]
    tensors, _ = store.get(replace(ref, feature_keys={"target": "s0/a/b", "b": "b"}))
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {"target": [1, 1], "b": [0, 0]}


def test_two_names_of_one_tensor_share_no_memory(root, tmp_path):
    store = SharedDirFeatureStore(root, "st")
    tensors, _ = store.get(replace(put_two(store), feature_keys={"x": "s0/b", "y": "s0/b", "b": "s0/b"}))
    tensors["x"].zero_()
    assert tensors["y"].tolist() == tensors["b"].tolist() == [1, 1]
    torch.save({"a": torch.ones(2)}, tmp_path / "0.ckpt")
    ref = file_ref(feature_store_uri=f"file://{tmp_path}/0.ckpt", feature_keys={"x": "a", "y": "a"})
    tensors, _ = LocalFeatureStore().get(ref)
    tensors["x"].zero_()
    assert tensors["y"].tolist() == [1, 1]


def test_another_name_for_what_is_not_there(root):
    store = SharedDirFeatureStore(root, "st")
    ref = put_two(store)
    with pytest.raises(KeyError, match=r"sample 's0' has no tensor 's0/z' for feature 'target': it has \['a', 'b'\]"):
        store.get(replace(ref, feature_keys={"target": "s0/z"}))
    described = {"target": replace(ref.feature_specs["b"], name="target", shape=(7,))}
    with pytest.raises(draftflow.Corrupt, match=r"tensor 'b' is float32 \[2\], but the ref says float32 \[7\] of 'target'"):
        store.get(replace(ref, feature_keys={"target": "s0/b"}, feature_specs=described))
    with pytest.raises(KeyError, match="its URI is 'disagg://other/s0'"):
        store.get(replace(ref, feature_keys={"target": "s0/b"}, feature_store_uri="disagg://other/s0"))
    assert store.health()["active_leases"] == 0
    store.abort("s0")
    with pytest.raises(KeyError):
        store.get(replace(ref, feature_keys={"target": "s0/b"}))
