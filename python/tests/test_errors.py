# SPDX-License-Identifier: Apache-2.0
"""Each error is its own class and the built-in that Python code expects; its text is the message."""

import os
import pickle
import sqlite3

import pytest
import torch

import draftflow
from stage import name, sample

BUILT_IN = {
    draftflow.InvalidArgument: ValueError,
    draftflow.NotFound: KeyError,
    draftflow.PermissionDenied: PermissionError,
    draftflow.Exhausted: MemoryError,
    draftflow.Conflict: RuntimeError,
    draftflow.Corrupt: RuntimeError,
    draftflow.Unavailable: ConnectionError,
    draftflow.InDoubt: RuntimeError,
}


@pytest.mark.parametrize("kind", BUILT_IN, ids=lambda kind: kind.__name__)
def test_each_is_a_built_in_too_and_says_its_message(kind):
    error = kind("store 'x': what was found")
    assert isinstance(error, draftflow.Error) and isinstance(error, BUILT_IN[kind])
    assert str(error) == "store 'x': what was found" == f"{error}"
    assert str(kind()) == ""
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind and str(again) == str(error)


def caught(kind, call):
    """What the built-in's `except` catches."""
    with pytest.raises(BUILT_IN[kind]) as found:
        call()
    assert type(found.value) is kind
    assert str(found.value) == found.value.args[0]
    return str(found.value)


def test_invalid_argument(store):
    assert "'never'" in caught(draftflow.InvalidArgument, lambda: draftflow.Store.create("mem://x", kind="never"))
    ledger = draftflow.Ledger.open("mem://")
    assert "kind is 'x'" in caught(draftflow.InvalidArgument, lambda: ledger.declare_group("g", kind="x"))
    assert "http://a" in caught(draftflow.InvalidArgument, lambda: draftflow.Store.create("http://a"))
    assert "'always'" in caught(draftflow.InvalidArgument, lambda: draftflow.Store.create("mem://x", durability="always"))
    assert "'flat'" in caught(draftflow.InvalidArgument, lambda: draftflow.Store.create("mem://x", layout="flat"))
    assert "tail is 'x'" in caught(draftflow.InvalidArgument, lambda: ledger.declare_group("g", window=1, tail="x"))
    caught(draftflow.InvalidArgument, lambda: store.put(sample(0), "a\0b"))
    caught(draftflow.InvalidArgument, lambda: store.put(sample(0), "x" * 1025))


def test_not_found(store, tmp_path):
    ref = store.put(sample(0), "sample one")
    store.remove(ref)
    text = caught(draftflow.NotFound, lambda: store.get(ref))
    assert "sample one" in text and str(ref.generation) in text
    caught(draftflow.NotFound, lambda: store.find("sample two"))
    caught(draftflow.NotFound, lambda: draftflow.Store.open(str(tmp_path / "absent")))
    caught(draftflow.NotFound, lambda: draftflow.Ledger.open(str(tmp_path / "absent.sqlite3"), read_only=True))
    caught(draftflow.NotFound, lambda: draftflow.load_feature_file(tmp_path / "absent.ckpt"))


def test_permission_denied(tmp_path):
    with draftflow.Store.create(str(tmp_path / "sealed"), secret=b"correct horse battery") as store:
        ref = store.put(sample(0), "s")
    for options in ({}, {"secret": b"wrong horse battery"}):
        text = caught(draftflow.PermissionDenied, lambda: draftflow.Store.open(str(tmp_path / "sealed"), **options))
        assert "horse" not in text
    assert draftflow.Store.open(str(tmp_path / "sealed"), secret=b"correct horse battery").read(ref)


def test_exhausted(tmp_path):
    for url in ("mem://small", str(tmp_path / "store")):
        with draftflow.Store.create(url, max_resident_bytes=1000) as store:
            text = caught(draftflow.Exhausted, lambda: store.put({"x": torch.zeros(1001, dtype=torch.uint8)}, "s"))
            assert "1000" in text.replace(",", "") and "1001" in text.replace(",", "")
            assert store.health()["resident_samples"] == 0


def test_conflict(store, ledger):
    ledger.declare("k", "one")
    text = caught(draftflow.Conflict, lambda: ledger.declare("k", "two"))
    assert "one" in text and "two" in text
    ledger.ingest_prompts([draftflow.PromptTask(name(0), run_id="run", payload="p")])
    (lease,), _ = ledger.lease_prompts("a")
    ledger.return_leases("a")
    (taken,), _ = ledger.lease_prompts("b")
    caught(draftflow.Conflict, lambda: store.put(sample(0), name(0), fence=ledger.fence(lease)))
    assert store.health()["resident_samples"] == 0
    ref = store.put(sample(0), name(0), fence=ledger.fence(taken))
    caught(draftflow.Conflict, lambda: ledger.commit_sample(ref, lease))
    ledger.commit_sample(ref, taken)
    assert not ledger.extend_lease(lease) and ledger.status()["committed"] == 1


def test_corrupt(folder_store, tmp_path):
    ref = folder_store.put({"x": torch.zeros(5000)}, "s")
    (path,) = [found.path for found in folder_store.resident()]
    with open(path, "r+b") as file:
        file.seek(-7, os.SEEK_END)
        file.write(b"\1")
    for options in ({}, {"zero_copy": True}):
        assert "'x'" in caught(draftflow.Corrupt, lambda: folder_store.get(ref, **options))
    caught(draftflow.Corrupt, lambda: draftflow.SampleRef.from_json("{}"))
    (tmp_path / "bad.ckpt").write_bytes(b"PK\3\4 nothing")
    caught(draftflow.Corrupt, lambda: draftflow.load_feature_file(tmp_path / "bad.ckpt"))
    (tmp_path / "bad.sqlite3").write_bytes(b"no database" * 100)
    caught(draftflow.Corrupt, lambda: draftflow.Ledger.open(str(tmp_path / "bad.sqlite3")))


def test_a_strangers_database_is_not_taken(tmp_path):
    with sqlite3.connect(tmp_path / "other.sqlite3") as other:
        other.execute("CREATE TABLE t(a)")
    with pytest.raises(draftflow.Error):
        draftflow.Ledger.open(str(tmp_path / "other.sqlite3"))


def test_wrong_types_are_type_errors(store, ledger):
    ref = store.put(sample(0), name(0))
    for call in (
        lambda: store.put([1, 2], "s"),
        lambda: store.put(sample(0), 7),
        lambda: store.get("a name"),
        lambda: store.put(sample(0), "s", metadata={"tensor": torch.zeros(2)}),
        lambda: store.put(sample(0), "s", metadata={"nan": float("nan")}),
        lambda: store.put(sample(0), "s", metadata={1: 2}),
        lambda: ledger.commit_samples(ref),
        lambda: ledger.commit_samples([name(0)]),
        lambda: draftflow.Store(),
        lambda: draftflow.Ledger(),
    ):
        with pytest.raises(TypeError):
            call()
    with pytest.raises(TypeError, match=r"metadata\['tensor'\]"):
        store.put(sample(0), "s", metadata={"tensor": torch.zeros(2)})
    with pytest.raises(AttributeError, match="'draftflow' has no attribute 'nothing'"):
        draftflow.nothing


def test_a_key_error_of_a_tensors_name(store):
    ref = store.put(sample(0), name(0))
    with store.get(ref):
        pass
    with pytest.raises(KeyError, match="absent"):
        store.get(ref)["absent"]
    with pytest.raises(draftflow.NotFound, match="absent"):
        store.get(ref, names=["absent"])


def test_the_public_names_are_there():
    for public in draftflow.__all__:
        assert getattr(draftflow, public) is not None
    assert set(BUILT_IN) <= {getattr(draftflow, public) for public in draftflow.__all__}
    assert draftflow.__version__ == draftflow._core.__version__


@pytest.mark.parametrize("call", [draftflow.Store.create, draftflow.Store.open])
def test_a_secret_of_a_wrong_type_is_not_shown(tmp_path, call):
    with pytest.raises(TypeError, match="secret is a str: bytes are taken") as raised:
        call(tmp_path / "st", secret="a secret text")
    assert "a secret text" not in str(raised.value)
