# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import logging
import os
import threading

import numpy
import pytest
import torch
from data_plane_story import Clock, assert_same, file_ref, in_another_process, sample, write_files

from draftflow.compat.specforge.contracts import FeatureHandle, FeatureSpec, assert_no_tensors
from draftflow.compat.specforge.data_plane import FeatureStore, LocalFeatureStore, OfflineManifestReader, spec_from_tensor


def put(store: LocalFeatureStore, sample_id: str = "s0", floats: int = 8, **metadata: object):
    return store.put({"x": torch.zeros(1, floats)}, sample_id=sample_id, metadata=metadata)


def test_put_fills_the_ref_and_the_rest_of_the_metadata_stays():
    store = LocalFeatureStore("st")
    metadata = {
        "run_id": "run",
        "source_task_id": "t1",
        "strategy": "dflash",
        "target_model_version": "m",
        "draft_weight_version": "d",
        "tokenizer_version": "k",
        "num_tokens": 8,
        "ttt_length": 7,
    }
    ref = store.put(sample(), sample_id="a/b c", metadata=metadata)
    assert (ref.sample_id, ref.run_id, ref.source_task_id, ref.strategy) == ("a/b c", "run", "t1", "dflash")
    assert (ref.target_model_version, ref.draft_weight_version, ref.tokenizer_version) == ("m", "d", "k")
    assert (ref.schema_version, ref.num_tokens, ref.estimated_bytes) == (1, 8, 8 * 8 * 2 + 2 * 8 * 16)
    assert ref.feature_keys == {name: f"a/b c/{name}" for name in sample()}
    assert ref.feature_specs["hidden_state"] == FeatureSpec(name="hidden_state", shape=(1, 8, 4), dtype="bfloat16")
    assert ref.metadata["ttt_length"] == 7 and "num_tokens" not in ref.metadata
    _, handle = store.get(ref)
    assert ref.feature_store_uri == f"mem://st/a%2Fb%20c?generation={handle.generation}"
    assert_no_tensors(ref)


def test_put_without_metadata_says_unknown():
    ref = put(LocalFeatureStore())
    assert (ref.run_id, ref.source_task_id, ref.strategy) == ("unknown", None, "eagle3")
    assert (ref.target_model_version, ref.draft_weight_version, ref.tokenizer_version) == ("unknown", None, "unknown")
    assert ref.num_tokens == 0


def test_the_target_feature_says_what_it_is():
    metadata = {"target_repr": "pruned_logits", "vocab_map_version": "v3"}
    ref = LocalFeatureStore().put({"target": torch.ones(2), "x": torch.ones(2)}, sample_id="s", metadata=metadata)
    assert ref.feature_specs["target"].target_repr == "pruned_logits"
    assert ref.feature_specs["target"].target_meta == {"vocab_map_version": "v3"}
    assert ref.feature_specs["x"].target_repr is None
    named = LocalFeatureStore().put(
        {"y": torch.ones(2)}, sample_id="s", metadata={"target_repr": "logits", "target_feature_name": "y"}
    )
    assert named.feature_specs["y"].target_repr == "logits" and named.feature_specs["y"].target_meta == {}


def test_get_returns_the_tensors_and_a_handle():
    store = LocalFeatureStore("st")
    ref = store.put(sample(), sample_id="s0", metadata={})
    tensors, handle = store.get(ref)
    assert_same(tensors, sample())
    assert isinstance(handle, FeatureHandle) and handle.sample_id == "s0"
    some, _ = store.get(ref, names=["loss_mask", "input_ids"], device="cpu")
    assert list(some) == ["loss_mask", "input_ids"]


@pytest.mark.parametrize("clone_on_get", [False, True])
def test_the_store_shares_no_memory_with_anybody(clone_on_get):
    store = LocalFeatureStore(clone_on_get=clone_on_get)
    mine = {"x": torch.zeros(4)}
    ref = store.put(mine, sample_id="s0", metadata={})
    mine["x"].add_(1)
    first, _ = store.get(ref)
    assert first["x"].sum() == 0
    first["x"].add_(1)
    assert store.get(ref)[0]["x"].sum() == 0


def test_a_tensor_under_autograd_is_stored_as_data():
    store = LocalFeatureStore()
    ref = store.put({"x": torch.ones(2, requires_grad=True) * 2}, sample_id="s0", metadata={})
    assert not store.get(ref)[0]["x"].requires_grad


def test_what_is_put_must_be_tensors_under_a_sound_id():
    store = LocalFeatureStore("st")
    with pytest.raises(ValueError, match="put of sample 's0': no tensors were given"):
        store.put({}, sample_id="s0", metadata={})
    with pytest.raises(TypeError, match="'x' is a list: every feature must be a torch.Tensor"):
        store.put({"x": [1.0]}, sample_id="s0", metadata={})
    with pytest.raises(TypeError, match="'x' is a ndarray"):
        store.put({"x": numpy.ones(2)}, sample_id="s0", metadata={})
    for bad in ("", "a\0b", "x" * 1025, "\ud800"):
        with pytest.raises(ValueError, match="sample_id"):
            put(store, bad)
    with pytest.raises(TypeError, match="sample_id 7 is a int"):
        put(store, 7)
    with pytest.raises(ValueError):
        put(store, "s0", num_tokens="many")
    assert store.health()["resident_samples"] == 0 and store.health()["resident_bytes"] == 0


def test_the_last_release_frees():
    store = LocalFeatureStore("st")
    ref = put(store)
    _, first = store.get(ref)
    _, second = store.get(ref)
    store.release(first)
    store.release(first)
    assert store.health()["resident_samples"] == 1
    store.release(second, reason="loaded")
    assert store.health()["resident_samples"] == 0 and store.health()["resident_bytes"] == 0
    assert store.health()["active_leases"] == 0
    with pytest.raises(KeyError, match="sample 's0' generation [0-9]+ is not in store st"):
        store.get(ref)


def test_many_samples_one_after_the_other_leave_nothing():
    store = LocalFeatureStore("st")
    for i in range(50):
        _, handle = store.get(put(store, f"s{i}"))
        store.release(handle)
    assert {store.health()[key] for key in ("resident_samples", "resident_bytes", "active_leases")} == {0}


def test_a_stale_ref_and_a_stale_handle_never_reach_the_next_generation():
    store = LocalFeatureStore("st")
    old = put(store)
    _, held = store.get(old)
    new = store.put({"x": torch.ones(4)}, sample_id="s0", metadata={})
    with pytest.raises(KeyError, match="use a current ref"):
        store.get(old)
    store.release(held)
    _, handle = store.get(new)
    store.release(held)
    assert store.get(new)[0]["x"].sum() == 4
    assert handle.generation > held.generation


def test_a_lease_on_an_older_generation_does_not_keep_the_current_one():
    store = LocalFeatureStore("st")
    _, old = store.get(put(store))
    _, new = store.get(put(store))
    store.release(new)
    store.release(old)
    assert store.health()["resident_samples"] == 0 and store.health()["resident_bytes"] == 0


def test_generations_are_of_one_process_not_of_one_store():
    first, second = LocalFeatureStore("st"), LocalFeatureStore("st")
    ref = put(first)
    _, foreign = first.get(ref)
    kept = put(second)
    with pytest.raises(KeyError):
        second.get(ref)
    second.release(foreign)
    second.get(kept)
    assert 0 < foreign.generation < 2**53


FIRST_URI = """
import torch
from draftflow.compat.specforge.data_plane import LocalFeatureStore
print(LocalFeatureStore("st").put({"x": torch.ones(1)}, sample_id="s0", metadata={}).feature_store_uri)
"""


def test_a_ref_of_a_process_before_this_one_never_fits():
    first, second = in_another_process(FIRST_URI), in_another_process(FIRST_URI)
    assert first.startswith("mem://st/s0?generation=") and first != second


def test_a_handle_that_the_store_never_gave_frees_nothing():
    store = LocalFeatureStore("st")
    ref = put(store)
    generation = int(ref.feature_store_uri.rpartition("=")[2])
    store.release(FeatureHandle("s0", generation, "s0:made up"))
    store.get(ref)


def test_a_ref_without_a_generation_gets_the_current_one():
    store = LocalFeatureStore("st")
    put(store)
    store.get(file_ref("s0", feature_store_uri="mem://st/s0"))
    with pytest.raises(KeyError):
        store.get(file_ref("s0", feature_store_uri="mem://st/s0?generation=x"))


def test_a_get_that_fails_leaves_no_lease_and_consumes_nothing():
    store = LocalFeatureStore("st")
    ref = put(store)
    with pytest.raises(KeyError, match=r"has no tensor \['y'\]: it has \['x'\]"):
        store.get(ref, names=["y"])
    with pytest.raises(RuntimeError):
        store.get(ref, device="no such device")
    assert store.health()["active_leases"] == 0
    store.get(ref)


def test_abort_evicts_and_is_idempotent():
    store = LocalFeatureStore("st")
    ref = put(store)
    _, handle = store.get(ref)
    store.abort("s0", reason="test")
    store.abort("s0")
    store.abort("never put")
    with pytest.raises(KeyError):
        store.get(ref)
    assert store.health()["resident_bytes"] == 0
    again = put(store)
    store.release(handle)
    store.get(again)


def test_a_put_over_the_budget_changes_nothing():
    store = LocalFeatureStore("st", max_resident_bytes=40)
    ref = put(store, "s0", floats=8)
    with pytest.raises(MemoryError, match="put of sample 's1' asks for 32 bytes, but store st may hold 40 and has 32 resident"):
        put(store, "s1", floats=8)
    assert store.health()["resident_bytes"] == 32 and store.health()["resident_samples"] == 1
    _, handle = store.get(ref)
    store.release(handle)
    put(store, "s1", floats=8)


def test_a_put_again_reserves_its_size_beside_the_old_one():
    store = LocalFeatureStore("st", max_resident_bytes=60)
    ref = put(store, "s0", floats=8)
    with pytest.raises(MemoryError):
        put(store, "s0", floats=8)
    store.get(ref)


def test_a_put_that_fails_gives_its_reservation_back():
    def broken_clock() -> float:
        raise RuntimeError("no time")

    store = LocalFeatureStore("st", max_resident_bytes=32, clock=broken_clock)
    with pytest.raises(RuntimeError, match="no time"):
        put(store, floats=8)
    store._clock = Clock()
    put(store, floats=8)


def test_health_has_the_keys_and_ages_by_the_clock():
    clock = Clock()
    store = LocalFeatureStore("st", max_resident_bytes=1000, clock=clock)
    assert store.health() == {
        "store_id": "st",
        "backend": "local",
        "root": None,
        "resident_samples": 0,
        "active_leases": 0,
        "resident_bytes": 0,
        "max_resident_bytes": 1000,
        "release_pending": 0,
        "auth_required": False,
        "oldest_age_s": 0.0,
        "avg_age_s": 0.0,
        "force_freed_total": 0,
    }
    put(store, "a")
    clock.now += 10
    put(store, "b")
    clock.now += 10
    assert (store.health()["oldest_age_s"], store.health()["avg_age_s"]) == (20.0, 15.0)
    put(store, "a")
    assert (store.health()["oldest_age_s"], store.health()["avg_age_s"]) == (10.0, 5.0)


def test_gc_frees_what_nobody_took_in_time():
    clock = Clock()
    store = LocalFeatureStore("st", max_hold_age_s=10.0, clock=clock)
    put(store, "old")
    clock.now += 20
    put(store, "new")
    assert store.gc() == {"force_freed": 1, "force_freed_bytes": 32, "release_pending": 0}
    assert store.health()["resident_samples"] == 1 and store.health()["force_freed_total"] == 1
    assert store.gc(now=clock.now + 10)["force_freed"] == 0
    assert store.gc(now=clock.now + 11)["force_freed"] == 1


def test_gc_spares_what_is_leased_and_without_an_age_everything():
    clock = Clock()
    store = LocalFeatureStore("st", max_hold_age_s=10.0, clock=clock)
    _, handle = store.get(put(store))
    clock.now += 100
    assert store.gc()["force_freed"] == 0
    store.release(handle)
    assert store.health()["resident_samples"] == 0
    patient = LocalFeatureStore("st", clock=clock)
    put(patient)
    clock.now += 10_000
    assert patient.gc()["force_freed"] == 0 and patient.health()["resident_samples"] == 1


class Stubborn(LocalFeatureStore):
    """A store whose first `failures` frees fail, by False or by an exception."""

    def __init__(self, failures: int, raises: bool = False, **options: object) -> None:
        super().__init__("st", **options)
        self.failures, self.raises, self.asked = failures, raises, []

    def _try_physical_free(self, sample_id: str) -> bool:
        self.asked.append(sample_id)
        if self.failures:
            self.failures -= 1
            if self.raises:
                raise OSError("unreachable")
            return False
        return super()._try_physical_free(sample_id)


@pytest.mark.parametrize("raises", [False, True])
def test_a_free_that_fails_is_tried_again_and_given_up_in_the_end(raises, caplog):
    caplog.set_level(logging.CRITICAL)
    store = Stubborn(5, raises, max_release_attempts=3)
    ref = put(store)
    _, handle = store.get(ref)
    store.release(handle)
    assert (store.health()["release_pending"], store.health()["resident_samples"]) == (1, 1)
    with pytest.raises(KeyError):
        store.get(ref)
    assert store.gc() == {"force_freed": 0, "force_freed_bytes": 0, "release_pending": 1}
    assert store.gc()["release_pending"] == 1
    assert store.gc() == {"force_freed": 1, "force_freed_bytes": 32, "release_pending": 0}
    assert (store.health()["release_pending"], store.health()["resident_samples"]) == (0, 0)
    assert store.asked == ["s0"] * 4


def test_a_free_that_works_the_second_time_is_counted():
    store = Stubborn(1)
    _, handle = store.get(put(store))
    store.release(handle)
    assert store.gc() == {"force_freed": 1, "force_freed_bytes": 32, "release_pending": 0}
    assert store.health()["resident_bytes"] == 0


def test_a_failed_free_never_touches_the_next_generation():
    store = Stubborn(1)
    _, handle = store.get(put(store))
    store.release(handle)
    ref = put(store)
    assert store.health()["release_pending"] == 0
    store.gc()
    store.get(ref)


def test_abort_and_gc_ask_the_subclass_too():
    clock = Clock()
    store = Stubborn(0, max_hold_age_s=1.0, clock=clock)
    put(store, "a")
    put(store, "b")
    store.abort("a")
    clock.now += 2
    store.gc()
    assert store.asked == ["a", "b"] and store.health()["resident_samples"] == 0


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("pending", [False, True], ids=["", "released before"])
@pytest.mark.parametrize("verb", ["abort", "gc"])
def test_abort_and_age_give_up_memory_where_the_free_fails(verb, pending, raises, caplog):
    caplog.set_level(logging.CRITICAL)
    clock = Clock()
    store = Stubborn(5, raises, max_hold_age_s=1.0, clock=clock)
    ref = put(store)
    if pending:
        store.release(store.get(ref)[1])
    clock.now += 2
    if verb == "abort":
        store.abort("s0")
    else:
        assert store.gc() == {"force_freed": 1, "force_freed_bytes": 32, "release_pending": 0}
    health = store.health()
    assert (health["resident_samples"], health["resident_bytes"], health["release_pending"]) == (0, 0, 0)
    assert store.asked == ["s0"]
    with pytest.raises(KeyError):
        store.get(ref)


def test_age_spares_what_is_leased():
    clock = Clock()
    store = Stubborn(5, max_hold_age_s=1.0, clock=clock)
    ref = put(store)
    store.get(ref)
    clock.now += 2
    assert store.gc()["force_freed"] == 0
    store.get(ref)


def test_a_subclass_hears_of_every_sample_that_goes():
    gone = []

    class Watching(Stubborn):
        def _free_sample_locked(self, sample_id: str) -> int:
            size = super()._free_sample_locked(sample_id)
            gone.append((sample_id, size))
            return size

    class Elsewhere(LocalFeatureStore):
        def _try_physical_free(self, sample_id: str) -> bool:
            assert self._free_sample_locked(sample_id) == 32 and self._free_sample_locked(sample_id) == 0
            return True

    clock = Clock()
    store = Watching(2, max_hold_age_s=1.0, clock=clock, max_release_attempts=1)
    put(store, "aborted")
    store.abort("aborted")
    store.release(store.get(put(store, "released"))[1])
    store.gc()
    store.release(store.get(put(store, "freed"))[1])
    put(store, "old")
    clock.now += 2
    store.gc()
    assert gone == [("aborted", 32), ("released", 32), ("freed", 32), ("old", 32)]
    elsewhere = Elsewhere("st")
    elsewhere.release(elsewhere.get(put(elsewhere))[1])
    assert elsewhere.health()["resident_bytes"] == 0


def test_a_subclass_may_free_without_the_base():
    class Elsewhere(LocalFeatureStore):
        def _try_physical_free(self, sample_id: str) -> bool:
            return True

    store = Elsewhere("st")
    _, handle = store.get(put(store))
    store.release(handle)
    assert store.health()["resident_samples"] == 0 and store.health()["resident_bytes"] == 0


def test_a_dump_is_a_file_that_loads_without_running_anything(tmp_path):
    store = LocalFeatureStore("st", dump_dir=str(tmp_path / "dump"))
    store.put(sample(), sample_id="s0", metadata={})
    assert os.listdir(tmp_path / "dump") == ["s0.ckpt"]
    assert_same(torch.load(tmp_path / "dump" / "s0.ckpt", weights_only=True), sample())


def test_no_id_escapes_the_dump_folder_or_meets_another(tmp_path):
    dump = tmp_path / "a" / "b" / "dump"
    store = LocalFeatureStore("st", dump_dir=str(dump))
    ids = ["../../x", "a/b", "a_b", "..", ".", "x" * 1000, "new\nline", "ü🙂"]
    for sample_id in ids:
        put(store, sample_id)
    [hashed] = [name for name in os.listdir(dump) if name.startswith("a_b~")]
    put(store, hashed[: -len(".ckpt")])
    assert len(os.listdir(dump)) == len(ids) + 1 and {"a_b.ckpt", "new\nline.ckpt"} < set(os.listdir(dump))
    assert sorted(os.listdir(tmp_path)) == ["a"] and os.listdir(tmp_path / "a" / "b") == ["dump"]


def test_a_dump_that_fails_does_not_undo_the_put(tmp_path, caplog):
    class NoDump(LocalFeatureStore):
        def _dump(self, sample_id: str, tensors: dict) -> None:
            raise OSError("disk full")

    store = NoDump("st", dump_dir=str(tmp_path))
    with caplog.at_level(logging.WARNING):
        ref = put(store)
    assert "sample 's0' is stored, but was not dumped" in caplog.text
    store.get(ref)


def test_a_dump_that_fails_leaves_no_temporary_file(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.CRITICAL)
    store = LocalFeatureStore("st", dump_dir=str(tmp_path))
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no")))
    put(store)
    assert os.listdir(tmp_path) == []


def test_files_are_read_in_place_again_and_again(tmp_path):
    store = LocalFeatureStore("st")
    [ref] = OfflineManifestReader(write_files(tmp_path, 1)).read()
    for _ in range(2):
        tensors, handle = store.get(ref)
        assert_same(tensors, sample(0))
        assert handle.generation == 0 and store.health()["active_leases"] == 1
        store.release(handle)
    assert store.health()["active_leases"] == 0 and store.health()["resident_samples"] == 0
    with pytest.raises(KeyError, match="has no key 'nothing' for feature 'nothing'"):
        store.get(ref, names=["nothing"])
    assert store.health()["active_leases"] == 0


def test_a_key_names_the_entry_of_the_file_by_its_last_part(tmp_path):
    torch.save({"raw": torch.ones(2)}, tmp_path / "a.ckpt")
    ref = file_ref(feature_store_uri=f"file://{tmp_path}/a.ckpt", feature_keys={"x": "s0/raw"})
    assert LocalFeatureStore().get(ref)[0]["x"].tolist() == [1, 1]


def test_estimate_bytes_knows_the_dtypes():
    store = LocalFeatureStore("st")
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.uint8, torch.bool):
        tensor = torch.zeros(3, 5, dtype=dtype)
        assert store.estimate_bytes({"x": spec_from_tensor("x", tensor)}) == 15 * tensor.element_size(), dtype
    assert store.estimate_bytes({"x": FeatureSpec("x", (2, 3), "float8")}) == 24
    assert spec_from_tensor("x", torch.ones(2), required=False) == FeatureSpec("x", (2,), "float32", required=False)


def test_a_store_of_ones_own_need_not_collect():
    class Own(FeatureStore):
        def put(self, tensors, *, sample_id, metadata): ...

        def get(self, ref, *, device="cpu", names=None): ...

        def release(self, handle, *, reason="consumed"): ...

        def abort(self, sample_id, *, reason="aborted"): ...

        def health(self): ...

    assert Own().gc() == {"force_freed": 0, "force_freed_bytes": 0, "release_pending": 0}
    with pytest.raises(TypeError):
        FeatureStore()


def test_threads_that_put_get_and_release_at_once_leave_nothing():
    store = LocalFeatureStore("st", max_resident_bytes=1 << 20)
    errors = []

    def work(number: int) -> None:
        try:
            for i in range(100):
                tensors, handle = store.get(put(store, f"{number}:{i}"))
                store.put({"x": torch.ones(2)}, sample_id="shared", metadata={})
                store.release(handle)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    assert store.health()["resident_samples"] == 1 and store.health()["resident_bytes"] == 8
    assert store.health()["active_leases"] == 0


def test_a_forked_child_gives_numbers_of_its_own():
    store = LocalFeatureStore("st")
    before, read, write = put(store), *os.pipe()
    child = os.fork()
    if child == 0:
        ref = put(store)
        os.write(write, ref.feature_store_uri.encode())
        os._exit(0)
    os.close(write)
    assert os.waitpid(child, 0)[1] == 0
    theirs = os.read(read, 1000).decode()
    os.close(read)
    mine = put(store)
    generations = [int(uri.rpartition("=")[2]) for uri in (before.feature_store_uri, mine.feature_store_uri, theirs)]
    assert generations[0] < generations[1] < generations[2] < 1 << 53
    with pytest.raises(KeyError):
        store.get(dataclasses.replace(mine, feature_store_uri=theirs))
