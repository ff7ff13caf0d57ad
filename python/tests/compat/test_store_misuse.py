# SPDX-License-Identifier: Apache-2.0
"""Stores in the hands of those who do not read their documentation: what is refused, and what must hold anyway."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace

import numpy
import pytest
import torch

from draftflow.compat.specforge.contracts import FeatureHandle, assert_no_tensors
from draftflow.compat.specforge.data_plane import AuthPolicy, LocalFeatureStore, SharedDirFeatureStore


@pytest.fixture(autouse=True)
def no_secret_around(monkeypatch):
    monkeypatch.delenv("DRAFTFLOW_STORE_SECRET", raising=False)


@pytest.fixture
def root(tmp_path):
    return str(tmp_path / "root")


def put(store, sample_id="s0", value=0.0, **metadata):
    return store.put({"x": torch.full((1, 4), value)}, sample_id=sample_id, metadata=metadata)


def files_under(folder):
    return [os.path.join(at, name) for at, _, names in os.walk(folder) for name in names]


@pytest.mark.parametrize("sample_id", [b"s0", 5, None, True, ["s0"], ("s0",)], ids=repr)
def test_an_id_is_a_str(root, sample_id):
    store = SharedDirFeatureStore(root, "st")
    kept = put(store, "s0")
    with pytest.raises(TypeError, match="it must be a str"):
        put(store, sample_id)
    with pytest.raises(TypeError, match="it must be a str"):
        store.abort(sample_id)
    store.get(kept)
    assert store.health()["resident_samples"] == 1


def test_an_id_of_a_subclass_becomes_a_plain_str(root):
    for store in (SharedDirFeatureStore(root, "st"), LocalFeatureStore("st")):
        ref = put(store, numpy.str_("s0"))
        assert type(ref.sample_id) is str and ref.feature_keys == {"x": "s0/x"}
        assert_no_tensors(ref)
        store.abort(numpy.str_("s0"))
        with pytest.raises(KeyError):
            store.get(ref)


def test_a_ref_of_another_store_is_not_here(root):
    mine, other, local = SharedDirFeatureStore(root, "st"), SharedDirFeatureStore(root, "other"), LocalFeatureStore("st")
    here, there, in_memory = put(mine, value=1.0), put(other, value=2.0), put(local, value=3.0)
    of_reference = {"generation": here.metadata["generation"]}
    forms = [there, replace(there, metadata={}), replace(there, metadata=of_reference), in_memory]
    for ref in [*forms, *(replace(form, feature_specs={}) for form in forms)]:
        with pytest.raises(KeyError, match="is not here: its URI is|incarnation"):
            mine.get(ref)
    for ref in (here, there, replace(in_memory, feature_store_uri="mem://other/s0")):
        with pytest.raises(KeyError, match="is of another store: its URI is"):
            local.get(ref)
    gone = replace(here, feature_specs={}, metadata={**here.metadata, "incarnation": there.metadata["incarnation"]})
    with pytest.raises(KeyError, match="incarnation"):
        mine.get(gone)
    assert mine.health()["active_leases"] == local.health()["active_leases"] == 0
    for form in (here, replace(here, metadata={}), replace(here, feature_specs={})):
        assert mine.get(form)[0]["x"].sum() == 4
    assert local.get(in_memory)[0]["x"].sum() == 12


@pytest.mark.parametrize("kind", [int, numpy.int64, numpy.uint64, numpy.int32])
def test_a_generation_of_any_integer_type(root, kind):
    store = SharedDirFeatureStore(root, "st", max_hold_age_s=10.0)
    for others in ({}, {"feature_specs": {}}):
        ref = put(store)
        form = replace(ref, metadata={**ref.metadata, "generation": kind(ref.metadata["generation"])}, **others)
        _, first = store.get(form)
        _, second = store.get(form)
        store.release(replace(first, generation=kind(first.generation)))
        assert store.health()["active_leases"] == 1
        store.release(replace(second, generation=kind(second.generation)))
        assert store.health()["active_leases"] == store.health()["resident_samples"] == 0
        assert not store._puts  # what was consumed is not remembered


@pytest.mark.parametrize("generation", ["1", 1.0, float("nan"), [1]], ids=repr)
def test_a_generation_of_another_type_is_refused_by_name(root, generation):
    store = SharedDirFeatureStore(root, "st")
    ref = put(store)
    ref = replace(ref, metadata={**ref.metadata, "generation": generation})
    for form in (ref, replace(ref, feature_specs={})):
        with pytest.raises(TypeError, match="the ref of sample 's0' has generation .*: an int is needed"):
            store.get(form)
    with pytest.raises(TypeError, match="release takes what get returned"):
        store.release(FeatureHandle("s0", generation, "token"))


@pytest.mark.parametrize("generation", [-1, 0, 1 << 53, 1 << 64])
def test_a_generation_that_none_has_is_not_there(root, generation):
    store = SharedDirFeatureStore(root, "st")
    ref = put(store)
    ref = replace(ref, metadata={**ref.metadata, "generation": generation})
    for form in (ref, replace(ref, feature_specs={})):
        with pytest.raises(KeyError, match=f"'s0' generation {generation}"):
            store.get(form)
    store.release(FeatureHandle("s0", generation, "token"))


def test_names_may_be_any_series_of_names_but_no_name(root):
    for store in (SharedDirFeatureStore(root, "st"), LocalFeatureStore("st")):
        ref = store.put({"x": torch.ones(1), "y": torch.ones(1)}, sample_id="s0", metadata={})
        for names in (["x"], ("x",), {"x"}, (name for name in ["x"]), numpy.array(["x"])):
            assert list(store.get(ref, names=names)[0]) == ["x"]
        for names in (None, [], ()):
            assert list(store.get(ref, names=names)[0]) == ["x", "y"]
        leases = store.health()["active_leases"]
        for names in ("x", b"x", [b"x"], [1], ""):
            with pytest.raises(TypeError, match="get of sample 's0': names is"):
                store.get(ref, names=names)
        assert store.health()["active_leases"] == leases


@pytest.mark.parametrize("tensors", [None, "x", [("x", torch.ones(1))], torch.ones(1)], ids=["None", "str", "list", "tensor"])
def test_what_is_put_is_a_dict_of_tensors(root, tensors):
    for store in (SharedDirFeatureStore(root, "st"), LocalFeatureStore("st")):
        with pytest.raises(TypeError, match="put of sample 's0': a .* was given: a dict of tensors is needed"):
            store.put(tensors, sample_id="s0", metadata={})


def test_a_credential_alone_makes_no_open_store(root):
    consumer = SharedDirFeatureStore(root, "st", credential="s3cret")  # started before the producer
    producer = SharedDirFeatureStore(root, "st", auth=AuthPolicy("s3cret"), credential="s3cret")
    assert consumer.get(put(producer))[0]["x"].sum() == 0 and consumer.health()["auth_required"]
    with pytest.raises(PermissionError):
        SharedDirFeatureStore(root, "st")


@pytest.mark.parametrize("secret", [b"s3cret", 5, True, ["s3cret"]], ids=repr)
def test_a_secret_is_a_str_and_is_not_shown(root, secret):
    calls = [lambda: AuthPolicy(secret), lambda: SharedDirFeatureStore(root, "st", credential=secret)]
    for call in [*calls, lambda: AuthPolicy("s3cret").check(secret)]:
        with pytest.raises(TypeError, match=r"(token|credential) is a \w+: a str is needed"):
            call()
    assert not os.path.exists(root)


def test_a_secret_that_is_no_text_is_not_shown(root):
    with pytest.raises(ValueError) as refused:
        AuthPolicy("s3cret\ud800")
    assert "s3cret" not in str(refused.value) and refused.value.__suppress_context__
    with pytest.raises(TypeError, match="auth is a str: an AuthPolicy is needed") as refused:
        SharedDirFeatureStore(root, "st", auth="s3cret", credential="s3cret")
    assert "s3cret" not in str(refused.value)


def test_a_folder_is_named_by_any_path_without_a_zero(root, tmp_path):
    ref = put(SharedDirFeatureStore(root, "st"), value=1.0)
    for form in (tmp_path / "root", os.fsencode(root), root + "/"):
        assert SharedDirFeatureStore(form, "st", retain_on_release=True).get(ref)[0]["x"].sum() == 4
    for form in (root + "\0x", os.fsencode(root) + b"\0x"):
        with pytest.raises(ValueError, match="no folder has U\\+0000"):
            SharedDirFeatureStore(form, "st")
    assert os.listdir(tmp_path) == ["root"]


@pytest.mark.parametrize("store_id", [5, b"st", ["st"], True], ids=repr)
def test_a_store_id_is_a_str(root, store_id):
    with pytest.raises(TypeError, match="store_id is .*: a str is needed"):
        SharedDirFeatureStore(root, store_id)


@pytest.mark.parametrize("flag", ["no", None, 2, b""], ids=repr)
def test_retaining_is_true_or_false(root, flag):
    with pytest.raises(TypeError, match="retain_on_release is "):
        SharedDirFeatureStore(root, "st", retain_on_release=flag)
    assert SharedDirFeatureStore(root, "st", retain_on_release=numpy.bool_(True)).retain_on_release is True


RACE = """
import random, sys, time
import torch
from draftflow.compat.specforge.control_plane import sample_ref_from_json, sample_ref_to_json
from draftflow.compat.specforge.data_plane import SharedDirFeatureStore
store = SharedDirFeatureStore(sys.argv[1], "st", max_hold_age_s=0.05)
random.seed(int(sys.argv[2]))
end, held = time.monotonic() + float(sys.argv[3]), []
print("started", flush=True)
while time.monotonic() < end:
    name, turn = f"s{random.randrange(4)}", random.random()
    path = f"{sys.argv[1]}/{name}.{random.randrange(4)}.json"
    if turn < 0.4:
        value = random.randrange(1 << 20)
        rows = random.choice([1, 300])
        ref = store.put({"x": torch.full((rows, 128), float(value))}, sample_id=name, metadata={"value": value})
        open(path, "w").write(sample_ref_to_json(ref))
    elif turn < 0.75:
        try:
            ref = sample_ref_from_json(open(path).read())
            tensors, handle = store.get(ref)
        except (OSError, KeyError, ValueError):  # not written, gone, half written
            continue
        held.append((tensors["x"], ref.metadata["value"], handle))
        assert (tensors["x"] == ref.metadata["value"]).all() and tensors["x"].shape == ref.feature_specs["x"].shape
    elif turn < 0.92 and held:
        tensor, value, handle = held.pop(random.randrange(len(held)))
        assert (tensor == value).all()
        store.release(handle)
    elif turn < 0.96:
        store.abort(name)
    else:
        store.gc(), store.health()
for _, _, handle in held:
    store.release(handle)
"""


def test_processes_that_race_and_die_read_no_wrong_bytes_and_leave_nothing(root):
    os.mkdir(root)
    seed = int.from_bytes(os.urandom(2), "big")
    processes = [
        subprocess.Popen([sys.executable, "-c", RACE, root, str(seed + i), "3"], stdout=subprocess.PIPE) for i in range(4)
    ]
    try:
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == b"started\n", seed
        time.sleep(0.5)
        for process in processes[:2]:
            process.kill()
        assert [process.wait(60) for process in processes] == [-9, -9, 0, 0], f"seed {seed}"
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    store = SharedDirFeatureStore(root, "st")
    store.gc()
    assert store.health()["active_leases"] == 0
    for number in range(4):
        store.abort(f"s{number}")
    deadline = time.monotonic() + 30  # who was killed within a step counts as at it for 10 seconds, and gc waits for that
    while True:
        store.gc()
        health = store.health()
        left = (health["resident_samples"], health["resident_bytes"], health["release_pending"])
        if left == (0, 0, 0) or time.monotonic() > deadline:
            break
        time.sleep(1)
    assert left == (0, 0, 0), f"seed {seed}"
    assert not [name for name in files_under(root) if name.endswith((".ckpt", ".tmp"))], f"seed {seed}"
