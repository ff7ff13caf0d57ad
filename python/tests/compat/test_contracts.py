# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import types
from collections import deque
from typing import Any, Dict

import pytest
from compat_refs import make_ref

from draftflow.compat import specforge
from draftflow.compat.specforge import contracts
from draftflow.compat.specforge.contracts import FeatureHandle, FeatureSpec, PromptTask, TrainBatch, assert_no_tensors

torch = pytest.importorskip("torch")
numpy = pytest.importorskip("numpy")


def test_the_package_has_the_records() -> None:
    names = {"SCHEMA_VERSION", "PromptTask", "FeatureSpec", "SampleRef", "FeatureHandle", "TrainBatch", "assert_no_tensors"}
    assert set(specforge.__all__) == names
    assert all(getattr(specforge, name) is getattr(contracts, name) for name in names)
    assert contracts.SCHEMA_VERSION == 1


@pytest.mark.parametrize(
    "record, fields",
    [
        (
            contracts.SampleRef,
            "sample_id run_id source_task_id feature_store_uri feature_keys feature_specs strategy schema_version"
            " target_model_version draft_weight_version tokenizer_version num_tokens estimated_bytes metadata",
        ),
        (FeatureSpec, "name shape dtype device_hint required target_repr target_meta"),
        (
            PromptTask,
            "task_id run_id source_id payload max_length chat_template loss_mask_policy target_model_version"
            " draft_weight_version attempt metadata",
        ),
        (FeatureHandle, "sample_id generation lease_token"),
        (TrainBatch, "sample_ids strategy tensors metadata"),
    ],
)
def test_fields_are_those_of_the_json_in_its_order(record: Any, fields: str) -> None:
    assert [each.name for each in dataclasses.fields(record)] == fields.split()


def test_defaults() -> None:
    ref = make_ref("s0")
    assert (ref.schema_version, ref.target_model_version, ref.tokenizer_version) == (1, "unknown", "unknown")
    assert ref.draft_weight_version is None
    task = PromptTask("t", "r", "s", {}, 8)
    assert (task.attempt, task.target_model_version, task.metadata, task.loss_mask_policy) == (0, "unknown", {}, {})
    assert FeatureSpec("x", (1,), "int64").required is True


def test_records_are_frozen_but_for_batches() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_ref("s0").sample_id = "other"  # type: ignore[misc]
    batch = TrainBatch(["s0"], "eagle3", {})
    batch.tensors = {"x": torch.zeros(1)}


def test_a_ref_of_an_unknown_schema_can_be_made() -> None:
    assert dataclasses.replace(make_ref("s0"), schema_version=2).schema_version == 2


def test_metadata_passes() -> None:
    assert_no_tensors(make_ref("s0", nested={"a": [1, (2.0, None, b"x")], "b": {"c"}}))
    assert_no_tensors(PromptTask("t", "r", "s", {"input_ids": [1, 2, 3]}, 8))
    assert_no_tensors({"kind": int, "call": print, "module": types})


class Holder:
    def __init__(self, value: Any) -> None:
        self.value = value


class Slotted:
    __slots__ = ("dtype", "shape", "device")

    def __init__(self) -> None:
        self.dtype = self.shape = self.device = 0


@dataclasses.dataclass
class SlottedRecord:
    __slots__ = ("scores",)
    scores: Any


class Mine(torch.Tensor):  # type: ignore[misc]
    pass


class MyNumber(numpy.float32):  # type: ignore[misc,name-defined]
    pass


@pytest.mark.parametrize(
    "value, path",
    [
        (torch.zeros(2), "<root>"),
        (numpy.float32(1), "<root>"),
        (torch.zeros(2).as_subclass(Mine), "<root>"),
        (MyNumber(1), "<root>"),
        (Slotted(), "<root>"),
        ({"a": {"b": torch.zeros(1)}}, "<root>['a']['b']"),
        ([0, [1, numpy.zeros(1)]], "<root>[1][1]"),
        ((0, torch.zeros(1)), "<root>[1]"),
        (deque([torch.zeros(1)]), "<root>[0]"),
        ({torch.float32: 1}, "<root>: a key"),
        (types.MappingProxyType({"a": torch.zeros(1)}), "<root>['a']"),
        (types.SimpleNamespace(a=torch.zeros(1)), "<root>.a"),
        ({"h": Holder([torch.zeros(1)])}, "<root>['h'].value[0]"),
        (SlottedRecord([torch.zeros(1)]), "<root>.scores[0]"),
        (TrainBatch(["s0"], "eagle3", {"x": torch.zeros(1)}), "<root>.tensors['x']"),
        (PromptTask("t", "r", "s", {"ids": torch.zeros(3)}, 8), "<root>.payload['ids']"),
    ],
)
def test_a_tensor_anywhere_is_refused_by_its_path(value: Any, path: str) -> None:
    with pytest.raises(TypeError) as refused:
        assert_no_tensors(value)
    assert str(refused.value).startswith(path + " holds a ")


def test_a_set_has_no_order_to_name_but_is_looked_into() -> None:
    with pytest.raises(TypeError):
        assert_no_tensors({numpy.int64(3), "x"})


def test_a_cycle_ends() -> None:
    ring: Dict[str, Any] = {}
    ring["again"] = [ring]
    assert_no_tensors(ring)
    ring["end"] = torch.zeros(1)
    with pytest.raises(TypeError):
        assert_no_tensors(ring)


def test_names_that_are_found_in_more_places_than_one() -> None:
    from draftflow.compat.specforge.data_plane import disagg_ingest, disaggregated, feature_dataloader, feature_store, offline_reader
    from draftflow.compat.specforge.data_plane.sample_ref_queue import SampleRefQueue

    assert contracts.DeploymentMode.__args__ == ("local_colocated", "dataflow_colocated", "disaggregated")  # type: ignore[attr-defined]
    assert disaggregated.SCHEMA_VERSION == feature_store.SCHEMA_VERSION == contracts.SCHEMA_VERSION
    assert disaggregated.load_feature_file is feature_store.load_feature_file
    assert disaggregated.spec_from_tensor is feature_store.spec_from_tensor
    assert feature_dataloader.SampleRefQueue is SampleRefQueue
    assert offline_reader._OFFLINE_EAGLE3_KEYS == ("input_ids", "loss_mask", "hidden_state", "aux_hidden_state")
    ref = make_ref("s0")
    assert disagg_ingest._ref_from_dict(disagg_ingest._ref_to_dict(ref)) == ref
