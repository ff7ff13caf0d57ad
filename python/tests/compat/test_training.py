# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import logging
import math
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional

import pytest
from compat_refs import ids, make_ref
from training_story import Backend, DFlash, make_batch, make_core, make_trainer, same, weights

from draftflow.compat.specforge.contracts import TrainBatch
from draftflow.compat.specforge.control_plane import DataFlowController, SQLiteMetadataStore
from draftflow.compat.specforge.training import trainer
from draftflow.compat.specforge.training.backend import ParallelConfig, TrainingBackend
from draftflow.compat.specforge.training.strategy import DFlashTrainStrategy, DraftTrainStrategy, StepOutput
from draftflow.compat.specforge.training.trainer import Checkpoint, StepResult, TrainerController, TrainerCore

torch = pytest.importorskip("torch")


def test_a_parallel_config() -> None:
    config = ParallelConfig()
    fields = "world_size tp_size sp_ulysses_size sp_ring_size sharding_strategy param_dtype fsdp_process_group dp_group"
    fields += " draft_dp_group tp_group sp_ulysses_group sp_ring_group draft_sp_group device_mesh tp_device_mesh extra"
    assert [each.name for each in dataclasses.fields(config)] == fields.split()
    assert (config.world_size, config.tp_size, config.sp_size, config.sharding_strategy) == (1, 1, 1, "SHARD_GRAD_OP")
    assert config.param_dtype is torch.bfloat16 and config.tp_group is None and config.extra == {}
    assert ParallelConfig.param_dtype is torch.bfloat16
    assert ParallelConfig(param_dtype=torch.float16).param_dtype is torch.float16
    assert dataclasses.replace(config, param_dtype=torch.float32).param_dtype is torch.float32
    assert ParallelConfig(sp_ulysses_size=2, sp_ring_size=3).sp_size == 6


def test_a_parallel_config_without_a_world() -> None:
    config = ParallelConfig.from_distributed(tp_size=2, sp_ulysses_size=2, sharding_strategy="FULL_SHARD")
    assert (config.world_size, config.tp_size, config.sp_size, config.sharding_strategy) == (1, 2, 2, "FULL_SHARD")
    assert (config.param_dtype, config.fsdp_process_group) == (torch.bfloat16, None)
    assert ParallelConfig.from_distributed(param_dtype=torch.float32).param_dtype is torch.float32


def test_a_parallel_config_takes_the_groups_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> Any:
        raise RuntimeError("no ring")

    theirs = types.SimpleNamespace(get_tp_group=lambda: "tp", get_device_mesh=lambda: "mesh", get_sp_ring_group=broken)
    monkeypatch.setitem(sys.modules, "specforge.distributed", theirs)  # type: ignore[arg-type]
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        config = ParallelConfig.from_distributed()
    finally:
        torch.distributed.destroy_process_group()
    assert (config.world_size, config.tp_group, config.device_mesh, config.sp_ring_group) == (1, "tp", "mesh", None)
    assert config.fsdp_process_group is not None and "no ring" in caplog.text


def test_a_backend_is_all_of_its_verbs() -> None:
    wanted = {"prepare_model", "backward", "step", "state_dict", "load_state_dict"}
    assert TrainingBackend.__abstractmethods__ == wanted


# Strategy


def test_dflash_runs_its_model_on_its_features() -> None:
    model = DFlash()
    strategy = DFlashTrainStrategy(model)
    batch = make_batch(1)
    batch.tensors["more"] = torch.zeros(1)
    output = strategy.forward_loss(batch)
    assert isinstance(output, StepOutput) and output.loss.requires_grad and not output.metrics["accuracy"].requires_grad
    assert (strategy.name, strategy.required_features) == ("dflash", {"input_ids", "hidden_states", "loss_mask"})
    assert strategy.trainable_module() is model
    assert all(model.seen[name] is batch.tensors[name] for name in strategy.required_features)


def test_a_batch_without_a_feature_is_refused_by_name() -> None:
    batch = make_batch(1)
    del batch.tensors["loss_mask"]
    with pytest.raises(ValueError, match=r"dflash lacks \['loss_mask'\]; it has \['hidden_states', 'input_ids'\]"):
        DFlashTrainStrategy(DFlash()).forward_loss(batch)


def test_a_checkpoint_keeps_the_draft_under_its_own_names() -> None:
    strategy = DFlashTrainStrategy(DFlash())
    kept = strategy.checkpoint_state_filter(dict(strategy.trainable_module().state_dict()))
    assert set(kept) == {"fc.weight", "fc.bias"}
    assert set(strategy.checkpoint_state_filter({"module.draft_model.norm.weight": 1, "lm_head.weight": 2})) == {"norm.weight"}


def test_a_draft_loads_what_was_kept() -> None:
    one, other = DFlashTrainStrategy(DFlash()), DFlashTrainStrategy(DFlash())
    other.load_checkpoint_state(one.checkpoint_state_filter(dict(one.dflash_model.state_dict())))
    assert same(dict(one.dflash_model.draft_model.state_dict()), dict(other.dflash_model.draft_model.state_dict()))
    other.load_checkpoint_state(dict(one.dflash_model.state_dict()))  # a strategy that keeps everything
    assert same(dict(one.dflash_model.state_dict()), dict(other.dflash_model.state_dict()))
    with pytest.raises(ValueError, match="no weights.*'midlayer.weight'"):
        other.load_checkpoint_state({"midlayer.weight": torch.zeros(1)})


# Core


def test_the_optimizer_steps_after_so_many_batches() -> None:
    core = make_core(accumulation_steps=2)
    first, second = core.train_step(make_batch(0)), core.train_step(make_batch(1))
    assert isinstance(first, StepResult)
    assert (first.optimizer_stepped, first.grad_norm) == (False, None)
    assert second.optimizer_stepped and second.grad_norm is not None and second.metrics["grad_norm"] == second.grad_norm
    assert (core.backend.steps, core.backend.backwards) == (1, 2)
    assert make_core(accumulation_steps=0).train_step(make_batch(0)).optimizer_stepped


def test_accumulation_averages_the_batches() -> None:
    whole, halves = make_core(), make_core(accumulation_steps=2)
    for core in (whole, halves):
        core.strategy.trainable_module().draft_model.dropout.p = 0.0
        core.backend.step = lambda: None
    both = make_batch(0)
    both.tensors = {name: torch.cat([make_batch(n).tensors[name] for n in (0, 1)]) for name in both.tensors}
    whole.train_step(both)
    halves.train_step(make_batch(0))
    halves.train_step(make_batch(1))
    one, other = ([each.grad for each in core.backend.model.draft_model.parameters()] for core in (whole, halves))
    assert all(torch.allclose(*pair, atol=1e-6) and pair[0].any() for pair in zip(one, other))


def test_metrics_of_both_kinds_of_strategy() -> None:
    class Unrolled(DFlashTrainStrategy):
        def forward_loss(self, batch: TrainBatch) -> StepOutput:
            loss = super().forward_loss(batch).loss
            of_steps = [torch.tensor(1.0), torch.tensor(2.0)]
            return StepOutput(loss, {"acces": of_steps, "acceptance_rates": of_steps, "plosses": of_steps, "other": [1]})

    model = DFlash()
    core = TrainerCore(Unrolled(model), Backend(model))
    metrics = core.train_step(make_batch(0)).metrics
    assert metrics.keys() == {"loss", "mode", "acc", "acceptance_rates", "plosses", "grad_norm"}
    assert (metrics["mode"], metrics["acc"], metrics["acceptance_rates"]) == ("train", 1.5, 1.5)
    assert make_core().train_step(make_batch(0)).metrics.keys() == {"loss", "mode", "acc", "grad_norm"}


def test_an_evaluation_step_trains_nothing() -> None:
    core = make_core()
    before = weights(core)
    result = core.eval_step(make_batch(0))
    assert (result.optimizer_stepped, result.grad_norm, result.metrics["mode"]) == (False, None, "eval")
    assert core.backend.backwards == 0 and same(before, weights(core))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_weights(tmp_path: Path, value: float) -> None:
    acked: List[str] = []
    run = make_trainer(tmp_path, accumulation_steps=2, ack_fn=lambda names, step: acked.extend(names))
    batches = [make_batch(number) for number in range(4)]
    batches[3].tensors["hidden_states"][0, 0, 0] = value
    run.core.strategy.trainable_module().draft_model.dropout.p = 0.0
    before: Dict[str, Any] = {}

    def stream() -> Iterator[TrainBatch]:
        for number, batch in enumerate(batches):
            if number == 3:
                before.update(weights(run))
            yield batch

    with pytest.raises(FloatingPointError, match=r"'s3\.0'"):
        run.fit(stream())
    assert same(before, weights(run)) and acked == ["s0.0", "s1.0"] and run.global_step == 1


# Controller


def test_fit_ends_at_the_last_step_or_epoch(tmp_path: Path) -> None:
    data = [make_batch(number) for number in range(10)]
    run = make_trainer(tmp_path, max_steps=3, num_epochs=5)
    assert (run.fit(data), run.core.backend.steps, run.global_step) == (3, 3, 3)
    assert run.fit(data) == 3 and run.core.backend.steps == 3  # there is nothing left to do
    run = make_trainer(tmp_path, num_epochs=2)
    assert (run.fit(data), run.micro_step, run.epoch) == (20, 20, 1)
    run = make_trainer(tmp_path, start_step=7, start_epoch=1, num_epochs=2)
    assert run.fit(data) == 17


def test_epochs_are_told_to_the_data(tmp_path: Path) -> None:
    class Data(List[TrainBatch]):
        epochs: List[int] = []

        def set_epoch(self, epoch: int) -> None:
            self.epochs.append(epoch)

    data = Data([make_batch(0)])
    make_trainer(tmp_path, num_epochs=3, start_epoch=1).fit(data)
    assert data.epochs == [1, 2]


def test_acks_come_with_their_step(tmp_path: Path) -> None:
    calls: List[Any] = []
    run = make_trainer(tmp_path, accumulation_steps=2, ack_fn=lambda names, step: calls.append((names, step)))
    run.fit([make_batch(number, size=2) for number in range(4)])
    assert calls == [(["s0.0", "s0.1", "s1.0", "s1.1"], 1), (["s2.0", "s2.1", "s3.0", "s3.1"], 2)]


# It was dropped at the end of each epoch; in the reference only the end of the run leaves batches.
def test_a_step_may_take_batches_of_two_epochs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    acks: List[Any] = []
    run = make_trainer(tmp_path, accumulation_steps=2, num_epochs=3, ack_fn=lambda names, step: acks.append((names, step)))
    with caplog.at_level(logging.WARNING):
        assert run.fit([make_batch(number) for number in range(3)]) == 4
    assert acks == [(["s0.0", "s1.0"], 1), (["s2.0", "s0.0"], 2), (["s1.0", "s2.0"], 3), (["s0.0", "s1.0"], 4)]
    assert (run.micro_step, run.core.backend.backwards) == (9, 9) and "1 samples at the end make no whole step" in caplog.text


def test_a_step_may_take_batches_of_many_epochs(tmp_path: Path) -> None:
    run = make_trainer(tmp_path, accumulation_steps=4, num_epochs=9)
    assert run.fit([make_batch(0)]) == 2
    checkpoint = run.save_checkpoint(2)
    assert checkpoint.epoch == 7  # which the last step ended in: the ninth epoch's batch waits


def test_what_is_left_at_the_end_goes_on_in_the_next_fit(tmp_path: Path) -> None:
    acked: List[str] = []
    run = make_trainer(tmp_path, accumulation_steps=2, ack_fn=lambda names, step: acked.extend(names))
    assert run.fit([make_batch(0)]) == 0 and acked == []
    assert run.fit([make_batch(1)]) == 1 and acked == ["s0.0", "s1.0"]


def test_gradients_of_a_step_that_did_not_end_can_be_dropped() -> None:
    core = make_core(accumulation_steps=2)
    for number in (0, 1, 2):
        core.train_step(make_batch(number))
    assert core.drop_partial_step() == 1 and core.drop_partial_step() == 0
    gradients = [parameter.grad for parameter in core.backend.model.draft_model.parameters()]
    assert all(gradient is None for gradient in gradients)
    assert not core.train_step(make_batch(3)).optimizer_stepped


def test_a_batch_that_was_not_trained_on_is_not_acked(tmp_path: Path) -> None:
    acked: List[str] = []
    run = make_trainer(tmp_path, accumulation_steps=2, ack_fn=lambda names, step: acked.extend(names))
    bad = make_batch(1)
    bad.tensors["hidden_states"][0, 0, 0] = math.nan
    run.core.strategy.trainable_module().draft_model.dropout.p = 0.0
    with pytest.raises(FloatingPointError):
        run.fit([make_batch(0), bad])
    run.fit([make_batch(2)])
    assert acked == ["s0.0", "s2.0"] and run.global_step == 1


@pytest.mark.parametrize("interval", [None, 0])
def test_no_interval_is_never(tmp_path: Path, interval: Optional[int]) -> None:
    run = make_trainer(tmp_path, save_interval=interval, eval_interval=interval)
    assert run.fit([make_batch(0)], eval_data=[make_batch(1)]) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_logger_hears_of_every_so_many_steps(tmp_path: Path) -> None:
    heard: List[int] = []
    run = make_trainer(tmp_path, log_interval=2, logger=lambda metrics, step: heard.append(step if "loss" in metrics else -1))
    run.fit([make_batch(number) for number in range(5)])
    assert heard == [2, 4] and "loss" in run.last_metrics


def test_evaluations(tmp_path: Path) -> None:
    run = make_trainer(tmp_path, eval_interval=2)
    module = run.core.strategy.trainable_module()
    modes: List[bool] = []

    class Watched(List[TrainBatch]):
        def __iter__(self) -> Iterator[TrainBatch]:
            modes.append(module.training)
            return super().__iter__()

    held_out = Watched([make_batch(90), make_batch(91)])
    run.fit([make_batch(number) for number in range(4)], held_out)
    assert modes == [False, False] and module.training
    means = run.evaluate(held_out)
    assert means.keys() == {"loss", "acc"} and module.training
    module.eval()
    each = [run.core.eval_step(batch).loss for batch in held_out]
    assert means["loss"] == pytest.approx(sum(each) / 2)
    run.evaluate(held_out)
    assert not module.training
    assert run.evaluate([]) == {}


# Checkpoints


def files(folder: Path) -> List[str]:
    return sorted(path.name.split("-")[0] for path in folder.iterdir())


def test_a_checkpoint(tmp_path: Path) -> None:
    run = make_trainer(tmp_path, num_epochs=3)
    run.fit([make_batch(0)])
    saved = run.save_checkpoint(10)
    folder = tmp_path / "r-step10"
    assert saved == Checkpoint(f"file://{folder}", 10, 2, "dflash", {})
    assert files(folder) == ["rank0", "training_state.pt"]
    state = torch.load(folder / "training_state.pt", weights_only=True)
    assert (state["global_step"], state["epoch"], state["strategy"], state["run_id"]) == (10, 2, "dflash", "r")
    assert set(state["draft_state_dict"]) == {"fc.weight", "fc.bias"}
    with pytest.raises(dataclasses.FrozenInstanceError):
        saved.global_step = 11  # type: ignore[misc]
    run.save_checkpoint(10)
    assert files(folder) == ["rank0", "training_state.pt"]  # the first save's are gone


def test_checkpoints_every_so_many_steps(tmp_path: Path) -> None:
    make_trainer(tmp_path, save_interval=2).fit([make_batch(number) for number in range(5)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r-step2", "r-step4"]


@pytest.mark.parametrize("accumulation_steps, stop", [(1, 4), (2, 2), (2, 5), (1, 7)])
def test_a_resumed_run_ends_with_the_weights_of_a_whole_one(tmp_path: Path, accumulation_steps: int, stop: int) -> None:
    # Seven batches an epoch: the stop is inside one or at its end; dropout makes the random state count, AdamW its moments.
    data = [make_batch(number) for number in range(7)]
    whole = make_trainer(tmp_path / "whole", accumulation_steps, num_epochs=3)
    whole.fit(data)
    first = make_trainer(tmp_path / "cut", accumulation_steps, num_epochs=3, max_steps=stop, save_interval=stop)
    assert first.fit(data) == stop
    second = make_trainer(tmp_path / "cut", accumulation_steps, num_epochs=3, seed=99)
    assert second.resume(f"file://{tmp_path}/cut/r-step{stop}") == stop
    assert second.fit(data) == whole.global_step
    draft = [{name: value for name, value in weights(each).items() if name.startswith("draft")} for each in (whole, second)]
    assert same(*draft)


def test_what_was_trained_after_the_checkpoint_is_not_called_durable(tmp_path: Path) -> None:
    durable: List[str] = []
    run = make_trainer(tmp_path, durable_fn=lambda names, step: durable.extend(names))
    run.fit([make_batch(0)])
    saved = run.save_checkpoint(1)
    run.fit([make_batch(1)])
    run.resume(saved, skip_trained=False)  # the weights have not seen s1.0
    run.fit([make_batch(2)])
    run.save_checkpoint(2)
    assert durable == ["s0.0", "s2.0"]


def test_a_stream_is_resumed_with_what_is_left(tmp_path: Path) -> None:
    acked: List[str] = []
    saved = make_trainer(tmp_path, max_steps=2, save_interval=2).save_checkpoint(2)
    first = make_trainer(tmp_path, max_steps=2, save_interval=2)
    first.fit([make_batch(number) for number in range(4)])
    second = make_trainer(tmp_path, ack_fn=lambda names, step: acked.extend(names))
    second.resume(dataclasses.replace(saved, epoch=0), skip_trained=False)
    second.fit([make_batch(2), make_batch(3)])
    assert acked == ["s2.0", "s3.0"] and second.global_step == 4


def test_data_that_is_shorter_than_what_was_trained(tmp_path: Path) -> None:
    make_trainer(tmp_path, max_steps=3, save_interval=3).fit([make_batch(number) for number in range(4)])
    run = make_trainer(tmp_path)
    run.resume(str(tmp_path / "r-step3"))
    with pytest.raises(ValueError, match="after 3 batches, but the data has 2"):
        run.fit([make_batch(0), make_batch(1)])


def test_what_cannot_be_resumed_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saved = make_trainer(tmp_path).save_checkpoint(1)
    run = make_trainer(tmp_path)
    with pytest.raises(FileNotFoundError, match="r-step7 holds no training_state.pt"):
        run.resume(str(tmp_path / "r-step7"))
    run.core.strategy.name = "eagle3"
    with pytest.raises(ValueError, match="'dflash', this trainer's is 'eagle3'"):
        run.resume(saved)
    run.core.strategy.name = "dflash"
    for path in (tmp_path / "r-step1").glob("rank*"):
        path.unlink()
    with caplog.at_level(logging.WARNING):
        assert run.resume(saved) == 1  # one of the reference's, which has weights only
    assert "the optimizer begins anew" in caplog.text


class Boom(OSError):
    pass


@pytest.mark.parametrize("failing", range(1, 9))
def test_a_save_that_fails_leaves_the_one_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    durable: List[str] = []
    run = make_trainer(tmp_path, durable_fn=lambda names, step: durable.extend(names))
    run.fit([make_batch(0)])
    run.save_checkpoint(1)
    kept = weights(run)
    run.fit([make_batch(1)])
    durable.clear()
    left = [failing]

    def fail_in_turn(module: Any, name: str) -> None:
        real = getattr(module, name)

        def call(*arguments: Any, **more: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise Boom(name)
            return real(*arguments, **more)

        monkeypatch.setattr(module, name, call)

    for module, name in ((torch, "save"), (os, "fsync"), (os, "replace")):
        fail_in_turn(module, name)
    with pytest.raises(Boom):
        run.save_checkpoint(1)
    monkeypatch.undo()
    assert durable == []
    other = make_trainer(tmp_path, seed=99)
    other.resume(str(tmp_path / "r-step1"))
    after = weights(run) if failing == 8 else kept  # the eighth is the folder's fsync: the file is in its place already
    assert all(torch.equal(weights(other)[name], after[name]) for name in after if name.startswith("draft"))
    assert not list((tmp_path / "r-step1").glob("*.tmp"))
    run.save_checkpoint(1)
    assert durable == ["s1.0"] and files(tmp_path / "r-step1") == ["rank0", "training_state.pt"]


def test_the_order_of_a_step_and_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    story: List[str] = []
    run = make_trainer(
        tmp_path,
        save_interval=2,
        ack_fn=lambda names, step: story.append(f"ack {names} at {step}"),
        durable_fn=lambda names, step: story.append(f"durable {names} at {step}, {(tmp_path / f'r-step{step}').is_dir()}"),
    )
    step, write = run.core.backend.step, trainer._write

    def stepping() -> Any:
        story.append("step")
        return step()

    def writing(state: Dict[str, Any], path: str) -> None:
        write(state, path)
        story.append("file " + os.path.basename(path).split("-")[0])

    monkeypatch.setattr(run.core.backend, "step", stepping)
    monkeypatch.setattr(trainer, "_write", writing)
    run.fit([make_batch(number) for number in range(3)])
    assert story == [
        *("step", "ack ['s0.0'] at 1", "step", "ack ['s1.0'] at 2"),
        *("file rank0", "file training_state.pt", "durable ['s0.0', 's1.0'] at 2, True"),
        *("step", "ack ['s2.0'] at 3"),
    ]


class Killed(Exception):
    pass


@pytest.mark.parametrize("kill", ["after an ack", "in a save", "after a save", None])
def test_weights_have_seen_each_sample_once_whenever_the_trainer_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill: Optional[str]
) -> None:
    """Six samples in a stream, a checkpoint every two steps, a death at the fourth step; the draft counts what it has seen."""
    ledger = str(tmp_path / "ledger.sqlite3")

    class Counts(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.seen = torch.nn.Parameter(torch.zeros(6))

    class Counting(DraftTrainStrategy):
        name, required_features = "counting", {"x"}

        def __init__(self) -> None:
            self.model = Counts()

        def trainable_module(self) -> Any:
            return self.model

        def forward_loss(self, batch: TrainBatch) -> StepOutput:
            return StepOutput((self.model.seen * -batch.tensors["x"]).sum(), {})

    class Adding(Backend):
        def __init__(self, model: Any) -> None:
            self.model = model
            self.backwards = 0
            self.optimizer = torch.optim.SGD(model.parameters(), lr=1.0)

        def step(self) -> Any:
            self.optimizer.step()
            self.optimizer.zero_grad()

    def life(dies: Optional[str], checkpoint: Optional[str]) -> Any:
        store = SQLiteMetadataStore(ledger)
        flow = DataFlowController("run", metadata_store=store)
        flow.enqueue_offline_refs([make_ref(f"{number}") for number in range(6)])
        flow.reconcile_on_restart()
        strategy = Counting()
        lease = flow.train_lease("trainer")

        def stream() -> Iterator[TrainBatch]:
            while refs := lease.get(1):
                yield TrainBatch(ids(refs), "eagle3", {"x": torch.eye(6)[int(refs[0].sample_id)]})

        def ack(names: List[str], step: int) -> None:
            flow.ack_train_refs("trainer", names, global_step=step)
            if dies == "after an ack" and step == 4:
                raise Killed

        def durable(names: List[str], step: int) -> None:
            if dies == "after a save" and step == 4:
                raise Killed
            flow.ack_train_refs("trainer", names, global_step=step, optimizer_durable=True)

        run = TrainerController(
            TrainerCore(strategy, Adding(strategy.model)),
            **{"run_id": "r", "output_dir": str(tmp_path), "save_interval": 2, "ack_fn": ack, "durable_fn": durable},
        )
        if checkpoint:
            step = run.resume(checkpoint, skip_trained=False)
            # A checkpoint that the books have not heard of is told to them first.
            known = torch.load(f"{checkpoint}/training_state.pt", weights_only=True)["draft_state_dict"]["seen"]
            flow.ack_train_refs("trainer", [f"{n}" for n in range(6) if known[n]], global_step=step, optimizer_durable=True)
            flow.reconcile_on_restart()
        if dies == "in a save":
            write = trainer._write
            monkeypatch.setattr(trainer, "_write", lambda state, path: die() if "step4" in path else write(state, path))
        try:
            run.fit(stream())
        except Killed:
            pass
        monkeypatch.undo()
        store.close()
        return strategy.model.seen.detach()

    def die() -> None:
        raise Killed

    seen = life(kill, None)
    if kill is not None:
        assert seen.tolist() == [1, 1, 1, 1, 0, 0]
        last = tmp_path / ("r-step4" if kill == "after a save" else "r-step2")
        seen = life(None, str(last))
    assert seen.tolist() == [1] * 6


def test_ranks_save_one_checkpoint_together(tmp_path: Path) -> None:
    program = Path(__file__).with_name("checkpoint_rank.py")
    command = [sys.executable, str(program), str(tmp_path)]
    ranks = [subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for rank in range(2)]
    try:
        said = [rank.communicate(timeout=120)[0].decode() for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], said
    assert files(tmp_path / "out" / "r-step2") == ["rank0", "rank1", "training_state.pt"]
    saves = {path.stem.split("-")[1] for path in (tmp_path / "out" / "r-step2").glob("rank*")}
    assert len(saves) == 1
