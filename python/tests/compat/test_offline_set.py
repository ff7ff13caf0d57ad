# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gzip
import json
import os
import shutil

import pytest
import torch
from compat_refs import real_data
from data_plane_story import assert_same, file_ref, sample, write_files

import draftflow
from draftflow.compat.specforge.contracts import FeatureSpec
from draftflow.compat.specforge.data_plane import (
    LocalFeatureStore,
    OfflineManifestReader,
    ingest_offline_features,
    list_feature_files,
    load_feature_file,
    read_ref_manifest,
    write_ref_manifest,
)


class RunsWhenLoaded:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_files_are_listed_by_absolute_path(tmp_path, monkeypatch):
    for name in ("b/1.ckpt", "a/2.ckpt.gz", "a/1.ckpt", "a-b/1.ckpt", "a/notes.txt", "a/x.ckpt.tmp", "a/y.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    expected = [str(tmp_path / name) for name in ("a-b/1.ckpt", "a/1.ckpt", "a/2.ckpt.gz", "b/1.ckpt")]
    assert list_feature_files(".") == list_feature_files(str(tmp_path)) == expected
    assert list_feature_files("b/1.ckpt") == [str(tmp_path / "b/1.ckpt")]
    assert list_feature_files("nowhere") == []


def test_a_file_is_read_plain_and_packed(tmp_path):
    torch.save(sample(3), tmp_path / "a.ckpt")
    (tmp_path / "a.ckpt.gz").write_bytes(gzip.compress((tmp_path / "a.ckpt").read_bytes()))
    assert_same(load_feature_file(str(tmp_path / "a.ckpt")), sample(3))
    assert_same(load_feature_file(str(tmp_path / "a.ckpt.gz")), sample(3))


def test_nothing_in_a_file_is_ever_run(tmp_path):
    torch.save({"input_ids": RunsWhenLoaded(str(tmp_path / "ran"))}, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="posix.mkdir"):
        load_feature_file(str(tmp_path / "a.ckpt"))
    with pytest.raises(ValueError, match="posix.mkdir"):
        OfflineManifestReader(str(tmp_path)).read()
    assert not (tmp_path / "ran").exists()


def test_the_reader_says_what_is_in_each_file(tmp_path):
    folder = write_files(tmp_path / "set", 3)
    refs = OfflineManifestReader(folder, run_id="run", target_model_version="m", tokenizer_version="k").read()
    assert [ref.sample_id for ref in refs] == ["run:00000000", "run:00000001", "run:00000002"]
    ref = refs[1]
    assert ref.feature_store_uri == f"file://{folder}/001.ckpt"
    assert ref.feature_keys == {name: name for name in sample()}
    assert ref.feature_specs["aux_hidden_state"] == FeatureSpec("aux_hidden_state", (1, 8, 12), "bfloat16")
    assert (ref.run_id, ref.source_task_id, ref.strategy, ref.schema_version) == ("run", None, "eagle3", 1)
    assert (ref.target_model_version, ref.tokenizer_version) == ("m", "k")
    assert (ref.num_tokens, ref.estimated_bytes) == (8, 2 * 64 + 2 * 8 * 16)
    assert ref.metadata == {
        "format": "offline_eagle3",
        "target_repr": "hidden_state",
        "schema_version": 1,
        "ttt_length": 7,
        "max_len": 2048,
        "file_index": 1,
    }


def test_the_reader_takes_other_keys_and_options(tmp_path):
    torch.save({"tokens": torch.arange(3)}, tmp_path / "a.ckpt")
    reader = OfflineManifestReader(
        str(tmp_path), strategy="dflash", feature_keys=["tokens"], ttt_length=3, max_len=16, target_repr=None
    )
    [ref] = list(reader)
    assert (ref.sample_id, ref.strategy, ref.num_tokens) == ("offline:00000000", "dflash", 0)
    assert (ref.metadata["format"], ref.metadata["target_repr"]) == ("offline_dflash", None)
    assert (ref.metadata["ttt_length"], ref.metadata["max_len"]) == (3, 16)


def test_the_reader_reads_no_more_files_than_it_is_asked_for(tmp_path):
    write_files(tmp_path, 2)
    (tmp_path / "002.ckpt").write_bytes(b"damaged")
    assert len(OfflineManifestReader(str(tmp_path)).read(limit=2)) == 2
    assert OfflineManifestReader(str(tmp_path)).read(limit=0) == []
    assert len(OfflineManifestReader(str(tmp_path), validate_files=False).read()) == 3
    with pytest.raises(draftflow.Corrupt, match="002.ckpt"):
        OfflineManifestReader(str(tmp_path)).read()


def test_without_validation_nothing_is_filled_in(tmp_path):
    [ref] = OfflineManifestReader(write_files(tmp_path, 1), validate_files=False).read()
    assert (ref.feature_specs, ref.num_tokens, ref.estimated_bytes) == ({}, 0, 0)
    assert_same(LocalFeatureStore().get(ref)[0], sample())


def test_a_file_that_lacks_a_key_is_named(tmp_path):
    torch.save({"input_ids": torch.arange(4)}, tmp_path / "bad.ckpt")
    with pytest.raises(KeyError, match=r"bad.ckpt lacks \['loss_mask', 'hidden_state', 'aux_hidden_state'\]"):
        OfflineManifestReader(str(tmp_path)).read()
    with pytest.raises(KeyError, match="bad.ckpt lacks"):
        ingest_offline_features(LocalFeatureStore(), str(tmp_path))


@pytest.mark.parametrize("value", ["not a tensor", 7, 1.5, None, [1, 2], {"a": 1}])
def test_a_value_that_is_no_tensor_is_a_type_error(tmp_path, value):
    torch.save({**sample(), "hidden_state": value}, tmp_path / "bad.ckpt")
    with pytest.raises(TypeError, match=f"bad.ckpt: 'hidden_state' is a {type(value).__name__}"):
        OfflineManifestReader(str(tmp_path)).read()
    with pytest.raises(TypeError, match=f"bad.ckpt: 'hidden_state' is a {type(value).__name__}"):
        ingest_offline_features(LocalFeatureStore(), str(tmp_path))
    with pytest.raises(TypeError, match=f"bad.ckpt: 'hidden_state' is a {type(value).__name__}"):
        LocalFeatureStore().get(file_ref(feature_store_uri=f"file://{tmp_path}/bad.ckpt", feature_keys={"h": "hidden_state"}))


# It was a TypeError of every reader, whatever the key; there only a key that is needed matters.
@pytest.mark.parametrize("packed", [False, True], ids=["", "gz"])
@pytest.mark.parametrize("value", ["text", 7, 1.5, None, True, [1, torch.ones(1)], (1, 2), {"a": {"b": torch.ones(1)}}], ids=repr)
def test_a_value_that_is_no_tensor_under_a_key_that_nobody_asks_for(tmp_path, value, packed):
    path = tmp_path / "0.ckpt"
    torch.save({**sample(), "more": value}, path)
    if packed:
        (tmp_path / "0.ckpt.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
        path = tmp_path / "0.ckpt.gz"
    [ref] = OfflineManifestReader(str(tmp_path)).read()
    assert ref.feature_specs.keys() == sample().keys()
    assert_same(LocalFeatureStore().get(ref)[0], sample())
    store = LocalFeatureStore()
    assert_same(store.get(ingest_offline_features(store, str(tmp_path))[0])[0], sample())
    loaded = load_feature_file(path)
    assert_same(loaded, sample())
    with pytest.raises(TypeError, match=f"'more' is a {type(value).__name__}: tensors are read, and nothing else"):
        loaded["more"]
    with pytest.raises(KeyError):
        loaded["less"]
    [dflash] = OfflineManifestReader(str(tmp_path), strategy="dflash", feature_keys=["input_ids"], validate_files=False).read()
    assert list(LocalFeatureStore().get(dflash)[0]) == ["input_ids"]


def test_objects_of_other_kinds_are_refused_wherever_they_stand(tmp_path):
    torch.save({**sample(), "more": torch.Size([1])}, tmp_path / "0.ckpt")
    with pytest.raises(ValueError, match="torch.Size"):
        OfflineManifestReader(str(tmp_path)).read()


def test_a_folder_by_either_keyword(tmp_path):
    folder = write_files(tmp_path / "set", 1)
    for given in ({"hidden_states_path": folder}, {"path": folder}):
        reader = OfflineManifestReader(**given)
        assert reader.hidden_states_path == reader.path == folder and len(reader.read()) == 1
        assert len(ingest_offline_features(LocalFeatureStore(), **given)) == 1
    assert len(ingest_offline_features(store=LocalFeatureStore(), hidden_states_path=folder)) == 1
    reader.path = "elsewhere"
    assert reader.hidden_states_path == "elsewhere"
    for given in ({}, {"hidden_states_path": folder, "path": folder}):
        with pytest.raises(TypeError, match="needs one of hidden_states_path and path"):
            OfflineManifestReader(**given)
        with pytest.raises(TypeError, match="needs one of hidden_states_path and path"):
            ingest_offline_features(LocalFeatureStore(), **given)


def test_ingest_puts_every_file_in_order(tmp_path):
    store = LocalFeatureStore("st")
    refs = ingest_offline_features(store, write_files(tmp_path, 3), ttt_length=5, max_len=64)
    assert [ref.sample_id for ref in refs] == ["disagg:00000000", "disagg:00000001", "disagg:00000002"]
    for i, ref in enumerate(refs):
        assert_same(store.get(ref)[0], sample(i))
        assert (ref.run_id, ref.strategy, ref.num_tokens) == ("disagg", "eagle3", 8)
        assert ref.metadata == {
            "run_id": "disagg",
            "strategy": "eagle3",
            "format": "offline_eagle3",
            "target_repr": "hidden_state",
            "ttt_length": 5,
            "max_len": 64,
            "file_index": i,
        }
    assert len(ingest_offline_features(store, str(tmp_path), run_id="r", limit=2)) == 2


def test_a_manifest_goes_there_and_back(tmp_path):
    store = LocalFeatureStore("st")
    refs = ingest_offline_features(store, write_files(tmp_path / "set", 3), run_id="run")
    path = str(tmp_path / "new folder" / "refs.json")
    write_ref_manifest(refs, path)
    assert read_ref_manifest(path) == refs
    assert os.listdir(tmp_path / "new folder") == ["refs.json"]
    with open(path) as file:
        payload = json.load(file)
    assert list(payload) == ["schema_version", "refs"] and payload["schema_version"] == 1
    assert list(payload["refs"][0]) == [
        *("sample_id", "run_id", "source_task_id", "feature_store_uri", "feature_keys", "feature_specs", "strategy"),
        *("schema_version", "target_model_version", "draft_weight_version", "tokenizer_version", "num_tokens"),
        *("estimated_bytes", "metadata"),
    ]
    assert_same(store.get(read_ref_manifest(path)[0])[0], sample(0))


def test_a_manifest_holds_no_tensor_and_what_was_there_stays(tmp_path, monkeypatch):
    path = str(tmp_path / "refs.json")
    write_ref_manifest([file_ref("a")], path)
    with pytest.raises(TypeError, match="metadata.*smuggled"):
        write_ref_manifest([file_ref("b", metadata={"smuggled": torch.ones(1)})], path)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no")))
    with pytest.raises(OSError):
        write_ref_manifest([file_ref("b")], path)
    assert [ref.sample_id for ref in read_ref_manifest(path)] == ["a"] and os.listdir(tmp_path) == ["refs.json"]


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"schema_version": 999, "refs": []}', "the manifest has schema_version 999: this program knows 1"),
        ("[]", "is no manifest"),
        ('{"schema_version": 1}', "is no manifest"),
        ('{"schema_version": 1, "refs": [7]}', "ref 0 is no sample ref"),
        ('{"schema_version": 1, "refs": [{"sample_id": "s"}]}', "ref 0 is no sample ref"),
        ("no json", ""),
    ],
)
def test_a_manifest_that_cannot_be_understood_is_refused(tmp_path, text, message):
    path = tmp_path / "refs.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_ref_manifest(str(path))


def test_a_ref_of_another_schema_version_is_refused_when_read(tmp_path):
    path = str(tmp_path / "refs.json")
    write_ref_manifest([file_ref("a"), file_ref("b", schema_version=2)], path)
    with pytest.raises(ValueError, match="ref 1, sample 'b', has schema_version 2: this program knows 1"):
        read_ref_manifest(path)


def test_the_manifest_of_the_reference_reads(tmp_path):
    refs = read_ref_manifest(str(real_data("reference-store/manifest.json")))
    assert len(refs) == 8 and refs[2].sample_id == "stories:00000002"
    assert refs[2].feature_specs["aux_hidden_state"] == FeatureSpec("aux_hidden_state", (1, 192, 192), "bfloat16")
    write_ref_manifest(refs, str(tmp_path / "again.json"))
    with open(real_data("reference-store/manifest.json")) as theirs, open(tmp_path / "again.json") as ours:
        assert json.load(ours) == json.load(theirs)


def test_real_files_of_torch_become_refs(tmp_path):
    source = real_data("features-torch")
    for name in ("0000.ckpt", "0001.ckpt"):
        shutil.copy(source / name, tmp_path / name)
    refs = OfflineManifestReader(str(tmp_path), run_id="stories").read()
    store = LocalFeatureStore()
    for ref, name in zip(refs, ("0000.ckpt", "0001.ckpt")):
        expected = torch.load(source / name, weights_only=True)
        assert_same(store.get(ref)[0], expected)
        assert ref.num_tokens == expected["input_ids"].numel()


def test_a_path_where_nothing_is_is_no_empty_set(tmp_path):
    absent = tmp_path / "featurse"
    with pytest.raises(FileNotFoundError) as found:
        OfflineManifestReader(str(absent)).read()
    assert found.value.filename == str(absent) and "no folder of feature files" in str(found.value)
    absent.mkdir()
    assert OfflineManifestReader(str(absent)).read() == []
