# SPDX-License-Identifier: Apache-2.0
"""Stream: a ledger's samples as a dataset of padded batches, each sample trained exactly once. Needs torch."""

from __future__ import annotations

import ctypes
import dataclasses
import secrets
from typing import Any, Dict, Iterator, List, Mapping, Optional, Tuple

import torch
import torch.distributed
import torch.utils.data

from draftflow import _core
from draftflow._errors import InvalidArgument


@dataclasses.dataclass(frozen=True)
class Batch:
    """Samples padded on the right to one length.

    tensors: {name: [B, T, ...]}; {} if no sample of the batch could be read, or this rank has none in the window (`empty`).
    lengths: tokens of each row, 0 for a failed one. failed: {sample id: why}; its row is zeros, so that its loss mask is too.
    window: the number of the window, which is one optimizer step of all ranks. last: this rank's last batch of it.
    """

    tensors: Dict[str, torch.Tensor]
    sample_ids: List[str]
    lengths: List[int]
    failed: Dict[str, str]
    window: int
    index: int
    last: bool

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name]

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __len__(self) -> int:
        return len(self.sample_ids)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to compute with: no sample of it could be read, or this rank has none. The step counts."""
        return not self.tensors

    def mask(self) -> torch.Tensor:
        """Bool [B, T]: True where a row has a token. Of an empty batch [B, 0]."""
        lengths = torch.tensor(self.lengths, dtype=torch.int64)
        return torch.arange(int(lengths.max()) if self.lengths else 0)[None, :] < lengths[:, None]

    def to(self, device: Any, non_blocking: bool = False) -> "Batch":
        return self._with(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        return self._with(lambda tensor: tensor.pin_memory())

    def _with(self, change: Any) -> "Batch":
        return dataclasses.replace(self, tensors={name: change(tensor) for name, tensor in self.tensors.items()})


_STATE: Dict[str, Tuple[type, ...]] = {
    "ledger_id": (str,),
    "group": (str,),
    "timeline": (int,),
    "step": (int,),
    "position": (int,),
    "window": (int, type(None)),
    "seed": (int,),
}


class Stream(torch.utils.data.IterableDataset[Batch]):
    """This rank's share of a group's windows as padded batches, fetched and checked ahead.

    One window is one optimizer step. The order of a step is: `optimizer.step()`, `stream.trained(step)`, and where a checkpoint
    is due: write it with `stream.state_dict()` in it, then `stream.checkpointed(step)`. Whatever dies, whoever resumes with
    `load_state_dict` of a checkpoint goes on with what its weights have not seen.

        stream = draftflow.Stream(store, ledger, group="draft", window=8, batch_size=2)
        for batch in stream:
            loss(batch).backward()
            if batch.last:
                optimizer.step(); optimizer.zero_grad()
                step += 1
                stream.trained(step)

    Args:
        group: one training run over the samples. With `window` (W, samples of an optimizer step over all ranks) it is declared;
            without, it must be there.
        rank, world: this process among the ranks; by default torch.distributed's, or one rank. world divides W.
        launch: names this start of the ranks; with torch.distributed it is agreed on by itself. A new one for each start.
        batch_size: samples of a batch, 0: the rank's whole share of the window.
        check: 'eagle3' (its four tensors, shapes and token ids) or 'finite' (no NaN, no infinity).
        prefetch: batches fetched ahead.
        timeout_s: TimeoutError if no batch came for so long; None: wait for ever.
        epochs, seed: of an offline set (`draftflow ingest`), read in a seeded order in each epoch.
        passes: how often a stream is replayed, once it has ended.
        max_window_tokens: a window is closed before the sample that would take it past so many tokens; 0: no cap.
        accept_loss: resume from a checkpoint older than the bytes allow, dropping what is gone.

    With workers, `open()` first, then `DataLoader(stream, batch_size=None, num_workers=n)`: they share the batches out among
    themselves, and the order is that of one.
    """

    def __init__(
        self,
        store: _core.Store,
        ledger: _core.Ledger,
        *,
        group: str = "train",
        rank: Optional[int] = None,
        world: Optional[int] = None,
        launch: Optional[str] = None,
        window: Optional[int] = None,
        batch_size: int = 0,
        resumable_checkpoints: int = 1,
        tail: str = "drop",
        passes: int = 1,
        max_window_tokens: int = 0,
        epochs: int = 1,
        seed: int = 0,
        check: str = "eagle3",
        hidden_size: int = 0,
        vocab_size: int = 0,
        prefetch: int = 2,
        timeout_s: Optional[float] = None,
        accept_loss: bool = False,
    ) -> None:
        super().__init__()
        self._store = store
        self._ledger = ledger
        self._group = group
        self._rank, self._world = _ranks(rank, world)
        self._launch = launch
        self._window = window
        self._declared: Dict[str, Any] = dict(
            resumable_checkpoints=resumable_checkpoints, tail=tail, passes=passes, max_window_tokens=max_window_tokens
        )
        self._epochs = epochs
        self._seed = seed
        self._timeout_s = timeout_s
        self._accept_loss = accept_loss
        self._reading: Dict[str, Any] = dict(
            batch_size=batch_size,
            check=check,
            hidden_size=hidden_size,
            vocab_size=vocab_size,
            ahead=prefetch,
            rank=self._rank,
            width=self._world,
        )
        self._resume: Optional[Mapping[str, Any]] = None
        self._opened = False
        self._store_known = False  # whether the ledger's samples are known to be in this store
        self._offline = False
        self._timeline = 0
        self._ledger_id = ""
        self._step = 0  # the last one said to be trained
        # The window that the next step trains: shared with DataLoader workers, which may live on and iterate again.
        self._position = torch.zeros((), dtype=torch.int64).share_memory_()
        self._seen = 0  # windows handed out whole by the reader of this process
        self._wait_s = 0.0
        self._reader: Optional[_core.BatchReader] = None

    @property
    def _next(self) -> int:
        return int(self._cell().value)

    @_next.setter
    def _next(self, window: int) -> None:
        self._cell().value = window

    def _cell(self) -> ctypes.c_int64:
        """The shared memory itself: torch lets Python's lock go to read a number, and aborts a daemon thread at the end."""
        return ctypes.c_int64.from_address(self._position.data_ptr())

    # --- opening

    def open(self) -> "Stream":
        """Joins the ledger; iterating does it by itself, but for DataLoader workers. Idempotent.

        Conflict: the ledger's samples are in another store, or the checkpoint is not on this ledger's line. InvalidArgument: a
        width that does not divide W, a checkpoint older than the bytes allow.
        """
        if self._opened:
            return self
        if torch.utils.data.get_worker_info() is not None:
            raise InvalidArgument("the stream is not open: call stream.open() before a DataLoader starts its workers")
        self._check_store()
        self._offline = self._ledger.declared("kind") == "offline"
        self._ledger_id = self._ledger.id
        if self._offline:
            self._open_offline()
        else:
            self._open_stream()
        self._opened = True
        return self

    def _check_store(self) -> None:
        """Until the ledger can tell: before anything is written down that another store's lack of the samples would lead to."""
        if not self._store_known:
            self._store_known = _core.check_reader(self._ledger, self._store)

    def _open_offline(self) -> None:
        for name, allowed in (("passes", 1), ("max_window_tokens", 0)):
            if self._declared[name] != allowed:
                raise InvalidArgument(
                    f"{name} is {self._declared[name]}, and ledger {self._ledger.url} has an offline set: only a stream has it"
                    + ("; epochs= reads a set again" if name == "passes" else "")
                )
        if self._window is None or self._window < 1 or self._window % self._world != 0:
            raise InvalidArgument(
                f"window is {self._window} for {self._world} ranks: an offline set needs a window that the ranks divide"
            )
        if self._resume is not None:
            for name, mine in (("ledger_id", self._ledger_id), ("seed", self._seed), ("window", self._window)):
                if self._resume[name] != mine:
                    raise InvalidArgument(
                        f"the checkpoint was trained with {name} {self._resume[name]!r}, and this stream has {mine!r}: they must be "
                        "equal"
                    )
            self._step, self._next = int(self._resume["step"]), int(self._resume["position"])

    def _open_stream(self) -> None:
        if self._epochs != 1:
            raise InvalidArgument(
                f"epochs is {self._epochs}, and ledger {self._ledger.url} has a stream: passes= replays one once it has ended"
            )
        if self._window is not None:
            self._ledger.declare_group(self._group, window=self._window, **self._declared)
        mark = None
        if self._resume is not None:
            state = self._resume
            mark = _core.CheckpointMark(state["ledger_id"], state["group"], int(state["timeline"]), int(state["step"]))
        timeline = self._ledger.open_timeline(
            self._group,
            resume=mark,
            width=self._world,
            rank=self._rank,
            launch=self._agreed_launch(),
            accept_loss=self._accept_loss,
        )
        self._timeline, self._step, self._next = timeline.number, timeline.first_step, timeline.first_window

    def _agreed_launch(self) -> str:
        if self._launch is not None:
            return self._launch
        if self._world == 1:
            return secrets.token_hex(8)
        if not _distributed():
            raise InvalidArgument(
                f"{self._world} ranks without torch.distributed: pass launch=, one name for all ranks of this start, never "
                "used before"
            )
        name: List[Any] = [secrets.token_hex(8)]
        torch.distributed.broadcast_object_list(name, src=0)
        return str(name[0])

    # --- reading

    def __iter__(self) -> Iterator[Batch]:
        self.open()
        worker = torch.utils.data.get_worker_info()
        reading = dict(self._reading)
        if worker is not None:
            reading.update(reader=worker.id, readers=worker.num_workers)
        if self._offline:
            assert self._window is not None  # open() has looked
            reader = _core.BatchReader.of_offline_set(
                self._ledger,
                self._store,
                window=self._window,
                epochs=self._epochs,
                seed=self._seed,
                position=self._next,
                **reading,
            )
        else:
            reader = _core.BatchReader.of_stream(
                self._ledger, self._store, group=self._group, timeline=self._timeline, first_window=self._next, **reading
            )
        if self._reader is not None:  # the newest iteration counts: an older one, forgotten or not, ends with an error
            self._reader.close()
        self._reader, self._seen = reader, self._next
        try:
            while True:
                batch = reader.next(self._timeout_s)
                if batch is False:
                    return
                if batch is None:
                    raise TimeoutError(
                        f"no batch of group '{self._group}' came for {self._timeout_s} s: is a producer still at work?"
                    )
                yield self._hand_out(batch)
        finally:
            reader.close()
            self._wait_s += reader.wait_seconds
            if self._reader is reader:
                self._reader = None

    def _hand_out(self, batch: Any) -> Batch:
        failed = batch.failed
        if failed:
            self._check_store()
        elif batch.sample_ids:  # what was read is there
            self._store_known = True
        if failed and not self._offline:  # before the step, which is of all ranks: whoever says trained says it for all
            self._ledger.report_failed(self._group, self._timeline, batch.window, failed)
        if batch.last:
            self._seen = max(self._seen, batch.window + 1)
        return Batch(batch.tensors(), batch.sample_ids, batch.lengths, failed, batch.window, batch.index, batch.last)

    @property
    def step(self) -> int:
        """The optimizer steps done, as trained() said last, or the checkpoint that was loaded."""
        self._need_open("step")
        return self._step

    @property
    def wait_seconds(self) -> float:
        """How long iterating has waited for data so far, in this process."""
        return self._wait_s + (self._reader.wait_seconds if self._reader is not None else 0.0)

    # --- answering

    def trained(self, step: int) -> None:
        """The next window is in the weights since optimizer step `step` (1-based). After optimizer.step(), by every rank.

        Conflict: another launch has taken over; stop.
        """
        self._need_open("trained")
        if self._reader is not None and self._next >= self._seen:
            raise InvalidArgument(
                f"trained({step}): window {self._next} was not handed out whole yet: a step is said to be trained after the "
                "batch whose `last` is true"
            )
        if self._offline and not (isinstance(step, int) and step > self._step):
            raise InvalidArgument(f"trained({step!r}): steps count upwards, and {self._step} is done already")
        if not self._offline:
            self._ledger.trained(self._group, self._timeline, self._next, step)
        self._next += 1
        self._step = step

    def checkpointed(self, step: int) -> int:
        """The checkpoint of step `step` is on disk. Rank 0 then frees the bytes that no checkpoint needs; how many samples."""
        self._need_open("checkpointed")
        if self._offline:
            return 0
        self._check_store()
        self._ledger.checkpointed(self._group, self._timeline, step)
        return _free(self._store, self._ledger, 256) if self._rank == 0 else 0

    def state_dict(self) -> Dict[str, Any]:
        """What a checkpoint must hold of the stream: which windows its weights have seen. Plain values."""
        self._need_open("state_dict")
        return {
            "ledger_id": self._ledger_id,
            "group": self._group,
            "timeline": self._timeline,
            "step": self._step,
            "position": self._next,
            "window": self._window,
            "seed": self._seed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint; before the stream is opened. The number of ranks may be another."""
        if self._opened:
            raise InvalidArgument("the stream is open already: load_state_dict comes before open() and the first batch")
        for name, kinds in _STATE.items():
            if name not in state or not isinstance(state[name], kinds) or isinstance(state[name], bool):
                found = repr(state[name]) if name in state else "not there"
                raise InvalidArgument(
                    f"the state's {name} is {found}: state_dict() of a Stream is needed, as a checkpoint holds it"
                )
        self._resume = dict(state)

    def _need_open(self, call: str) -> None:
        if not self._opened:
            raise InvalidArgument(f"{call}: the stream is not open: iterate it, or call open(), first")

    def __getstate__(self) -> Dict[str, Any]:
        return {**self.__dict__, "_reader": None}


def sweep(store: _core.Store, ledger: _core.Ledger, limit: int = 256) -> int:
    """Frees the bytes of all samples that every group is done with; how many. Harmless from any process, at any time.

    Conflict, before anything changes, if the ledger's samples are in another store.
    """
    _core.check_store(ledger, store)
    return _free(store, ledger, limit)


def _free(store: _core.Store, ledger: _core.Ledger, limit: int) -> int:
    freed = 0
    while True:
        refs = ledger.freeable(limit)
        if not refs:
            return freed
        for ref in refs:
            store.remove(ref)
        ledger.freed([ref.sample_id for ref in refs])
        freed += len(refs)


def _distributed() -> bool:
    return bool(torch.distributed.is_available() and torch.distributed.is_initialized())


def _ranks(rank: Optional[int], world: Optional[int]) -> Tuple[int, int]:
    if (rank is None) != (world is None):
        raise InvalidArgument(f"rank is {rank} and world {world}: both are given, or neither")
    if rank is None or world is None:
        return (torch.distributed.get_rank(), torch.distributed.get_world_size()) if _distributed() else (0, 1)
    if not 0 <= rank < world:
        raise InvalidArgument(f"rank is {rank} of {world}: 0 to {world - 1} is allowed")
    return rank, world
