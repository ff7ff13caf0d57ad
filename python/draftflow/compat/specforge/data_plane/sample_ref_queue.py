# SPDX-License-Identifier: Apache-2.0
"""SampleRefQueue: refs waiting to be trained on, leased to consumers in this process, in the order of their commit.

Each lease has a token, which the ref that ``get`` returned stands for: ``get`` returns a copy of its own for each lease. After
a lease ended (acked, failed, or expired and given to somebody else) that copy acks and fails nothing any more. A ref from
elsewhere, such as one read from a ledger, means whichever lease its sample has now. Thread-safe.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import threading
import time
import weakref
from collections import OrderedDict, defaultdict
from dataclasses import dataclass
from typing import Any, Callable, DefaultDict, Dict, Iterable, List, Mapping, Optional, Tuple

from draftflow.compat.specforge.contracts import SampleRef, assert_no_tensors
from draftflow.compat.specforge.limits import check_count, check_limit, check_timeout

_MAX_WIDTHS = 4  # numbers of partitions that are indexed at a time; another one costs a pass over what is pending
_MAX_FAILED = 10_000  # reasons kept, the latest ones
_MAX_WAIT_S = 3600.0  # of one wait on the condition, which takes no infinite timeout


def _digest(sample_id: str) -> int:
    return int.from_bytes(hashlib.sha1(sample_id.encode("utf-8"), usedforsecurity=False).digest(), "big")


def _shard(partition: Any) -> Tuple[int, int]:
    try:
        index, width = (check_count("partition", number, least=None) for number in partition)
    except (TypeError, ValueError) as error:
        raise type(error)(_no_shard(partition)) from None
    if not 0 <= index < width:
        raise ValueError(_no_shard(partition))
    return index, width


def _no_shard(partition: Any) -> str:
    return f"partition is {partition!r}; (i, n) with 0 <= i < n is allowed: pass this rank and the width"


def dp_partition(sample_id: str, num_partitions: int) -> int:
    """The shard of a sample: the SHA-1 of its UTF-8 id as a big-endian number, modulo ``num_partitions``; 0 if that is <= 1."""
    width = check_count("num_partitions", num_partitions, least=None)
    return _digest(sample_id) % width if width > 1 else 0


class _Given(weakref.ref):  # type: ignore[type-arg]
    """A ref handed out under a lease, and the lease's token; it goes when the holder drops the ref."""

    __slots__ = ("token",)
    token: int


@dataclass
class _Lease:
    ref: SampleRef
    digest: int
    token: int
    since: float  # by the queue's clock


_Pending = Tuple[SampleRef, int]  # with its digest
_Shards = DefaultDict[int, "OrderedDict[str, None]"]  # the pending ids of each shard, in the queue's order


class SampleRefQueue:
    """A queue of refs with leases, ``lease_timeout_s`` long (None: they never expire).

    An expired lease puts its ref back at the tail when somebody next asks for refs.
    """

    def __init__(self, *, lease_timeout_s: Optional[float] = None) -> None:
        check_limit("lease_timeout_s", lease_timeout_s, "seconds")
        self.lease_timeout_s = lease_timeout_s
        self._clock: Callable[[], float] = time.monotonic
        self._tokens = itertools.count(1)
        self._given: Dict[int, _Given] = {}  # by id() of the ref; entries go by themselves, also without the lock
        self._condition = threading.Condition()
        # Guarded by the condition's lock. A dict would walk over all that was taken from it to find its first key.
        self._pending: "OrderedDict[str, _Pending]" = OrderedDict()
        self._shards: "OrderedDict[int, _Shards]" = OrderedDict()  # by width, the latest used last
        self._leased: "OrderedDict[str, _Lease]" = OrderedDict()  # the oldest first
        self._expired: Dict[str, int] = {}  # the last token of what is pending again because its lease expired
        self._failed: "OrderedDict[str, str]" = OrderedDict()

    def put(self, refs: List[SampleRef], *, partition_key: Optional[str] = None) -> None:
        """Appends refs; those whose sample is pending or leased change nothing. All or none: TypeError if one holds a tensor.

        ``partition_key`` is accepted and means nothing: the consumer partitions (``get``).
        """
        refs = list(refs)
        for ref in refs:
            assert_no_tensors(ref)
        digests = [_digest(ref.sample_id) for ref in refs]
        with self._condition:
            for ref, digest in zip(refs, digests):
                if ref.sample_id not in self._leased and ref.sample_id not in self._pending:
                    self._append(ref, digest)
            self._condition.notify_all()

    def get(
        self,
        max_refs: int,
        timeout_s: Optional[float] = None,
        *,
        partition_key: Optional[str] = None,
        partition: Optional[Tuple[int, int]] = None,
    ) -> List[SampleRef]:
        """Leases up to ``max_refs`` refs, and waits for the first one up to ``timeout_s`` (None: not at all). [] if none came.

        ``partition=(i, n)`` leases and waits for shard i of n only (``dp_partition``); ValueError unless 0 <= i < n. Any n may
        follow any other: each ref is leased once.
        """
        shard = None if partition is None else _shard(partition)
        max_refs = check_count("max_refs", max_refs, least=None)
        timeout_s = check_timeout("timeout_s", timeout_s)
        if max_refs <= 0:
            return []
        deadline = None if timeout_s is None else self._clock() + timeout_s
        with self._condition:
            while True:
                self._reclaim()
                waiting: Mapping[str, object] = self._pending
                if shard is not None:
                    waiting = self._indexed(shard[1])[shard[0]]
                if waiting:
                    return [self._lease(next(iter(waiting))) for _ in range(min(max_refs, len(waiting)))]
                if deadline is None:
                    return []
                now = self._clock()
                if now >= deadline:
                    return []
                self._condition.wait(max(0.0, min(deadline - now, self._next_expiry(now), _MAX_WAIT_S)))

    def ack(self, refs: List[SampleRef]) -> None:
        """Ends the leases of what was consumed. A late call, or one without a lease, changes nothing."""
        with self._condition:
            for ref in refs:
                self._finish(ref)

    def fail(self, refs: List[SampleRef], reason: str, retryable: bool) -> None:
        """Ends the leases: back to the tail if ``retryable``, else out of the queue (``failed``). Late calls as in ``ack``."""
        with self._condition:
            for ref in refs:
                ended = self._finish(ref)
                if ended is None:
                    continue
                if retryable:
                    self._append(*ended)
                else:
                    self._failed[ref.sample_id] = reason
                    if len(self._failed) > _MAX_FAILED:
                        self._failed.popitem(last=False)
            self._condition.notify_all()

    def depth(self) -> int:
        """Refs pending."""
        with self._condition:
            return len(self._pending)

    def in_flight(self) -> int:
        """Refs leased."""
        with self._condition:
            return len(self._leased)

    def failed(self) -> Dict[str, str]:
        """Why samples left the queue unconsumed: the latest 10,000 reasons, by sample id."""
        with self._condition:
            return dict(self._failed)

    def is_late(self, ref: SampleRef) -> bool:
        """Whether ``get`` returned this very ref under a lease that has ended, so that ack and fail would change nothing."""
        with self._condition:
            token = self._token(ref)
            lease = self._leased.get(ref.sample_id)
            return token is not None and token != (lease.token if lease else self._expired.get(ref.sample_id))

    def restart(self, refs: Iterable[SampleRef], done: Iterable[str]) -> None:
        """Voids every lease and drops the samples ``done``; then ``refs`` are pending, in their order, behind what else is."""
        entries = [(ref, _digest(ref.sample_id)) for ref in refs]
        with self._condition:
            while self._leased:
                _, lease = self._leased.popitem(last=False)
                self._append(lease.ref, lease.digest)
            self._expired.clear()
            for sample_id in done:
                self._take(sample_id)
            for ref, digest in entries:
                self._take(ref.sample_id)
                self._append(ref, digest)
            self._condition.notify_all()

    def _append(self, ref: SampleRef, digest: int) -> None:
        self._failed.pop(ref.sample_id, None)
        self._pending[ref.sample_id] = (ref, digest)
        for width, shards in self._shards.items():
            shards[digest % width][ref.sample_id] = None

    def _take(self, sample_id: str) -> Optional[_Pending]:
        entry = self._pending.pop(sample_id, None)
        if entry is not None:
            self._expired.pop(sample_id, None)
            for width, shards in self._shards.items():
                shards[entry[1] % width].pop(sample_id)
        return entry

    def _indexed(self, width: int) -> _Shards:
        shards = self._shards.get(width)
        if shards is None:
            shards = defaultdict(OrderedDict)
            for sample_id, (_, digest) in self._pending.items():
                shards[digest % width][sample_id] = None
            self._shards[width] = shards
            if len(self._shards) > _MAX_WIDTHS:
                self._shards.popitem(last=False)
        self._shards.move_to_end(width)
        return shards

    def _lease(self, sample_id: str) -> SampleRef:
        entry = self._take(sample_id)
        assert entry is not None
        ref, digest = entry
        lease = _Lease(ref, digest, next(self._tokens), self._clock())
        self._leased[sample_id] = lease
        mine = copy.copy(ref)
        table = self._given
        key = id(mine)
        given = _Given(mine, lambda _: table.pop(key, None))
        given.token = lease.token
        table[key] = given
        return mine

    def _token(self, ref: SampleRef) -> Optional[int]:
        given = self._given.get(id(ref))
        return given.token if given is not None and given() is ref else None

    def _finish(self, ref: SampleRef) -> Optional[_Pending]:
        """Ends the lease that ``ref`` stands for, also one that expired and that nobody has taken since."""
        token, lease = self._token(ref), self._leased.get(ref.sample_id)
        if lease is not None:
            if token not in (None, lease.token):
                return None
            del self._leased[ref.sample_id]
            return lease.ref, lease.digest
        if token is not None and self._expired.get(ref.sample_id) == token:
            return self._take(ref.sample_id)
        return None

    def _reclaim(self) -> None:
        now = self._clock()
        while self._leased and self.lease_timeout_s is not None:
            sample_id, lease = next(iter(self._leased.items()))
            if now - lease.since <= self.lease_timeout_s:
                return
            del self._leased[sample_id]
            self._append(lease.ref, lease.digest)
            self._expired[sample_id] = lease.token

    def _next_expiry(self, now: float) -> float:
        if self.lease_timeout_s is None or not self._leased:
            return _MAX_WAIT_S
        return next(iter(self._leased.values())).since + self.lease_timeout_s - now + 0.001


__all__ = ["SampleRefQueue", "dp_partition"]
