# SPDX-License-Identifier: Apache-2.0
"""The reference's signatures: names, order, what goes by keyword only, and defaults. `ref` and `path` are ours beside."""

from __future__ import annotations

import inspect
import time
from typing import Any

import pytest

from draftflow.compat.specforge import control_plane, data_plane, inference

SIGNATURES = {
    data_plane.LocalFeatureStore: "store_id=None, *, dump_dir=None, clone_on_get=False, max_resident_bytes=None, "
    "max_hold_age_s=None, max_release_attempts=3, clock=time.monotonic",
    data_plane.SharedDirFeatureStore: "root, store_id=None, *, auth=None, credential=None, max_hold_age_s=None, "
    "retain_on_release=False, clock=time.monotonic",
    data_plane.AuthPolicy: "token=None",
    data_plane.AuthPolicy.check: "self, presented",
    data_plane.FeatureStore.put: "self, tensors, *, sample_id, metadata",
    data_plane.FeatureStore.get: "self, sample_ref=None, *, device='cpu', names=None, ref=None",
    data_plane.FeatureStore.release: "self, handle, *, reason='consumed'",
    data_plane.FeatureStore.abort: "self, sample_id, *, reason='aborted'",
    data_plane.FeatureStore.gc: "self, *, now=None",
    data_plane.FeatureStore.health: "self",
    data_plane.FeatureStore.estimate_bytes: "self, specs",
    data_plane.SampleRefQueue: "*, lease_timeout_s=None",
    data_plane.SampleRefQueue.put: "self, refs, *, partition_key=None",
    data_plane.SampleRefQueue.get: "self, max_refs, timeout_s=None, *, partition_key=None, partition=None",
    data_plane.SampleRefQueue.ack: "self, refs",
    data_plane.SampleRefQueue.fail: "self, refs, reason, retryable",
    data_plane.FeatureDataLoader: "store, queue=None, *, refs=None, batch_size=1, collate_fn=None, per_sample_transform=None, "
    "device='cpu', clone_on_fetch=True, drop_last=True, strategy='eagle3', ack=True",
    data_plane.ingest_offline_features: "store, hidden_states_path=None, *, path=None, run_id='disagg', "
    "ttt_length=7, max_len=2048, limit=None",
    data_plane.OfflineManifestReader.read: "self, limit=None",
    control_plane.DataFlowController: "run_id, *, sample_queue=None, metadata_store=None, backpressure=None",
    control_plane.DataFlowController.ack_train_refs: "self, trainer_id, sample_ids, *, global_step=None, "
    "optimizer_durable=False",
    control_plane.DataFlowController.reconcile_on_restart: "self, feature_store=None",
    control_plane.BackpressureConfig: "high_watermark_bytes=None, low_watermark_bytes=None, "
    "max_inflight_prompts_per_worker=None, max_train_lease=None",
    control_plane.BackpressureController: "config=None, capacity=None",
    control_plane.BackpressureController.cap_prompt_grant: "self, worker_inflight, requested",
    control_plane.BackpressureController.cap_train_lease: "self, requested",
    inference.CaptureConfig.from_strategy: "required_features, aux_hidden_state_layer_ids, *, target_repr, target_hidden_size, "
    "target_vocab_size=None, draft_vocab_size=None, vocab_map_version=None",
    inference.RolloutWorker.run_once: "self, max_tasks",
}


def signature_of(what: Any) -> str:
    parts = []
    for each in inspect.signature(what).parameters.values():
        if each.kind is each.KEYWORD_ONLY and "*" not in parts:
            parts.append("*")
        default = "time.monotonic" if each.default is time.monotonic else repr(each.default)
        parts.append(each.name if each.default is each.empty else f"{each.name}={default}")
    return ", ".join(parts)


@pytest.mark.parametrize("what", SIGNATURES, ids=lambda what: what.__qualname__)
def test_a_signature(what: Any) -> None:
    assert signature_of(what) == SIGNATURES[what]


@pytest.mark.parametrize("kind", [data_plane.LocalFeatureStore, data_plane.SharedDirFeatureStore])
@pytest.mark.parametrize("verb", ["put", "get", "release", "abort", "gc", "health", "estimate_bytes"])
def test_stores_have_the_verbs_of_the_base(kind: Any, verb: str) -> None:
    assert signature_of(getattr(kind, verb)) == signature_of(getattr(data_plane.FeatureStore, verb))
