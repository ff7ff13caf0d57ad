# SPDX-License-Identifier: Apache-2.0
"""Files that others read and write: torch's zips, safetensors, manifests, and a folder of the reference runtime."""

import gzip
import json
import pickle
import sqlite3
import zipfile

import numpy
import pytest
import torch

import draftflow
from stage import data_folder, name, sample

TENSORS = {
    "flags": torch.tensor([True, False, True]),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "ids": torch.arange(6).reshape(2, 3),
    "halves": torch.randn(2, 2).to(torch.float16),
    "brain": torch.randn(1, 4, 3).to(torch.bfloat16),
    "scalar": torch.tensor(2.5),
    "nothing": torch.zeros(0, 4),
}


def same(found, wanted):
    assert list(found) == list(wanted)
    for key, tensor in wanted.items():
        assert found[key].dtype == tensor.dtype and torch.equal(found[key], tensor)


def test_torch_loads_what_is_written_here(tmp_path):
    draftflow.save_feature_file(tmp_path / "a.ckpt", {**TENSORS, "strided": torch.arange(6).reshape(2, 3).t()})
    same(torch.load(tmp_path / "a.ckpt", weights_only=True), {**TENSORS, "strided": torch.arange(6).reshape(2, 3).t()})
    same(torch.load(tmp_path / "a.ckpt"), {**TENSORS, "strided": torch.arange(6).reshape(2, 3).t()})
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


def test_what_torch_writes_is_loaded_here(tmp_path):
    whole = torch.arange(24.0).reshape(4, 6)
    written = {**TENSORS, "column": whole[:, 1:3], "turned": whole.t()}
    torch.save(written, tmp_path / "a.ckpt")
    same(draftflow.load_feature_file(tmp_path / "a.ckpt"), written)
    with gzip.open(tmp_path / "b.ckpt.gz", "wb") as packed:
        torch.save(TENSORS, packed)
    same(draftflow.load_feature_file(tmp_path / "b.ckpt.gz"), TENSORS)
    arrays = draftflow.load_feature_file(tmp_path / "a.ckpt", framework="draftflow")
    assert arrays["brain"].dtype == "bfloat16" and arrays["brain"].shape == (1, 4, 3)
    assert isinstance(draftflow.load_feature_file(tmp_path / "a.ckpt", framework="draftflow")["ids"].numpy(), numpy.ndarray)


def test_safetensors_go_both_ways(tmp_path):
    draftflow.save_feature_file(tmp_path / "a.safetensors", TENSORS)
    with open(tmp_path / "a.safetensors", "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        rest = file.read()
    begin, end = header["ids"]["data_offsets"]
    assert (header["ids"]["dtype"], header["ids"]["shape"]) == ("I64", [2, 3])
    assert rest[begin:end] == TENSORS["ids"].numpy().tobytes()
    found = draftflow.load_feature_file(tmp_path / "a.safetensors")
    assert set(found) == set(TENSORS)
    same({key: found[key] for key in TENSORS}, TENSORS)


class Code:
    def __init__(self, marker):
        self._marker = marker

    def __reduce__(self):
        return open, (str(self._marker), "w")


def test_code_in_a_file_is_refused_and_never_runs(tmp_path):
    marker = tmp_path / "it-ran"
    values = {"in": {"x": torch.ones(2), "evil": Code(marker)}, "top": Code(marker), "deep": {"x": [Code(marker)]}}
    for place, value in values.items():
        torch.save(value, tmp_path / f"{place}.ckpt")
        with pytest.raises((draftflow.InvalidArgument, draftflow.Corrupt)):
            draftflow.load_feature_file(tmp_path / f"{place}.ckpt")
        with pytest.raises((draftflow.InvalidArgument, draftflow.Corrupt)):
            draftflow.make_file_ref(tmp_path / f"{place}.ckpt", "s")
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps(Code(marker)))
    with pytest.raises(draftflow.Error):
        draftflow.load_feature_file(tmp_path / "plain.ckpt")
    assert not marker.exists()
    torch.load(tmp_path / "top.ckpt", weights_only=False).close()
    assert marker.exists()  # it would have


def test_a_value_that_is_no_tensor_is_named(tmp_path):
    torch.save({"x": torch.ones(2), "epoch": 3}, tmp_path / "a.ckpt")
    with pytest.raises(draftflow.InvalidArgument, match="epoch"):
        draftflow.load_feature_file(tmp_path / "a.ckpt")


def test_saving_replaces_whole_or_not_at_all(tmp_path):
    for ending in ("ckpt", "safetensors"):
        path = tmp_path / f"a.{ending}"
        draftflow.save_feature_file(path, {"x": torch.ones(2)})
        before = path.read_bytes()
        with pytest.raises(TypeError, match="'bad'"):
            draftflow.save_feature_file(path, {"x": torch.zeros(2), "bad": object()})
        assert path.read_bytes() == before
    with pytest.raises(draftflow.Error, match="absent"):
        draftflow.save_feature_file(tmp_path / "absent" / "a.ckpt", {"x": torch.ones(2)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ckpt", "a.safetensors"]


def test_files_are_used_where_they_lie(tmp_path, ledger):
    for number in range(4):
        torch.save(sample(number), tmp_path / f"{number}.ckpt")
    files = draftflow.list_feature_files(tmp_path)
    assert [str(path) for path in files] == [str(tmp_path / f"{number}.ckpt") for number in range(4)]
    refs = [draftflow.make_file_ref(path, name(number)) for number, path in enumerate(files)]
    assert refs[2].num_tokens == 5 and refs[2].feature_store_uri == f"file://{tmp_path}/2.ckpt"
    ledger.declare("kind", "offline")
    ledger.commit_samples(refs)
    with draftflow.Store.open("file://") as store:
        same(store.read(refs[1]), sample(1))
        assert {batch["input_ids"][0, 0].item() for batch in draftflow.Stream(store, ledger, window=1)} == {0, 1, 2, 3}
        store.remove(refs[1])
        with pytest.raises(draftflow.InvalidArgument):
            store.put(sample(0), "s")
    assert len(list(tmp_path.glob("*.ckpt"))) == 4


@pytest.mark.parametrize("url", ["mem://", "file"])
def test_feature_files_are_ingested_in_one_call(tmp_path, url):
    folder = tmp_path / "features"
    folder.mkdir()
    for number in range(4):
        draftflow.save_feature_file(folder / f"{number}.ckpt", sample(number))
    bad = {**sample(9), "hidden_state": torch.full((1, 4, 8), float("nan"))}
    draftflow.save_feature_file(folder / "5.ckpt", bad)
    ledger = draftflow.Ledger.open(url if url == "mem://" else tmp_path / "offline.sqlite3")
    report = ledger.ingest_features(folder, run_id="set")
    assert list(report["failed"]) == [str(folder / "5.ckpt")] and "holds NaN" in report["failed"][str(folder / "5.ckpt")]
    tokens = sum(sample(number)["input_ids"].numel() for number in range(4))
    assert (report["files"], report["committed"], report["already"], report["tokens"]) == (5, 4, 0, tokens)
    assert ledger.all_committed_ids() == [f"set:{number:08d}" for number in range(4)]
    assert sum(ledger.token_counts().values()) == tokens and ledger.declared("kind") == "offline"
    again = ledger.ingest_features(str(folder), run_id="set")
    assert (again["committed"], again["already"]) == (0, 4) and sum(ledger.token_counts().values()) == tokens
    batches = list(draftflow.Stream(draftflow.Store.open("file://"), ledger, window=2))
    assert len(batches) == 2 and not any(batch.failed for batch in batches)


def test_a_file_may_hold_other_values_beside_its_tensors(tmp_path):
    torch.save({**sample(0), "comment": "by hand", "seed": 7, "nothing": None}, tmp_path / "0.ckpt")
    torch.save({**sample(1), "aux_hidden_state": None}, tmp_path / "1.ckpt")
    ledger = draftflow.Ledger.open("mem://")
    report = ledger.ingest_features(tmp_path)
    assert report["committed"] == 1
    assert "'aux_hidden_state' is a NoneType: a tensor is needed" in report["failed"][str(tmp_path / "1.ckpt")]
    ref = ledger.get_committed("offline:00000000")
    assert sorted(spec.name for spec in ref.feature_specs.values()) == sorted(sample(0))
    with draftflow.Store.open("file://") as store:
        same(store.read(ref), sample(0))


@pytest.mark.parametrize("padding", range(4))
def test_tensors_of_one_storage_share_it_where_a_zip_is_not_aligned(tmp_path, padding):
    storage = torch.arange(2000.0)
    torch.save({f"t{i}": storage for i in range(100)}, tmp_path / "torch.ckpt")
    folder = tmp_path / "theirs"
    folder.mkdir()
    with zipfile.ZipFile(tmp_path / "torch.ckpt") as torchs, zipfile.ZipFile(folder / "s.g1.ckpt", "w") as packed:
        packed.writestr("torch/" + "p" * padding, "")  # moves what follows
        for entry in torchs.infolist():
            packed.writestr(zipfile.ZipInfo("torch/" + entry.filename.split("/", 1)[1]), torchs.read(entry))
    with draftflow.Store.open(folder) as store:
        tensors = store.read(store.find("s"))
    assert len({tensor.data_ptr() for tensor in tensors.values()}) == 1
    assert all(torch.equal(tensor, storage) for tensor in tensors.values())


def test_files_are_ingested_in_their_order(tmp_path):
    for number in range(3):
        draftflow.save_feature_file(tmp_path / f"{number}.ckpt", sample(number))
    ledger = draftflow.Ledger.open("mem://")
    files = [tmp_path / "2.ckpt", str(tmp_path / "0.ckpt")]
    assert ledger.ingest_features(iter(files))["committed"] == 2
    assert ledger.get_committed("offline:00000000").feature_store_uri == f"file://{tmp_path}/2.ckpt"
    other = draftflow.Ledger.open("mem://")
    assert other.ingest_features(tmp_path / "1.ckpt")["committed"] == 1
    assert other.ingest_features(tmp_path, run_id="all", limit=2)["committed"] == 2
    for wrong, kind, said in (
        ([], ValueError, "the list is empty"),
        (tmp_path / "nowhere", KeyError, "nowhere"),
        ([tmp_path / "gone.ckpt"], draftflow.Corrupt, "none of the 1 feature files could be used; of .*gone.ckpt it is said"),
    ):
        with pytest.raises(kind, match=said):
            other.ingest_features(wrong, run_id="wrong")
    with pytest.raises(ValueError, match="strategy 'medusa' is not known"):
        other.ingest_features(tmp_path, strategy="medusa")
    other.close()
    with pytest.raises(ValueError, match="was closed"):
        other.ingest_features(tmp_path)


def test_a_ledger_is_exported_and_imported(tmp_path, store, ledger):
    refs = [store.put(sample(number), f"s{number}") for number in range(3)]
    ledger.commit_samples(refs)
    ledger.declare_group("g", window=2)
    ledger.export(tmp_path / "run.jsonl")
    copy = draftflow.Ledger.open(tmp_path / "copy.sqlite3")
    copy.import_(tmp_path / "run.jsonl")
    assert copy.id == ledger.id and copy.all_committed_ids() == ["s0", "s1", "s2"] and copy.check() == []
    assert copy.get_committed("s1") == refs[1] and copy.status()["groups"]["g"]["window"] == 2
    with pytest.raises(draftflow.Conflict, match="is not empty"):
        copy.import_(tmp_path / "run.jsonl")
    cut = (tmp_path / "run.jsonl").read_text()
    (tmp_path / "cut.jsonl").write_text(cut[: len(cut) // 2])
    empty = draftflow.Ledger.open(tmp_path / "empty.sqlite3")
    with pytest.raises(draftflow.Corrupt, match="nothing was imported"):
        empty.import_(tmp_path / "cut.jsonl")
    with pytest.raises(draftflow.NotFound, match="there is no file"):
        empty.import_(tmp_path / "nothing")
    with pytest.raises(ValueError, match="is a ledger of draftflow: export it"):
        empty.import_(tmp_path / "copy.sqlite3")
    assert empty.status()["committed"] == 0
    with pytest.raises(ValueError, match="memory"):
        draftflow.Ledger.open("mem://").export(tmp_path / "m.jsonl")
    assert sorted(path.name for path in tmp_path.glob("*.jsonl*")) == ["cut.jsonl", "run.jsonl"]


def test_a_ledger_of_the_reference_is_taken_over(ledger):
    folder = data_folder("reference-store")
    ledger.import_(folder / "ledger.sqlite3")
    refs = draftflow.read_ref_manifest(folder / "manifest.json")
    assert ledger.all_committed_ids() == [ref.sample_id for ref in refs]


def test_manifests_and_refs_keep_what_they_do_not_know(tmp_path, store):
    ref = store.put(sample(0), "ünusual/../id\n🙂", metadata={"kept": [1, {"a": None}]}, source_task_id="t")
    text = json.loads(ref.to_json())
    text["future_field"] = {"x": 1}
    again = draftflow.SampleRef.from_json(json.dumps(text))
    assert json.loads(again.to_json())["future_field"] == {"x": 1}
    draftflow.write_ref_manifest(tmp_path / "manifest.json", [ref, again])
    assert draftflow.read_ref_manifest(tmp_path / "manifest.json") == [ref, again]
    assert pickle.loads(pickle.dumps(ref)) == ref and hash(pickle.loads(pickle.dumps(ref))) == hash(ref)
    assert ref != again and ref != "ref" and ref.metadata["kept"] == [1, {"a": None}]
    same(store.read(draftflow.SampleRef.from_json(ref.to_json())), sample(0))
    text["schema_version"] = 999
    with pytest.raises(draftflow.Error, match="999"):
        draftflow.SampleRef.from_json(json.dumps(text))


def test_a_folder_of_the_reference_opens_as_it_is(ledger):
    folder = data_folder("reference-store")
    refs = draftflow.read_ref_manifest(folder / "manifest.json")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with draftflow.Store.open(str(folder / "st")) as store:
        assert store.health()["read_only"] or store.health()["resident_samples"] == len(refs) == 8
        for ref in refs:
            wanted = torch.load(folder / "st" / f"{ref.sample_id}.g1.ckpt", weights_only=True)
            with store.get(ref) as found:
                assert set(found) == set(wanted) == set(ref.feature_specs)
                assert all(torch.equal(found[key], wanted[key]) for key in wanted)
        with pytest.raises(draftflow.InvalidArgument):
            store.put(sample(0), "s")
        assert ledger.commit_samples(refs) == 8
        ledger.close_prompts()
        batches = list(draftflow.Stream(store, ledger, group="g", window=4, batch_size=2))
        assert [ident for batch in batches for ident in batch.sample_ids] == [ref.sample_id for ref in refs]
        assert not any(batch.failed for batch in batches)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    with sqlite3.connect(f"file:{folder / 'ledger.sqlite3'}?immutable=1", uri=True) as theirs:
        rows = theirs.execute("SELECT ref_json FROM committed ORDER BY rowid").fetchall()
    assert [draftflow.SampleRef.from_json(text) for (text,) in rows] == refs


def test_real_feature_files_of_torch_are_read(ledger):
    files = draftflow.list_feature_files(data_folder("features-torch"))
    assert len(files) == 64
    for path in files[:8]:
        same(draftflow.load_feature_file(path), torch.load(path, weights_only=True))


def test_partitions_are_those_of_the_reference():
    with open(data_folder("dp_partition_vectors.json")) as file:
        vectors = json.load(file)
    assert vectors
    for count, pairs in vectors.items():
        assert [draftflow.dp_partition(ident, int(count)) for ident, _ in pairs] == [wanted for _, wanted in pairs]
