# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
from typing import Any, Dict, Tuple

import pytest

from draftflow.compat.specforge import inference
from draftflow.compat.specforge.inference.capture import CaptureConfig, CaptureMismatchError, verify_capture

torch = pytest.importorskip("torch")

HIDDEN, DRAFT_VOCAB, TARGET_VOCAB = 8, 16, 64


def config(layers: Tuple[int, ...] = (10, 15, 20), target_repr: Any = "hidden_state", **more: Any) -> CaptureConfig:
    return CaptureConfig.from_strategy(
        ["input_ids", "loss_mask", "hidden_state", "target"],
        list(layers),
        target_repr=target_repr,
        target_hidden_size=HIDDEN,
        target_vocab_size=TARGET_VOCAB,
        draft_vocab_size=DRAFT_VOCAB,
        **more,
    )


def captured(target: int = HIDDEN, layers: int = 3) -> Dict[str, Any]:
    return {
        "input_ids": torch.zeros(1, 4, dtype=torch.long),
        "loss_mask": torch.ones(1, 4, dtype=torch.long),
        "hidden_state": torch.randn(1, 4, layers * HIDDEN, dtype=torch.float32).bfloat16(),
        "target": torch.randn(1, 4, target),
    }


def refused(tensors: Any, capture: CaptureConfig, **more: Any) -> str:
    with pytest.raises(CaptureMismatchError) as error:
        verify_capture(tensors, capture, sample_id="run:t7", **more)
    assert "[run:t7]" in str(error.value)
    return str(error.value)


def test_the_package_has_the_names() -> None:
    assert set(inference.__all__) == {"RolloutWorker", "CaptureConfig", "CaptureMismatchError", "verify_capture"}
    assert all(hasattr(inference, name) for name in inference.__all__)
    assert issubclass(CaptureMismatchError, AssertionError)


def test_a_config() -> None:
    capture = config()
    assert capture.feature_names == frozenset({"input_ids", "loss_mask", "hidden_state", "target"})
    assert (capture.aux_hidden_state_layer_ids, capture.expected_aux_width, capture.extra) == ((10, 15, 20), 24, {})
    widths = {"logits": TARGET_VOCAB, "pruned_logits": DRAFT_VOCAB, "hidden_state": HIDDEN, "unheard of": None}
    assert {name: config(target_repr=name).expected_target_dim() for name in widths} == widths
    with pytest.raises(dataclasses.FrozenInstanceError):
        capture.target_hidden_size = 9  # type: ignore[misc]
    bare = CaptureConfig(frozenset(), (), "logits", 4)
    assert (bare.target_vocab_size, bare.draft_vocab_size, bare.vocab_map_version) == (None, None, None)


def test_what_was_asked_for_passes() -> None:
    verify_capture(captured(), config(), sample_id="s0")
    verify_capture(captured(), config(), sample_id="s0", recorded_aux_layer_ids=[10, 15, 20])  # type: ignore[arg-type]
    verify_capture({**captured(), "more": torch.zeros(1)}, config(), sample_id="s0")
    verify_capture({"x": torch.zeros(3)}, CaptureConfig(frozenset({"x"}), (), "logits", 4), sample_id="s0")


def test_other_layers() -> None:
    said = refused(captured(), config(), recorded_aux_layer_ids=(10, 15, 21))
    assert "aux-layer id mismatch" in said and "(10, 15, 21)" in said and "(10, 15, 20)" in said


def test_missing_features() -> None:
    tensors = captured()
    del tensors["target"], tensors["loss_mask"]
    said = refused(tensors, config())
    assert "['loss_mask', 'target']" in said and "['hidden_state', 'input_ids']" in said


@pytest.mark.parametrize("layers", [2, 4])
def test_another_auxiliary_width(layers: int) -> None:
    said = refused(captured(layers=layers), config())
    assert "aux width" in said and str(layers * HIDDEN) in said and "24" in said


@pytest.mark.parametrize("name", ["hidden_state", "target"])
def test_a_scalar_has_no_width(name: str) -> None:
    assert "is None, wanted" in refused({**captured(), name: torch.tensor(1.0)}, config())


def test_a_value_that_is_no_tensor() -> None:
    assert "'input_ids' is a list" in refused({**captured(), "input_ids": [1, 2]}, config())


@pytest.mark.parametrize(
    "target_repr, width", [("pruned_logits", DRAFT_VOCAB), ("logits", TARGET_VOCAB), ("hidden_state", HIDDEN)]
)
def test_the_targets_width(target_repr: str, width: int) -> None:
    capture = config(target_repr=target_repr, vocab_map_version="v1")
    verify_capture(captured(target=width), capture, sample_id="s0")
    said = refused(captured(target=width + 1), capture)
    assert f"is {width + 1}, wanted {width}" in said and target_repr in said


def test_pruned_logits_need_the_version_of_their_map() -> None:
    assert "vocab_map_version" in refused(captured(target=DRAFT_VOCAB), config(target_repr="pruned_logits"))


def test_features_under_other_names() -> None:
    tensors = {"aux": torch.zeros(1, 4, 5), "teacher": torch.zeros(1, 4, 7)}
    capture = CaptureConfig(frozenset(), (1, 2, 3), "hidden_state", HIDDEN)
    assert "aux width of 'aux' is 5" in refused(tensors, capture, aux_feature_name="aux")
    assert "'teacher' is 7" in refused(tensors, capture, target_feature_name="teacher")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["hidden_state", "target"])
def test_values_that_are_not_finite(name: str, value: float) -> None:
    tensors = captured()
    tensors[name][0, 3, 5] = value
    assert f"{name!r} holds NaN or +infinity" in refused(tensors, config())
    tensors[name][0, 3, 4] = float("-inf")
    assert f"{name!r} holds NaN or +infinity" in refused(tensors, config())


# It was refused; logits that are masked hold it, and so do masks that are added to scores.
@pytest.mark.parametrize("name", ["hidden_state", "target", "attention_bias"])
def test_minus_infinity_passes(name: str) -> None:
    tensors = {**captured(), "attention_bias": torch.zeros(1, 4, 4)}
    tensors[name][..., 1:] = float("-inf")
    verify_capture(tensors, config(), sample_id="s0")


@pytest.mark.parametrize("names", [["input_ids", "target"], ("input_ids", "target"), {"input_ids", "target"}], ids=repr)
def test_names_of_features_in_any_series(names: Any) -> None:
    capture = CaptureConfig(feature_names=names, aux_hidden_state_layer_ids=[], target_repr="hidden_state", target_hidden_size=HIDDEN)
    verify_capture(captured(), capture, sample_id="s0")
    assert "['target'] were not captured" in refused({"input_ids": torch.zeros(1)}, capture)


@pytest.mark.parametrize("recorded", [5, 1.5, object()], ids=["int", "float", "object"])
def test_layers_that_are_no_list(recorded: Any) -> None:
    assert "wanted a list of them: (10, 15, 20)" in refused(captured(), config(), recorded_aux_layer_ids=recorded)
