# SPDX-License-Identifier: Apache-2.0
"""capture: hidden states of an ordinary torch or Hugging Face model, put into a store. Needs torch."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence

import torch

from draftflow import _core
from draftflow._errors import InvalidArgument

# Where the usual decoder models keep their layers and their last norm.
_PLACES = (
    ("model.layers", "model.norm"),
    ("layers", "norm"),
    ("transformer.h", "transformer.ln_f"),
    ("gpt_neox.layers", "gpt_neox.final_layer_norm"),
    ("model.decoder.layers", "model.decoder.final_layer_norm"),
)


class capture:
    """Hooks decoder layers and the final norm of a model while its `with` lasts.

        with draftflow.capture(model, layers=[1, 2, 3], store=store, ledger=ledger, run_id="run") as captured:
            model(input_ids)
            refs = captured.put(["run:00000000"], input_ids)

    Args:
        model: any module that calls its decoder layers and its final norm, each giving [B, T, H], or a tuple that begins so.
        layers: which decoder layers' outputs become aux_hidden_state, counted from 0, in this order.
        store, ledger: where put writes to and commits; without a ledger the refs are only returned. A ledger's samples are in
            one store, which the first put writes down; Conflict for another one.
        decoder_layers, final_norm: the modules, where they are not in a usual place (model.layers and model.norm; transformer.h
            and transformer.ln_f ...).
        dtype: of the stored hidden states.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        layers: Sequence[int],
        *,
        store: Optional[_core.Store] = None,
        ledger: Optional[_core.Ledger] = None,
        run_id: str = "run",
        strategy: str = "eagle3",
        target_model_version: str = "unknown",
        tokenizer_version: str = "unknown",
        decoder_layers: Optional[Sequence[torch.nn.Module]] = None,
        final_norm: Optional[torch.nn.Module] = None,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        self._layers = [int(layer) for layer in layers]
        self._model = model
        self._store = store
        self._ledger = ledger
        self._facts: Dict[str, Any] = dict(
            run_id=run_id,
            strategy=strategy,
            target_model_version=target_model_version,
            tokenizer_version=tokenizer_version,
            metadata={"aux_hidden_state_layer_ids": self._layers},
        )
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:  # integers would cut the hidden states off
            raise TypeError(f"dtype is {dtype!r}: a floating type of torch's is needed, as torch.bfloat16")
        self._dtype = dtype
        self._declared = False  # that the ledger's samples are in the store
        found_layers, found_norm = _find(model)
        self._modules = list(decoder_layers) if decoder_layers is not None else found_layers
        self._norm = final_norm if final_norm is not None else found_norm
        if not self._modules or self._norm is None:
            raise InvalidArgument(
                f"{type(model).__name__} has its decoder layers or final norm in none of the usual places "
                f"({', '.join(place for place, _ in _PLACES)}): pass decoder_layers= and final_norm="
            )
        if not self._layers or not all(0 <= layer < len(self._modules) for layer in self._layers):
            raise InvalidArgument(f"layers are {self._layers}: one or more from 0 to {len(self._modules) - 1} are allowed")
        for layer in set(self._layers):
            if sum(module is self._modules[layer] for module in self._modules) > 1:
                raise InvalidArgument(f"decoder layer {layer} is used at several depths: its outputs cannot be told apart")
        self._hooks: List[Any] = []
        self._outputs: Dict[int, torch.Tensor] = {}
        self._last: Optional[torch.Tensor] = None

    def __enter__(self) -> "capture":
        if self._store is not None and self._ledger is not None:
            _core.check_store(self._ledger, self._store)
        self._hooks.append(self._model.register_forward_pre_hook(self._begin))
        for layer in set(self._layers):
            self._hooks.append(self._modules[layer].register_forward_hook(self._keep(layer)))
        self._hooks.append(self._norm.register_forward_hook(self._keep(None)))
        return self

    def __exit__(self, *_: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._outputs.clear()
        self._last = None

    def _begin(self, *_: Any) -> None:
        """What an earlier forward left, whole or not, must not stand beside what this one gives."""
        self._outputs.clear()
        self._last = None

    def _keep(self, layer: Optional[int]) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            states = output[0] if isinstance(output, (tuple, list)) else output
            states = states.detach().clone()  # a module further on may work in place
            if layer is None:
                self._last = states
            else:
                self._outputs[layer] = states

        return hook

    @property
    def hidden_state(self) -> torch.Tensor:
        """[B, T, H] of the last forward, after the final norm."""
        if self._last is None:
            raise InvalidArgument("nothing is captured: run the model inside the `with` first")
        return self._last

    @property
    def aux_hidden_state(self) -> torch.Tensor:
        """[B, T, len(layers) * H] of the last forward: the outputs of the layers side by side."""
        missing = [layer for layer in self._layers if layer not in self._outputs]
        if missing:
            raise InvalidArgument(f"decoder layers {missing} have not run: run the model inside the `with` first")
        return torch.cat([self._outputs[layer] for layer in self._layers], dim=-1)

    def put(
        self,
        sample_ids: Sequence[str],
        input_ids: torch.Tensor,
        *,
        loss_mask: Optional[torch.Tensor] = None,
        attention_mask: Optional[torch.Tensor] = None,
        leases: Optional[Sequence[_core.PromptLease]] = None,
        token_counts: bool = True,
    ) -> List[_core.SampleRef]:
        """Stores each row of the last forward as a sample and commits it; the refs.

        Args:
            sample_ids: B names. input_ids: int [B, T]. loss_mask: [B, T] of 0 and 1, by default all 1.
            attention_mask: [B, T]; where it is 0 a row has padding, which is left out.
            A sample that the ledger has already (a worker started again) is left as it is; its ref is returned.
            leases: the prompts' leases, in the rows' order, where they came from Ledger.lease_prompts: each put is fenced by
                its lease, and the commit completes the prompt. Without, the refs are committed as they are.
            token_counts: tell the ledger how often each token is trained, for the draft's vocabulary map (without leases).

        ValueError, naming the sample, for NaN or infinity and for shapes that do not fit; nothing of the batch is stored then.
        """
        if isinstance(sample_ids, (str, bytes)):  # whose letters would be names
            raise TypeError(f"sample_ids is {sample_ids!r}: a list of names is needed, one a row")
        sample_ids = list(sample_ids)
        self._check_call(sample_ids, leases)
        samples = self._rows(sample_ids, input_ids, loss_mask, attention_mask)
        if self._store is None:
            raise InvalidArgument("capture was made without a store: pass store=")
        if self._ledger is not None and not self._declared:
            _core.declare_store(self._ledger, self._store)
            self._declared = True
        refs = []
        for i, (sample_id, tensors) in enumerate(zip(sample_ids, samples)):
            if leases is None and self._ledger is not None:
                there = self._ledger.get_committed(sample_id)
                if there is not None:  # a put would take its bytes from under the ledger
                    refs.append(there)
                    continue
            fence = self._ledger.fence(leases[i]) if leases is not None and self._ledger is not None else None
            refs.append(self._store.put(tensors, sample_id, fence=fence, **self._facts))
            if leases is not None and self._ledger is not None:
                self._ledger.commit_sample(refs[-1], leases[i])
        if leases is None and self._ledger is not None:
            counts = [_counts(tensors) for tensors in samples] if token_counts else None
            self._ledger.commit_samples(refs, counts)
        return refs

    def _check_call(self, sample_ids: List[str], leases: Optional[Sequence[_core.PromptLease]]) -> None:
        if len(set(sample_ids)) != len(sample_ids):
            raise InvalidArgument(f"sample ids {sample_ids} name a sample twice: each row is a sample of its own")
        if leases is None:
            return
        if self._ledger is None:
            raise InvalidArgument("leases are given, but capture was made without a ledger: pass ledger=")
        tasks = [lease.task.task_id for lease in leases]
        if tasks != sample_ids:
            raise InvalidArgument(f"leases are of {tasks}: those of the sample ids {sample_ids}, in their order, are needed")

    def _rows(
        self,
        sample_ids: Sequence[str],
        input_ids: torch.Tensor,
        loss_mask: Optional[torch.Tensor],
        attention_mask: Optional[torch.Tensor],
    ) -> List[Dict[str, torch.Tensor]]:
        hidden, aux = self.hidden_state, self.aux_hidden_state
        if input_ids.dim() == 1:
            input_ids = input_ids[None, :]
            loss_mask, attention_mask = _row(loss_mask), _row(attention_mask)
        if input_ids.is_floating_point() or input_ids.is_complex():
            raise InvalidArgument(f"input_ids are {input_ids.dtype}: token ids are integers")
        for name, mask in (("loss_mask", loss_mask), ("attention_mask", attention_mask)):
            if mask is not None and (mask.shape != input_ids.shape or not bool(((mask == 0) | (mask == 1)).all())):
                raise InvalidArgument(
                    f"{name} is {list(mask.shape)}: 0 and 1, in the shape of input_ids, {list(input_ids.shape)}, are allowed"
                )
        if hidden.shape[:2] != input_ids.shape or aux.shape[:2] != input_ids.shape or len(sample_ids) != input_ids.shape[0]:
            raise InvalidArgument(
                f"{len(sample_ids)} sample ids and input_ids {list(input_ids.shape)} beside hidden states {list(hidden.shape)} "
                f"and {list(aux.shape)}: B and T must be those of the forward"
            )
        rows = []
        for i, sample_id in enumerate(sample_ids):
            kept: Any = slice(None) if attention_mask is None else attention_mask[i].bool()
            row = {
                "input_ids": input_ids[i][kept].to(torch.int64).cpu(),
                "loss_mask": torch.ones_like(input_ids[i][kept]) if loss_mask is None else loss_mask[i][kept],
                "hidden_state": hidden[i][kept][None].to(self._dtype).cpu(),
                "aux_hidden_state": aux[i][kept][None].to(self._dtype).cpu(),
            }
            if row["input_ids"].numel() == 0:
                raise InvalidArgument(f"sample '{sample_id}' has no token: its attention_mask is 0 throughout")
            row["loss_mask"] = row["loss_mask"].to(torch.int64).cpu()
            for name in ("hidden_state", "aux_hidden_state"):
                if not bool(torch.isfinite(row[name]).all()):
                    raise InvalidArgument(f"sample '{sample_id}': {name} holds NaN or infinity")
            rows.append(row)
        return rows


def _row(mask: Optional[torch.Tensor]) -> Optional[torch.Tensor]:
    return mask[None, :] if mask is not None and mask.dim() == 1 else mask


def _counts(tensors: Dict[str, torch.Tensor]) -> Dict[int, int]:
    tokens, counts = tensors["input_ids"][tensors["loss_mask"].bool()].unique(return_counts=True)
    return dict(zip(tokens.tolist(), counts.tolist()))


def _find(model: torch.nn.Module) -> Any:
    for layers, norm in _PLACES:
        modules, last = _reach(model, layers), _reach(model, norm)
        if modules is not None and last is not None:
            return list(modules), last
    return [], None


def _reach(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name, None)
        if module is None:
            return None
    return module
