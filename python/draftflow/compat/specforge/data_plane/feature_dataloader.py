# SPDX-License-Identifier: Apache-2.0
"""FeatureDataLoader: refs and a store become batches for the trainer.

    for batch in FeatureDataLoader(store, queue, batch_size=2):   # until the queue is empty for the moment
        train(batch.tensors)                                      # then the next turn acks this batch's refs
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Callable, Iterator, Optional

from draftflow.compat.specforge.contracts import SCHEMA_VERSION, SampleRef, TrainBatch
from draftflow.compat.specforge.data_plane.feature_store import FeatureStore, get_returns_copies
from draftflow.compat.specforge.data_plane.sample_ref_queue import SampleRefQueue
from draftflow.compat.specforge.limits import check_count

if TYPE_CHECKING:
    import torch

PerSampleTransform = Callable[["dict[str, torch.Tensor]"], Any]  # what it returns, only the CollateFn must understand
CollateFn = Callable[["list[Any]"], "dict[str, Any]"]


class FeatureDataLoader:
    """Batches of a queue's refs, each taken once, or of a fixed list of refs, again in each iteration.

    A batch is acked when the next one is asked for, unless `ack` is off; one whose iteration ends there stays leased until its
    lease expires. A batch that cannot be made is failed for good in the queue, and its error raised; no lease of the store is
    ever left. With `drop_last` a rest that fills no batch is left out: a list's is skipped, a queue's goes back to it.
    Errors: ValueError for refs that do not belong in one batch or to this loader; KeyError for a sample that is not there any
    more; TypeError if `collate_fn` returns something else than tensors.
    """

    def __init__(
        self,
        store: FeatureStore,
        queue: Optional[SampleRefQueue] = None,
        *,
        refs: Optional[list[SampleRef]] = None,
        batch_size: int = 1,
        collate_fn: Optional[CollateFn] = None,
        per_sample_transform: Optional[PerSampleTransform] = None,
        device: torch.device | str = "cpu",
        clone_on_fetch: bool = True,
        drop_last: bool = True,
        strategy: str = "eagle3",
        ack: bool = True,
    ) -> None:
        if (queue is None) == (refs is None):
            raise ValueError("a loader reads a queue or a list of refs: give exactly one of `queue` and `refs`")
        self.store = store
        self.queue = queue
        self.batch_size = check_count("batch_size", batch_size, least=1)
        self.collate_fn = collate_fn or pad_and_stack
        self.per_sample_transform = per_sample_transform
        self.device = device
        self.clone_on_fetch = clone_on_fetch
        self.drop_last = drop_last
        self.strategy = strategy
        self.ack = ack
        self._refs = None if refs is None else list(refs)

    def __iter__(self) -> Iterator[TrainBatch]:
        return self._batches_of_queue() if self._refs is None else self._batches_of_refs(self._refs)

    def set_epoch(self, epoch: int) -> None:
        """Does nothing: a list of refs is read in its own order in each epoch."""

    def close(self) -> None:
        """Does nothing: a loader holds neither threads nor leases between two batches."""

    def _batches_of_refs(self, refs: list[SampleRef]) -> Iterator[TrainBatch]:
        for start in range(0, len(refs), self.batch_size):
            chunk = refs[start : start + self.batch_size]
            if self.drop_last and len(chunk) < self.batch_size:
                return
            yield self._make_batch(chunk)

    def _batches_of_queue(self) -> Iterator[TrainBatch]:
        queue = self.queue
        assert queue is not None
        while refs := queue.get(self.batch_size, timeout_s=0.0):
            if self.drop_last and len(refs) < self.batch_size:
                queue.fail(refs, reason="drop_last", retryable=True)
                return
            try:
                batch = self._make_batch(refs)
            except Exception as error:
                queue.fail(refs, reason=f"materialize: {error}", retryable=False)
                raise
            except BaseException:  # Ctrl-C is nobody's fault
                queue.fail(refs, reason="interrupted", retryable=True)
                raise
            yield batch
            if self.ack:
                queue.ack(refs)

    def _make_batch(self, refs: list[SampleRef]) -> TrainBatch:
        import torch

        self._check(refs)
        tensors = self.collate_fn([self._fetch(ref) for ref in refs])
        if not isinstance(tensors, Mapping):
            raise TypeError(f"collate_fn returned a {type(tensors).__name__}: a dict of tensors by name is needed")
        wrong = [name for name, value in tensors.items() if not isinstance(value, torch.Tensor)]
        if wrong:
            raise TypeError(f"collate_fn returned values that are no tensors: {wrong}")
        first = refs[0].metadata
        return TrainBatch(
            sample_ids=[ref.sample_id for ref in refs],
            strategy=self.strategy,
            tensors=tensors,
            metadata={"target_repr": first.get("target_repr"), "ttt_length": first.get("ttt_length")},
        )

    def _fetch(self, ref: SampleRef) -> Any:
        tensors, handle = self.store.get(ref, device=self.device)
        try:
            if self.clone_on_fetch and not get_returns_copies(self.store):
                tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        finally:
            self.store.release(handle, reason="loaded")
        return tensors if self.per_sample_transform is None else self.per_sample_transform(tensors)

    def _check(self, refs: list[SampleRef]) -> None:
        for ref in refs:
            if ref.strategy != self.strategy:
                raise ValueError(
                    f"sample {ref.sample_id!r} is of strategy {ref.strategy!r}: this loader is for {self.strategy!r}"
                )
        _check_same(refs, "schema_version", lambda ref: ref.schema_version)
        if refs[0].schema_version != SCHEMA_VERSION:
            raise ValueError(
                f"sample {refs[0].sample_id!r} has schema_version {refs[0].schema_version}: this program knows {SCHEMA_VERSION}"
            )
        _check_same(refs, "target_repr", lambda ref: ref.metadata.get("target_repr"))
        described = [ref for ref in refs if ref.feature_specs]
        _check_same(described, "names of features", lambda ref: sorted(ref.feature_specs))
        for name in described[0].feature_specs if described else ():
            _check_same(described, f"dtype of {name!r}", lambda ref: ref.feature_specs[name].dtype)
            _check_same(described, f"number of dimensions of {name!r}", lambda ref: len(ref.feature_specs[name].shape))


def pad_and_stack(features: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Stacks samples, [..] each, to [batch, ..]; where extents differ, the shorter are filled with zeros at their end.

    KeyError for samples of different names, ValueError for different dtypes or numbers of dimensions, TypeError for what is no
    dict of tensors.
    """
    for index, sample in enumerate(features):
        _check_stackable(index, sample)
        if sample.keys() != features[0].keys():
            raise KeyError(f"sample {index} of the batch has the features {list(sample)}, but sample 0 {list(features[0])}")
    return {name: _stack(name, [sample[name] for sample in features]) for name in features[0]}


def _check_stackable(index: int, sample: Any) -> None:
    import torch

    needed = "a loader without a collate_fn stacks dicts of tensors; return one from per_sample_transform, or give a collate_fn"
    if not isinstance(sample, Mapping):
        raise TypeError(f"sample {index} of the batch is a {type(sample).__name__}: {needed}")
    for name, value in sample.items():
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"feature {name!r} of sample {index} of the batch is a {type(value).__name__}: {needed}")


def _stack(name: str, values: list[torch.Tensor]) -> torch.Tensor:
    import torch

    if len({value.shape for value in values}) == 1 and len({value.dtype for value in values}) == 1:
        return torch.stack(values)
    if len({(value.dim(), value.dtype) for value in values}) != 1:
        found = [f"{value.dtype} {list(value.shape)}" for value in values]
        raise ValueError(f"feature {name!r} cannot be stacked: {found} differ in dtype or number of dimensions")
    out = values[0].new_zeros((len(values), *map(max, zip(*(value.shape for value in values)))))
    for row, value in zip(out, values):
        row[tuple(slice(extent) for extent in value.shape)] = value
    return out


def _check_same(refs: list[SampleRef], what: str, of: Callable[[SampleRef], Any]) -> None:
    for ref in refs:
        if of(ref) != of(refs[0]):
            raise ValueError(
                f"the {what} differ in one batch: sample {refs[0].sample_id!r} has {of(refs[0])!r}, sample {ref.sample_id!r} "
                f"{of(ref)!r}"
            )


__all__ = ["FeatureDataLoader", "PerSampleTransform", "CollateFn"]
