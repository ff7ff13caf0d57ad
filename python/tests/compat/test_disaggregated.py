# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import re
import shutil
from collections import UserDict
from dataclasses import replace

import numpy
import pytest
import torch
from compat_refs import real_data
from data_plane_story import Clock, assert_same, file_ref, in_another_process, sample, write_files

import draftflow
from draftflow.compat.specforge.contracts import FeatureHandle, assert_no_tensors
from draftflow.compat.specforge.data_plane import (
    AuthPolicy,
    FeatureDataLoader,
    LocalFeatureStore,
    OfflineManifestReader,
    SampleRefQueue,
    SharedDirFeatureStore,
    ingest_offline_features,
    read_ref_manifest,
    write_ref_manifest,
)
from draftflow.compat.specforge.data_plane.feature_store import get_returns_copies


@pytest.fixture(autouse=True)
def no_secret_around(monkeypatch):
    monkeypatch.delenv("DRAFTFLOW_STORE_SECRET", raising=False)


@pytest.fixture
def root(tmp_path):
    return str(tmp_path / "root")


def put(store, sample_id="s0", value=0.0, **metadata):
    return store.put({"x": torch.full((1, 4), value)}, sample_id=sample_id, metadata=metadata)


CONSUME = """
import sys
from draftflow.compat.specforge.data_plane import SharedDirFeatureStore, read_ref_manifest
store = SharedDirFeatureStore(sys.argv[1], "st")
for ref in read_ref_manifest(sys.argv[2]):
    tensors, handle = store.get(ref)
    store.release(handle)
    print(tensors["x"].sum().item())
"""


def test_a_consumer_shares_only_the_folder(root):
    producer = SharedDirFeatureStore(root, store_id="st")
    ref = producer.put(sample(), sample_id="run:00000000", metadata={"run_id": "run", "num_tokens": 8, "ttt_length": 7})
    assert ref.feature_store_uri == "disagg://st/run:00000000"
    assert ref.feature_keys["loss_mask"] == "run:00000000/loss_mask"
    assert (ref.run_id, ref.strategy, ref.num_tokens, ref.estimated_bytes) == ("run", "eagle3", 8, 2 * 64 + 2 * 8 * 16)
    assert ref.feature_specs["hidden_state"].dtype == "bfloat16" and ref.feature_specs["hidden_state"].shape == (1, 8, 4)
    assert ref.metadata["ttt_length"] == 7 and ref.metadata["generation"] > 0 and "num_tokens" not in ref.metadata
    assert_no_tensors(ref)
    consumer = SharedDirFeatureStore(root, store_id="st")
    tensors, handle = consumer.get(ref)
    assert_same(tensors, sample())
    assert isinstance(handle, FeatureHandle)
    assert (handle.sample_id, handle.generation) == ("run:00000000", ref.metadata["generation"])
    consumer.release(handle)
    with pytest.raises(KeyError, match="run:00000000"):
        producer.get(ref)


def test_what_another_process_consumes_is_gone(root, tmp_path):
    producer = SharedDirFeatureStore(root, "st")
    write_ref_manifest([put(producer, "a", 1.0), put(producer, "b", 2.0)], str(tmp_path / "refs.json"))
    kept = put(producer, "c")
    assert in_another_process(CONSUME, root, str(tmp_path / "refs.json")).split() == ["4.0", "8.0"]
    assert producer.health()["resident_samples"] == 1
    producer.get(kept)


def test_the_release_of_one_process_takes_nothing_from_another(root, tmp_path):
    mine = SharedDirFeatureStore(root, "st")
    ref = put(mine, "a", 1.0)
    write_ref_manifest([ref], str(tmp_path / "refs.json"))
    _, handle = mine.get(ref)
    in_another_process(CONSUME, root, str(tmp_path / "refs.json"))
    assert mine.health()["active_leases"] == 1 and mine.get(ref)[0]["x"].sum() == 4
    mine.release(handle)
    assert mine.health()["resident_samples"] == 1  # the second get holds it


def test_stale_refs_and_handles_never_reach_the_next_generation(root):
    producer, consumer = SharedDirFeatureStore(root, "st"), SharedDirFeatureStore(root, "st")
    old = put(producer, value=0.0)
    _, held = consumer.get(old)
    new = put(producer, value=1.0)
    assert new.metadata["generation"] > old.metadata["generation"]
    with pytest.raises(KeyError, match="superseded"):
        consumer.get(old)
    consumer.release(held)
    assert consumer.get(new)[0]["x"].sum() == 4


def test_generations_are_not_used_again(root):
    store = SharedDirFeatureStore(root, "st")
    old = put(store)
    _, handle = store.get(old)
    store.abort("s0")
    new = put(store)
    store.release(handle)
    assert new.metadata["generation"] > old.metadata["generation"]
    with pytest.raises(KeyError):
        store.get(old)
    store.get(new)


def test_a_store_made_anew_is_another_one(root):
    ref = put(SharedDirFeatureStore(root, "st"))
    shutil.rmtree(root)
    again = SharedDirFeatureStore(root, "st")
    put(again)
    with pytest.raises(KeyError, match="incarnation"):
        again.get(ref)


def test_abort_evicts_and_is_idempotent(root):
    store = SharedDirFeatureStore(root)
    ref = put(store)
    store.abort("s0", reason="terminal")
    store.abort("s0")
    with pytest.raises(KeyError):
        store.get(ref)


def test_the_store_shares_no_memory_with_anybody(root):
    store = SharedDirFeatureStore(root)
    mine = {"x": torch.zeros(4)}
    ref = store.put(mine, sample_id="s0", metadata={})
    mine["x"].add_(1)
    first, _ = store.get(ref)
    first["x"].add_(1)
    assert store.get(ref)[0]["x"].sum() == 0


def test_the_last_release_frees(root):
    store = SharedDirFeatureStore(root)
    ref = put(store)
    _, first = store.get(ref)
    _, second = store.get(ref)
    store.release(first)
    store.release(first)
    assert store.health()["resident_samples"] == 1
    store.release(FeatureHandle("s0", second.generation, "made up"))
    store.release(second, reason="consumed")
    assert store.health()["resident_samples"] == 0
    with pytest.raises(KeyError):
        store.get(ref)


def test_retained_samples_are_read_in_each_epoch(root, tmp_path):
    store = SharedDirFeatureStore(root, "ro", retain_on_release=True)
    refs = ingest_offline_features(store, write_files(tmp_path / "set", 3), run_id="ro")
    for _ in range(3):
        for ref in refs:
            _, handle = store.get(ref)
            store.release(handle)
    assert store.health()["resident_samples"] == 3
    reader, taker = SharedDirFeatureStore(root, "ro", retain_on_release=True), SharedDirFeatureStore(root, "ro")
    _, handle = reader.get(refs[0])
    reader.release(handle)
    assert store.health()["resident_samples"] == 3
    _, handle = taker.get(refs[0])
    taker.release(handle)
    assert store.health()["resident_samples"] == 2


def test_gc_frees_what_nobody_took_in_time(root):
    clock = Clock()
    store = SharedDirFeatureStore(root, max_hold_age_s=10.0, clock=clock)
    put(store, "old")
    clock.now += 50
    put(store, "new")
    assert store.gc() == {"force_freed": 1, "force_freed_bytes": 16, "release_pending": 0}
    assert store.health()["resident_samples"] == 1 and store.health()["force_freed_total"] == 1
    assert store.gc(now=clock.now + 10)["force_freed"] == 0
    assert store.gc(now=clock.now + 11)["force_freed"] == 1


def test_gc_spares_what_anybody_has_leased(root):
    clock = Clock()
    store, reader = SharedDirFeatureStore(root, "st", max_hold_age_s=10.0, clock=clock), SharedDirFeatureStore(root, "st")
    _, handle = reader.get(put(store))
    clock.now += 50
    assert store.gc()["force_freed"] == 0
    reader.release(handle)
    assert store.health()["resident_samples"] == 0


def test_gc_does_not_count_what_consumers_took_and_remembers_it_no_longer(root):
    clock = Clock()
    store, consumer = SharedDirFeatureStore(root, "st", max_hold_age_s=10.0, clock=clock), SharedDirFeatureStore(root, "st")
    _, handle = consumer.get(put(store))
    consumer.release(handle)
    clock.now += 5
    assert store.gc()["force_freed"] == 0 and store.health()["oldest_age_s"] == 0.0


LEASE_AND_DIE = """
import os, sys
from draftflow.compat.specforge.data_plane import SharedDirFeatureStore, read_ref_manifest
store = SharedDirFeatureStore(sys.argv[1], "st")
lease = store.get(read_ref_manifest(sys.argv[2])[0])
os._exit(0)
"""


def test_gc_ends_the_leases_of_the_dead(root, tmp_path):
    store = SharedDirFeatureStore(root, "st")
    ref = put(store)
    write_ref_manifest([ref], str(tmp_path / "refs.json"))
    in_another_process(LEASE_AND_DIE, root, str(tmp_path / "refs.json"))
    assert store.health()["active_leases"] == 1
    store.gc()
    assert store.health()["active_leases"] == 0
    store.get(ref)


def test_without_an_age_gc_frees_nothing(root):
    clock = Clock()
    store = SharedDirFeatureStore(root, clock=clock)
    put(store)
    clock.now += 10_000
    assert store.gc() == {"force_freed": 0, "force_freed_bytes": 0, "release_pending": 0}
    assert store.health()["resident_samples"] == 1


def test_health_has_the_keys_and_ages_by_the_clock(root):
    clock = Clock()
    store = SharedDirFeatureStore(root, "st", clock=clock)
    put(store, "a")
    clock.now += 10
    ref = put(store, "b")
    clock.now += 10
    _, handle = store.get(ref)
    assert store.health() == {
        "store_id": "st",
        "backend": "shared_dir",
        "root": os.path.join(root, "st"),
        "resident_samples": 2,
        "active_leases": 1,
        "resident_bytes": 32,
        "max_resident_bytes": None,
        "release_pending": 0,
        "auth_required": False,
        "oldest_age_s": 20.0,
        "avg_age_s": 15.0,
        "force_freed_total": 0,
    }
    store.release(handle)
    assert store.health()["avg_age_s"] == 20.0
    store.abort("a")
    assert store.health()["oldest_age_s"] == 0.0
    assert 0 <= SharedDirFeatureStore(root, "st").health()["oldest_age_s"] < 3600


def test_a_put_over_the_stores_budget_is_a_memory_error(root):
    os.mkdir(root)
    draftflow.Store.create(os.path.join(root, "st"), kind="consume-once", layout="specforge", max_resident_bytes=20)
    store = SharedDirFeatureStore(root, "st")
    ref = put(store, "a")
    with pytest.raises(MemoryError, match="may hold 20"):
        put(store, "b")
    assert store.health()["resident_samples"] == 1 and store.health()["max_resident_bytes"] == 20
    store.get(ref)


def test_a_wrong_or_missing_credential_opens_nothing(root):
    auth = AuthPolicy("s3cret")
    for credential in ("wrong", None, ""):
        with pytest.raises(PermissionError) as refused:
            SharedDirFeatureStore(root, "st", auth=auth, credential=credential)
        assert "s3cret" not in str(refused.value)
    assert not os.path.exists(root)
    assert "s3cret" not in repr(auth) and auth.required and not AuthPolicy().required
    AuthPolicy().check(None)
    auth.check("s3cret")


def test_a_store_made_with_a_secret_opens_with_it_alone(root):
    auth = AuthPolicy("s3cret")
    store = SharedDirFeatureStore(root, "st", auth=auth, credential="s3cret")
    ref = put(store, "a/b", 1.0)
    assert store.health()["auth_required"]
    for options in ({}, {"credential": "wrong"}, {"auth": AuthPolicy("wrong"), "credential": "wrong"}):
        with pytest.raises(PermissionError):
            SharedDirFeatureStore(root, "st", **options)
    for options in ({"auth": auth, "credential": "s3cret"}, {"credential": "s3cret"}):
        attached = SharedDirFeatureStore(root, "st", **options)
        assert attached.get(ref)[0]["x"].sum() == 4 and attached.health()["auth_required"]
    assert not any(b"s3cret" in open(path, "rb").read() for path in files_under(root))


def test_a_credential_that_went_wrong_is_refused_by_every_verb(root):
    store = SharedDirFeatureStore(root, "st", auth=AuthPolicy("s3cret"), credential="s3cret")
    ref = put(store)
    store._credential = "wrong"
    for verb in (lambda: put(store), lambda: store.get(ref)):
        with pytest.raises(PermissionError):
            verb()


def test_the_environment_may_hold_the_secret(root, monkeypatch):
    monkeypatch.setenv("DRAFTFLOW_STORE_SECRET", "s3cret")
    ref = put(SharedDirFeatureStore(root, "st"))
    monkeypatch.delenv("DRAFTFLOW_STORE_SECRET")
    with pytest.raises(PermissionError):
        SharedDirFeatureStore(root, "st")
    SharedDirFeatureStore(root, "st", credential="s3cret").get(ref)


def test_without_a_policy_a_store_is_open(root):
    store = SharedDirFeatureStore(root)
    assert not store.health()["auth_required"]
    put(store)


def files_under(folder):
    return [os.path.join(at, name) for at, _, names in os.walk(folder) for name in names]


def test_the_reference_reads_and_frees_what_is_put(root):
    store = SharedDirFeatureStore(root, "st")
    ref = store.put(sample(), sample_id="run:00000000", metadata={})
    path = os.path.join(root, "st", f"run:00000000.g{ref.metadata['generation']}.ckpt")
    assert [name for name in os.listdir(os.path.join(root, "st")) if re.match(r"^(.+)\.g(\d+)\.ckpt$", name)] == [
        os.path.basename(path)
    ]
    assert_same(torch.load(path, weights_only=True), sample())
    os.remove(path)
    with pytest.raises(KeyError):
        store.get(ref)


@pytest.mark.parametrize("sample_id", ["..", ".", "ü🙂", "a b:c", "a.g1.b"])
def test_an_id_that_is_a_file_name_is_taken(root, sample_id):
    store = SharedDirFeatureStore(root, "st")
    _, handle = store.get(put(store, sample_id))
    assert handle.sample_id == sample_id


@pytest.mark.parametrize("sample_id", ["../../x", "a/b", "new\nline", "x" * 1000, "", "a\0b", "\ud800"])
def test_an_id_that_the_layout_cannot_name_is_refused(root, sample_id):
    store = SharedDirFeatureStore(root, "st")
    with pytest.raises(ValueError):
        put(store, sample_id)
    assert os.listdir(os.path.dirname(root)) == [os.path.basename(root)] and os.listdir(root) == ["st"]


@pytest.mark.parametrize("store_id", ["..", ".", "../x", "a/b", "a\0b", "new\nline", "x" * 1025, "\ud800"])
def test_a_store_never_lies_outside_its_root(root, store_id):
    with pytest.raises(ValueError, match="store_id "):
        SharedDirFeatureStore(root, store_id)
    assert not os.path.exists(root)


# The reference takes them, as the names of folders that they are.
@pytest.mark.parametrize(
    "store_id", ["lr=1e-4", "run:1", "qwen@v2", "a+b", "my run", " ", "日本", ".hidden", "x" * 101, "é" * 60, "mem:x", "st~1"]
)
def test_a_store_may_be_called_what_is_no_plain_name(root, store_id):
    producer, consumer = SharedDirFeatureStore(root, store_id), SharedDirFeatureStore(root, store_id)
    ref = put(producer, value=2.0)
    assert ref.feature_store_uri == f"disagg://{store_id}/s0" and producer.store_id == store_id
    assert producer.root == consumer.health()["root"] and os.listdir(root) == [os.path.basename(producer.root)]
    tensors, handle = consumer.get(ref)
    assert tensors["x"].tolist() == [[2.0] * 4]
    consumer.release(handle)
    assert producer.health()["resident_samples"] == 0 and producer.health()["store_id"] == store_id


def test_a_folder_that_the_reference_called_so_is_not_taken_for_an_empty_store(root):
    os.makedirs(os.path.join(root, "lr=1e-4"))
    with pytest.raises(ValueError, match="lr=1e-4 was not made by draftflow.*after renaming the folder"):
        SharedDirFeatureStore(root, "lr=1e-4")
    assert os.listdir(root) == ["lr=1e-4"]


def test_a_policy_without_a_token_of_its_own(root):
    class Either:
        required = True

        def check(self, presented):
            if presented not in ("a", "b"):
                raise PermissionError("neither")

    with pytest.raises(PermissionError, match="neither"):
        SharedDirFeatureStore(root, "st", auth=Either(), credential="c")
    store = SharedDirFeatureStore(root, "st", auth=Either(), credential="a")
    assert store.health()["auth_required"] and store.get(put(store))[0]["x"].shape == (1, 4)


def test_what_is_put_must_be_tensors(root):
    store = SharedDirFeatureStore(root, "st")
    with pytest.raises(ValueError, match="no tensors were given"):
        store.put({}, sample_id="s0", metadata={})
    with pytest.raises(TypeError, match="'x' is a list"):
        store.put({"x": [1]}, sample_id="s0", metadata={})
    with pytest.raises(TypeError, match="'x' is a ndarray"):
        store.put({"x": numpy.ones(2)}, sample_id="s0", metadata={})
    with pytest.raises(ValueError):
        put(store, "s0", num_tokens="many")
    assert store.health()["resident_samples"] == 0


def test_tensors_of_all_shapes_come_back(root):
    store = SharedDirFeatureStore(root, "st")
    tensors = {
        "transposed": torch.arange(6).view(2, 3).t(),
        "bool": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "graph": (torch.ones(2, requires_grad=True) * 2).detach(),
    }
    ref = store.put({**tensors, "graph": torch.ones(2, requires_grad=True) * 2}, sample_id="s0", metadata={})
    found, _ = store.get(ref)
    assert_same(found, tensors)
    assert not found["graph"].requires_grad


def test_metadata_of_an_earlier_ref_may_be_put_again(root):
    store = SharedDirFeatureStore(root, "st")
    old = put(store, ttt_length=7, target_repr="hidden_state")
    new = put(store, **old.metadata, codecs={"x": "zstd"})
    assert new.metadata == {**old.metadata, "generation": new.metadata["generation"]} and new.metadata["ttt_length"] == 7
    assert new.metadata["generation"] != old.metadata["generation"]


def test_some_names_in_any_order(root):
    store = SharedDirFeatureStore(root, "st")
    ref = store.put(sample(), sample_id="s0", metadata={})
    tensors, _ = store.get(ref, names=["loss_mask", "input_ids"])
    assert list(tensors) == ["loss_mask", "input_ids"]
    fewer = replace(ref, feature_keys={"input_ids": "s0/input_ids"})
    assert list(store.get(fewer)[0]) == ["input_ids"]
    assert list(store.get(fewer, names=["loss_mask"])[0]) == ["loss_mask"]  # as there: a feature that has no key is its own name
    with pytest.raises(KeyError, match="has no tensor 's0/y' for feature 'y'"):
        store.get(replace(ref, feature_keys={"input_ids": "s0/input_ids", "y": "s0/y"}))


@pytest.mark.parametrize("kind", ["shared", "local"])
def test_a_ref_by_either_keyword(root, kind):
    store = SharedDirFeatureStore(root, "st") if kind == "shared" else LocalFeatureStore()
    ref = put(store)
    for given in ({"sample_ref": ref}, {"ref": ref}):
        assert store.get(**given)[0]["x"].shape == (1, 4)
    for given in ({}, {"sample_ref": ref, "ref": ref}):
        with pytest.raises(TypeError, match="get needs one of sample_ref and ref"):
            store.get(**given)


@pytest.mark.parametrize("kind", ["shared", "local"])
def test_a_put_of_any_mapping(root, kind):
    store = SharedDirFeatureStore(root, "st") if kind == "shared" else LocalFeatureStore()
    tensors = UserDict({"x": torch.ones(2), "y": torch.zeros(3)})  # as transformers' BatchFeature is one
    ref = store.put(tensors, sample_id="s0", metadata=UserDict({"run_id": "q"}))
    assert (ref.run_id, ref.estimated_bytes) == ("q", 20)
    assert_same(store.get(ref)[0], dict(tensors))
    with pytest.raises(TypeError, match="'x' is a list"):
        store.put(UserDict({"x": [1]}), sample_id="s1", metadata={})
    with pytest.raises(ValueError, match="no tensors were given"):
        store.put(UserDict(), sample_id="s1", metadata={})


def test_a_ref_without_generation_or_specs_gets_what_is_there(root):
    store = SharedDirFeatureStore(root, "st")
    ref = store.put(sample(), sample_id="s0", metadata={})
    for known in (replace(ref, metadata={}), replace(ref, feature_specs={})):
        assert_same(store.get(known)[0], sample())
    with pytest.raises(KeyError):
        store.get(file_ref("gone"))


def test_a_get_that_fails_leaves_no_lease_and_consumes_nothing(root):
    store = SharedDirFeatureStore(root, "st")
    ref = put(store)
    with pytest.raises(KeyError, match="has no tensor 'y'"):
        store.get(ref, names=["y"])
    with pytest.raises(RuntimeError):
        store.get(ref, device="no such device")
    assert store.health()["active_leases"] == 0
    store.get(ref)


def test_damaged_bytes_are_never_handed_out(root):
    store = SharedDirFeatureStore(root, "st")
    ref = store.put({"x": torch.ones(1000)}, sample_id="s0", metadata={})
    path = os.path.join(root, "st", f"s0.g{ref.metadata['generation']}.ckpt")
    with open(path, "r+b") as file:
        file.seek(os.path.getsize(path) // 2)
        file.write(b"\xff\xff")
    with pytest.raises(draftflow.Corrupt):
        store.get(ref)
    assert store.health()["active_leases"] == 0


def test_it_serves_the_same_tensors_as_the_files(root, tmp_path):
    folder = write_files(tmp_path / "set", 3)
    local, shared = LocalFeatureStore(), SharedDirFeatureStore(root, "st")
    path = str(tmp_path / "refs.json")
    write_ref_manifest(ingest_offline_features(shared, folder, run_id="off"), path)
    for in_place, copied in zip(OfflineManifestReader(folder, run_id="off"), read_ref_manifest(path)):
        assert (in_place.sample_id, in_place.feature_specs) == (copied.sample_id, copied.feature_specs)
        assert_same(shared.get(copied)[0], local.get(in_place)[0])


def test_a_loader_consumes_it(root):
    store = SharedDirFeatureStore(root, "st")
    queue = SampleRefQueue()
    queue.put([put(store, f"s{i}", float(i)) for i in range(4)])
    sums = [batch.tensors["x"].sum().item() for batch in FeatureDataLoader(store, queue, batch_size=2)]
    assert get_returns_copies(store)  # so the loader need not clone again
    assert sums == [4.0, 20.0] and store.health()["resident_samples"] == 0 and queue.in_flight() == 0


def test_a_store_with_a_codec_is_read_back(root):
    os.mkdir(root)
    draftflow.Store.create(os.path.join(root, "st"), kind="consume-once", codec="zstd")
    store = SharedDirFeatureStore(root, "st")
    ref = store.put({"x": torch.zeros(10_000)}, sample_id="s0", metadata={})
    assert store.health()["resident_bytes"] < 40_000
    assert not store.get(ref)[0]["x"].any()
    assert ref.metadata["codecs"] == {"x": "zstd"}


def test_a_folder_of_the_reference_opens_and_stays_as_it_is(tmp_path):
    shutil.copytree(real_data("reference-store"), tmp_path / "copy")
    before = {path: open(path, "rb").read() for path in files_under(tmp_path)}
    store = SharedDirFeatureStore(str(tmp_path / "copy"), "st")
    refs = read_ref_manifest(str(tmp_path / "copy" / "manifest.json"))
    assert store.health()["resident_samples"] == len(refs) == 8
    for ref in refs:
        tensors, handle = store.get(ref)
        assert_same(tensors, torch.load(tmp_path / "copy" / "st" / f"{ref.sample_id}.g1.ckpt", weights_only=True))
        store.release(handle)
    store.abort(refs[0].sample_id)
    store.gc()
    with pytest.raises(ValueError, match="only read"):
        put(store)
    assert {path: open(path, "rb").read() for path in files_under(tmp_path)} == before
