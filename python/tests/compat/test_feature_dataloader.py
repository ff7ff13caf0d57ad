# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from data_plane_story import assert_same, file_ref, sample, write_files

from draftflow.compat.specforge.contracts import FeatureSpec, TrainBatch
from draftflow.compat.specforge.data_plane import FeatureDataLoader, LocalFeatureStore, OfflineManifestReader, SampleRefQueue


def cat(features):
    return {name: torch.cat([one[name] for one in features]) for name in features[0]}


def swap(raw):
    """What an EAGLE-3 trainer does to a sample: the auxiliary layers are the input, the last one is the target."""
    return {"input_ids": raw["input_ids"][None], "hidden_state": raw["aux_hidden_state"], "target": raw["hidden_state"]}


def put(store, sample_id, length=4, **metadata):
    return store.put({"x": torch.ones(length)}, sample_id=sample_id, metadata={"target_repr": "hidden_state", **metadata})


def queue_of(refs):
    queue = SampleRefQueue()
    queue.put(refs)
    return queue


def stored(*lengths):
    store = LocalFeatureStore("st")
    return store, [put(store, f"s{i}", length) for i, length in enumerate(lengths)]


def test_a_queue_of_files_becomes_batches_and_is_acked(tmp_path):
    queue = queue_of(OfflineManifestReader(write_files(tmp_path, 4), run_id="run").read())
    loader = FeatureDataLoader(LocalFeatureStore(), queue, batch_size=2, collate_fn=cat, per_sample_transform=swap)
    first, second = list(loader)
    assert isinstance(first, TrainBatch) and first.strategy == "eagle3"
    assert first.sample_ids == ["run:00000000", "run:00000001"] and second.sample_ids == ["run:00000002", "run:00000003"]
    assert first.metadata == {"target_repr": "hidden_state", "ttt_length": 7}
    assert first.tensors["target"].shape == (2, 8, 4) and first.tensors["hidden_state"].shape == (2, 8, 12)
    assert torch.equal(second.tensors["input_ids"][1], sample(3)["input_ids"])
    assert (queue.depth(), queue.in_flight()) == (0, 0)


def test_a_batch_is_acked_only_when_the_next_is_asked_for():
    store, refs = stored(4, 4)
    queue = queue_of(refs)
    batches = iter(FeatureDataLoader(store, queue))
    next(batches)
    assert (queue.depth(), queue.in_flight()) == (1, 1)
    next(batches)
    assert (queue.depth(), queue.in_flight()) == (0, 1)
    assert next(batches, None) is None and queue.in_flight() == 0


def test_what_is_put_meanwhile_comes_and_an_empty_queue_ends_the_iteration():
    store, refs = stored(4, 4)
    queue = queue_of(refs[:1])
    loader = FeatureDataLoader(store, queue)
    seen = []
    for batch in loader:
        seen += batch.sample_ids
        if len(seen) == 1:
            queue.put(refs[1:])
    assert seen == ["s0", "s1"] and list(loader) == []


def test_without_ack_and_after_a_break_refs_stay_leased():
    store, refs = stored(4, 4)
    queue = queue_of(refs)
    list(FeatureDataLoader(store, queue, ack=False))
    assert (queue.depth(), queue.in_flight()) == (0, 2)
    store, refs = stored(4, 4)
    queue = queue_of(refs)
    for _ in FeatureDataLoader(store, queue):
        break
    assert (queue.depth(), queue.in_flight()) == (1, 1)


def test_a_sample_is_consumed_once_it_is_in_a_batch():
    store, refs = stored(4, 4)
    list(FeatureDataLoader(store, queue_of(refs), batch_size=2))
    assert store.health()["resident_samples"] == 0 and store.health()["active_leases"] == 0


@pytest.mark.parametrize("drop_last, sizes, left", [(True, [2], 1), (False, [2, 1], 0)])
def test_a_rest_of_a_queue_goes_back_or_is_a_smaller_batch(drop_last, sizes, left):
    store, refs = stored(4, 4, 4)
    queue = queue_of(refs)
    loader = FeatureDataLoader(store, queue, batch_size=2, drop_last=drop_last)
    assert [len(batch.sample_ids) for batch in loader] == sizes
    assert (queue.depth(), queue.in_flight()) == (left, 0)


@pytest.mark.parametrize("drop_last, sizes", [(True, [2]), (False, [2, 1])])
def test_a_list_is_read_again_in_each_epoch(tmp_path, drop_last, sizes):
    refs = OfflineManifestReader(write_files(tmp_path, 3)).read()
    loader = FeatureDataLoader(LocalFeatureStore(), refs=refs, batch_size=2, drop_last=drop_last)
    refs.clear()
    for epoch in range(2):
        loader.set_epoch(epoch)
        assert [len(batch.sample_ids) for batch in loader] == sizes
    loader.close()


def test_exactly_one_source_and_a_batch_size():
    store = LocalFeatureStore()
    for queue, refs in ((None, None), (SampleRefQueue(), [])):
        with pytest.raises(ValueError, match="exactly one of `queue` and `refs`"):
            FeatureDataLoader(store, queue, refs=refs)
    with pytest.raises(ValueError, match="batch_size is 0"):
        FeatureDataLoader(store, refs=[], batch_size=0)


def spec(dtype="float32", shape=(1, 4)):
    return {"x": FeatureSpec("x", shape, dtype)}


@pytest.mark.parametrize(
    "first, second, message",
    [
        ({"strategy": "dflash"}, {}, "sample 's0' is of strategy 'dflash': this loader is for 'eagle3'"),
        ({}, {"schema_version": 2}, "schema_version differ in one batch: sample 's0' has 1, sample 's1' 2"),
        ({"schema_version": 2}, {"schema_version": 2}, "has schema_version 2: this program knows 1"),
        ({"metadata": {"target_repr": "logits"}}, {}, "target_repr differ"),
        ({"feature_specs": spec()}, {"feature_specs": {"y": spec()["x"]}}, "names of features differ"),
        ({"feature_specs": spec()}, {"feature_specs": spec("float16")}, "dtype of 'x' differ"),
        ({"feature_specs": spec()}, {"feature_specs": spec(shape=(4,))}, "number of dimensions of 'x' differ"),
    ],
)
def test_refs_that_do_not_belong_together_are_refused_and_failed(first, second, message):
    refs = [file_ref("s0", **first), file_ref("s1", **second)]
    with pytest.raises(ValueError, match=message):
        list(FeatureDataLoader(LocalFeatureStore(), refs=refs, batch_size=2))
    queue = queue_of(refs)
    with pytest.raises(ValueError, match=message):
        list(FeatureDataLoader(LocalFeatureStore(), queue, batch_size=2))
    assert (queue.depth(), queue.in_flight()) == (0, 0)


def test_refs_without_specs_go_with_any():
    store, refs = stored(4, 4)
    refs[0] = replace(refs[0], feature_specs={})
    assert len(list(FeatureDataLoader(store, refs=refs, batch_size=2))) == 1


def test_a_sample_that_is_gone_is_failed_for_good_and_the_next_one_comes():
    store, refs = stored(4, 4)
    queue = queue_of(refs)
    store.abort("s0")
    loader = FeatureDataLoader(store, queue)
    with pytest.raises(KeyError):
        list(loader)
    assert (queue.depth(), queue.in_flight()) == (1, 0)
    assert [batch.sample_ids for batch in loader] == [["s1"]]


def test_ctrl_c_gives_the_refs_back():
    store, refs = stored(4)
    queue = queue_of(refs)

    def interrupted(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(FeatureDataLoader(store, queue, collate_fn=interrupted))
    assert (queue.depth(), queue.in_flight()) == (1, 0)


class Sharing(LocalFeatureStore):
    """A store that hands out its own tensors, and can hand out one that cannot be cloned."""

    broken = False

    def get(self, ref, *, device="cpu", names=None):
        tensors, handle = super().get(ref, device=device, names=names)
        return {"x": None} if self.broken else {"x": self._entries[ref.sample_id].tensors["x"]}, handle


def test_a_fetched_tensor_is_cloned_where_the_store_shares_its_own():
    store = Sharing("st")
    ref = put(store, "s0")
    mine = store._entries["s0"].tensors["x"]
    seen = []
    keep = {"per_sample_transform": lambda raw: seen.append(raw["x"]) or raw}
    list(FeatureDataLoader(store, refs=[ref], **keep))
    assert seen[0].data_ptr() != mine.data_ptr()
    ref = put(store, "s0")
    mine = store._entries["s0"].tensors["x"]
    list(FeatureDataLoader(store, refs=[ref], clone_on_fetch=False, **keep))
    assert seen[1].data_ptr() == mine.data_ptr()


def test_no_lease_of_the_store_is_left_when_fetching_fails():
    store = Sharing("st")
    refs = [put(store, "s0"), put(store, "s1")]
    store.broken = True
    with pytest.raises(AttributeError):
        list(FeatureDataLoader(store, refs=refs, batch_size=2))
    assert store.health()["active_leases"] == 0


def test_a_transform_that_fails_leaves_no_lease():
    store, refs = stored(4)
    queue = queue_of(refs)

    def bad(_):
        raise RuntimeError("bad sample")

    with pytest.raises(RuntimeError, match="bad sample"):
        list(FeatureDataLoader(store, queue, per_sample_transform=bad))
    assert store.health()["active_leases"] == 0 and queue.in_flight() == 0


def test_a_collate_that_returns_no_tensors_is_a_type_error():
    store, refs = stored(4)
    with pytest.raises(TypeError, match=r"\['ids'\]"):
        list(FeatureDataLoader(store, refs=refs, collate_fn=lambda features: {**features[0], "ids": [1]}))


def test_by_default_samples_are_stacked_and_filled_up_on_the_right():
    store = LocalFeatureStore("st")
    refs = [store.put(sample(i, tokens), sample_id=f"s{i}", metadata={}) for i, tokens in enumerate((8, 5))]
    [batch] = FeatureDataLoader(store, refs=refs, batch_size=2)
    assert batch.tensors["aux_hidden_state"].shape == (2, 1, 8, 12)
    assert batch.tensors["aux_hidden_state"].dtype == torch.bfloat16
    assert torch.equal(batch.tensors["input_ids"][0], sample(0, 8)["input_ids"])
    assert batch.tensors["input_ids"][1].tolist() == [1, 2, 3, 4, 5, 0, 0, 0]
    assert batch.tensors["loss_mask"][1].tolist() == [1, 1, 1, 1, 1, 0, 0, 0]
    assert torch.equal(batch.tensors["hidden_state"][1, :, :5], sample(1, 5)["hidden_state"])
    assert not batch.tensors["hidden_state"][1, :, 5:].any()


def test_equal_samples_are_stacked_as_they_are():
    store, refs = stored(4, 4)
    [batch] = FeatureDataLoader(store, refs=refs, batch_size=2)
    assert_same(batch.tensors, {"x": torch.ones(2, 4)})


def test_samples_that_cannot_be_stacked_are_refused():
    def loading(*features):
        store = LocalFeatureStore("st")
        refs = [store.put(tensors, sample_id=f"s{i}", metadata={}) for i, tensors in enumerate(features)]
        return FeatureDataLoader(store, refs=[replace(ref, feature_specs={}) for ref in refs], batch_size=len(refs))

    with pytest.raises(ValueError, match="feature 'x' cannot be stacked"):
        list(loading({"x": torch.ones(2)}, {"x": torch.ones(1, 2)}))
    with pytest.raises(ValueError, match="feature 'x' cannot be stacked"):
        list(loading({"x": torch.ones(2)}, {"x": torch.ones(2, dtype=torch.int64)}))
    with pytest.raises(KeyError, match=r"sample 1 of the batch has the features \['y'\]"):
        list(loading({"x": torch.ones(2)}, {"y": torch.ones(2)}))
