# SPDX-License-Identifier: Apache-2.0
"""SharedDirFeatureStore: samples in a folder that processes share, over draftflow.Store; AuthPolicy: the secret that opens one.

    producer = SharedDirFeatureStore("/shared", "st")
    ref = producer.put({"x": torch.ones(1, 4)}, sample_id="s0", metadata={"run_id": "run"})
    consumer = SharedDirFeatureStore("/shared", "st")      # in another process
    tensors, handle = consumer.get(ref)
    consumer.release(handle)                               # the last release, in any process, frees the sample
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Optional

import draftflow
from draftflow.compat.specforge.contracts import SCHEMA_VERSION, FeatureHandle, SampleRef
from draftflow.compat.specforge.data_plane.feature_store import (
    FeatureStore,
    apart,
    check_names,
    check_sample_id,
    load_feature_file,
    raw_key_of,
    spec_from_tensor,
)
from draftflow.compat.specforge.data_plane.put_ref import begin_ref, check_tensors, describe
from draftflow.compat.specforge.limits import check_clock, check_flag, check_limit, check_time, one_of

if TYPE_CHECKING:
    import torch

_SECRET_VARIABLE = "DRAFTFLOW_STORE_SECRET"
_MAX_ID_BYTES = 1024


class AuthPolicy:
    """The secret of a store; None: it has none. It is never shown."""

    def __init__(self, token: Optional[str] = None) -> None:
        _check_secret("token", token)
        self.token = token

    @property
    def required(self) -> bool:
        return self.token is not None

    def check(self, presented: Optional[str]) -> None:
        """PermissionError unless `presented` is the token, or none is required."""
        if self.token is None:
            return
        _check_secret("credential", presented)
        if presented is None or not hmac.compare_digest(presented.encode(), self.token.encode()):
            what = "no credential was" if presented is None else "a wrong credential was"
            raise PermissionError(f"the feature store needs its credential, but {what} presented: pass credential=")

    def __repr__(self) -> str:
        return f"AuthPolicy(required={self.required})"


class _Put(NamedTuple):
    """What this attach put and knows the age of. `ref` is draftflow's own."""

    ref: draftflow.SampleRef
    at: float


class SharedDirFeatureStore(FeatureStore):
    """Attaches to the store in the folder `root`/`store_id`, or makes it: consumed once, each release seen by all processes.

    A store that is made here has the layout that the reference's own processes read. With an AuthPolicy, or a `credential`
    alone, it is made with that secret instead, and from then on opens only with it, whoever leaves the policy out; `credential`
    is what this process presents. A folder that the reference wrote is only read: put is refused there, and nothing is ever
    deleted.

    `retain_on_release`: releases of this attach consume nothing. `max_hold_age_s`: gc frees what this attach put, nobody has
    leased and is older by `clock`. With a clock of one's own, health tells the ages of what this attach put, by that clock;
    else those of all, to about a minute.

    A store_id of 1 to 100 of A-Z a-z 0-9 . _ -, the first one no ".", is the folder's name. A store of another id ("lr=1e-4") is
    made in draftflow's own layout, which the reference does not read, in the folder that `root` names afterwards.

    PermissionError for a missing or wrong credential; ValueError for a store_id with "/", U+0000 or a newline, "." and "..", and
    from put for a sample_id with "/" or a newline, or too long for a file name.
    """

    def __init__(
        self,
        root: str,
        store_id: Optional[str] = None,
        *,
        auth: Optional[AuthPolicy] = None,
        credential: Optional[str] = None,
        max_hold_age_s: Optional[float] = None,
        retain_on_release: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_limit("max_hold_age_s", max_hold_age_s, "seconds")
        check_clock(clock)
        _check_secret("credential", credential)
        if isinstance(auth, (str, bytes)):
            raise TypeError(f"auth is a {type(auth).__name__}: an AuthPolicy is needed, as auth=AuthPolicy(token)")
        self.auth = AuthPolicy() if auth is None else auth
        self.auth.check(credential)
        self.store_id = uuid.uuid4().hex[:8] if store_id in (None, "") else _checked_store_id(store_id)
        self.root = os.path.join(_folder_of(root), _folder_name(self.store_id))
        self.max_hold_age_s = max_hold_age_s
        self.retain_on_release = check_flag("retain_on_release", retain_on_release)
        self._credential = credential
        self._clock = clock
        # draftflow makes the folder's name of the id by itself.
        folder = os.path.join(_folder_of(root), self.store_id)
        self._store = _attach(folder, self.auth, credential, self.retain_on_release)
        health = self._store.health()
        self._auth_required = health["secret"]
        self._remembers = max_hold_age_s is not None or clock is not time.monotonic
        self._lock = threading.Lock()
        self._puts: dict[str, _Put] = {}  # guarded by the lock
        self._force_freed = 0

    def put(self, tensors: dict[str, torch.Tensor], *, sample_id: str, metadata: dict[str, Any]) -> SampleRef:
        self.auth.check(self._credential)
        if sample_id.__class__ is not str:  # C++ would take bytes for one
            sample_id = check_sample_id(sample_id)
        fields, target = begin_ref(sample_id, f"disagg://{self.store_id}/{sample_id}", metadata)
        at = self._clock() if self._remembers else 0.0  # a clock that fails must not fail what is stored
        try:
            ref: SampleRef = self._store._put_described(tensors, sample_id, fields, describe, SampleRef)
        except (TypeError, ValueError):
            check_sample_id(sample_id)  # a surrogate
            check_tensors(tensors, sample_id)
            if isinstance(tensors, dict):
                raise
            # Another mapping, as transformers has.
            ref = self._store._put_described(dict(tensors), sample_id, fields, describe, SampleRef)
        if target is not None:
            target.stamp(ref.feature_specs)
        if self._remembers:
            stored = draftflow.SampleRef.locator(ref)
            with self._lock:
                self._puts[sample_id] = _Put(stored, at)
        return ref

    def get(
        self,
        sample_ref: SampleRef = None,  # type: ignore[assignment]
        *,
        device: torch.device | str = "cpu",
        names: Optional[list[str]] = None,
        ref: Optional[SampleRef] = None,
    ) -> tuple[dict[str, torch.Tensor], FeatureHandle]:
        if ref is not None or sample_ref is None:
            sample_ref = one_of("get", sample_ref=sample_ref, ref=ref)
        self.auth.check(self._credential)
        elsewhere = device != "cpu" and str(device) != "cpu"
        if elsewhere:
            _check_device(device)  # before there is a lease, whose end would consume the sample
        if names is not None:
            names = check_names(names, sample_ref)
        try:
            got = None
            if sample_ref.feature_specs and sample_ref.metadata.get("generation") is not None:
                got = self._store._get_located(sample_ref, names, FeatureHandle)
            if got is None:
                got = self._get_found(sample_ref, names)
        except TypeError as error:
            _check_generation(sample_ref.metadata.get("generation"), sample_ref.sample_id)
            raise TypeError(f"the ref of sample {sample_ref.sample_id!r} has a field of a wrong type: {error}") from None
        tensors, handle = got
        if names or elsewhere:
            try:
                if names:
                    tensors = {name: tensors[name] for name in names}
                if elsewhere:
                    tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
            except BaseException:
                self._store.release(draftflow.FeatureHandle(handle.sample_id, handle.generation, handle.lease_token))
                raise
        return tensors, handle

    get.returns_copies = True  # type: ignore[attr-defined]

    def release(self, handle: FeatureHandle, *, reason: str = "consumed") -> None:
        try:
            lease = draftflow.FeatureHandle(handle.sample_id, handle.generation, handle.lease_token)
        except TypeError:
            if isinstance(handle.generation, int):  # one that no generation has
                return
            raise TypeError(f"release takes what get returned, with an int as generation: {handle!r} was given") from None
        self._store.release(lease)
        if self._remembers and not self.retain_on_release:
            self._forget(handle.sample_id, handle.generation)

    def abort(self, sample_id: str, *, reason: str = "aborted") -> None:
        self._store.abort(check_sample_id(sample_id))
        if self._remembers:
            self._forget(sample_id)

    def gc(self, *, now: Optional[float] = None) -> dict[str, int]:
        """Also does what any process may do for all: leases of the dead end, their leavings go, failed frees are retried."""
        if now is not None:
            now = check_time("now", now)
        pending = self._store.gc()["release_pending"]
        freed, freed_bytes = self._free_old(self._clock() if now is None else now)
        with self._lock:
            self._force_freed += freed
        return {"force_freed": freed, "force_freed_bytes": freed_bytes, "release_pending": pending}

    def health(self) -> dict[str, Any]:
        health = self._store.health()
        with self._lock:
            ages = [self._clock() - put.at for put in self._puts.values()]
            force_freed = self._force_freed
        if self._clock is time.monotonic:
            oldest, average = health["oldest_age_s"], health["average_age_s"]
        else:
            oldest, average = (max(ages), sum(ages) / len(ages)) if ages else (0.0, 0.0)
        return {
            "store_id": self.store_id,
            "backend": "shared_dir",
            "root": self.root,
            "resident_samples": health["resident_samples"],
            "active_leases": health["live_leases"],
            "resident_bytes": health["resident_bytes"],
            "max_resident_bytes": health["max_resident_bytes"] or None,
            "release_pending": health["release_pending"],
            "auth_required": self._auth_required,
            "oldest_age_s": oldest,
            "avg_age_s": average,
            "force_freed_total": force_freed,
        }

    def _get_found(self, ref: SampleRef, names: Optional[list[str]]) -> tuple[dict[str, torch.Tensor], FeatureHandle]:
        """A get by what the stored bytes know, for a ref that lacks it, or that has names of its own for what is stored."""
        found = self._found(ref, ref.metadata.get("generation"))
        specs = found.feature_specs
        wanted = {name: _stored_name(ref, name, specs) for name in names or ref.feature_keys or specs}
        for name, key in wanted.items():
            given, stored = ref.feature_specs.get(name), specs[key]
            if given is not None and (tuple(given.shape), given.dtype) != (tuple(stored.shape), stored.dtype):
                raise draftflow.Corrupt(
                    f"sample {ref.sample_id!r} in store {self.store_id!r}: tensor {key!r} is {stored.dtype} {list(stored.shape)}, but"
                    f" the ref says {given.dtype} {list(given.shape)} of {name!r}: use the ref that put returned"
                )
        got = self._store._get_located(found, list(dict.fromkeys(wanted.values())), FeatureHandle)
        assert got is not None
        tensors, handle = got
        try:
            return apart({name: tensors[key] for name, key in wanted.items()}), handle
        except BaseException:
            self._store.release(draftflow.FeatureHandle(handle.sample_id, handle.generation, handle.lease_token))
            raise

    def _found(self, ref: SampleRef, generation: Optional[int]) -> draftflow.SampleRef:
        """What the stored bytes know that `ref` does not say; KeyError for a ref of another store, which C++ does not see."""
        uri, incarnation = f"disagg://{self.store_id}/{ref.sample_id}", ref.metadata.get("incarnation")
        if ref.feature_store_uri != uri:
            here = f"store {self.store_id!r}"
            raise KeyError(f"sample {ref.sample_id!r} of {here} is not here: its URI is {ref.feature_store_uri!r}")
        found = self._store.find(ref.sample_id, generation)
        if incarnation not in (None, found.incarnation):
            raise KeyError(
                f"sample {ref.sample_id!r} is of incarnation {incarnation} of store {self.store_id!r}, which is"
                f" {found.incarnation} now: the folder was made anew; use a current ref"
            )
        return found

    def _forget(self, sample_id: str, generation: Optional[int] = None) -> None:
        with self._lock:
            put = self._puts.get(sample_id)
            if put is not None and generation in (None, put.ref.generation):
                del self._puts[sample_id]

    def _free_old(self, now: float) -> tuple[int, int]:
        freed = freed_bytes = 0
        with self._lock:
            puts = list(self._puts.items())
        if not puts:
            return freed, freed_bytes
        resident = {(sample.sample_id, sample.generation): sample for sample in self._store.resident()}
        for sample_id, put in puts:
            found = resident.get((sample_id, put.ref.generation))
            if found is not None:
                if self.max_hold_age_s is None or now - put.at <= self.max_hold_age_s or found.leases:
                    continue
                if self._store.remove(put.ref):
                    freed += 1
                    freed_bytes += found.bytes
            self._forget(sample_id, put.ref.generation)
        return freed, freed_bytes


def _stored_name(ref: SampleRef, name: str, stored: Any) -> str:
    key = ref.feature_keys.get(name, name)
    for candidate in (key, key.removeprefix(f"{ref.sample_id}/"), raw_key_of(ref, name)):
        if candidate in stored:
            return candidate
    raise KeyError(f"sample {ref.sample_id!r} has no tensor {key!r} for feature {name!r}: it has {list(stored)}")


def _attach(folder: str, auth: AuthPolicy, credential: Optional[str], retain_on_release: bool) -> draftflow.Store:
    token = getattr(auth, "token", None)  # a policy of somebody's own may have none to show
    secret = None if token is None else token.encode()
    try:
        return draftflow.Store.open(folder, secret=secret, retain_on_release=retain_on_release)
    except draftflow.PermissionDenied:
        if secret is not None or credential is None:
            raise
        return draftflow.Store.open(folder, secret=credential.encode(), retain_on_release=retain_on_release)
    except draftflow.NotFound:
        if secret is None and credential is not None:  # it would be open to those who present none
            secret = credential.encode()
        plain = _is_plain(os.path.basename(folder))
        if not plain and os.path.lexists(folder):  # one of that very name is none of ours
            raise ValueError(
                f"{folder} was not made by draftflow, and a store of draftflow's cannot be called so: attach to it by a name of 1 to"
                " 100 of A-Z a-z 0-9 . _ -, after renaming the folder, or choose another store_id"
            ) from None
        open_to_all = secret is None and not os.environ.get(_SECRET_VARIABLE)
        layout = "specforge" if open_to_all and plain else "draftflow"  # the reference's has no place for a secret, nor for such a name
        return draftflow.Store.create(
            folder, kind="consume-once", layout=layout, secret=secret, retain_on_release=retain_on_release
        )


def _checked_store_id(store_id: Any) -> str:
    if not isinstance(store_id, str):
        raise TypeError(f"store_id is {store_id!r}, a {type(store_id).__name__}: a str is needed")
    try:
        size = len(store_id.encode())
    except UnicodeEncodeError as error:
        raise ValueError(f"store_id {store_id!r} is not UTF-8 at character {error.start}: give it a valid text") from None
    if size > _MAX_ID_BYTES or re.search(r"[/\0\n]", store_id) or store_id in (".", ".."):
        raise ValueError(
            f"store_id is {store_id[:80]!r}: it names a folder, so up to {_MAX_ID_BYTES} bytes are allowed, but no '/', newline or"
            " U+0000, and neither '.' nor '..'"
        )
    return str(store_id)


def _is_plain(store_id: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", store_id) is not None


def _folder_name(store_id: str) -> str:
    """As draftflow names the folder of a store: a plain id itself, else what is readable of it and its SHA-256."""
    if _is_plain(store_id):
        return store_id
    raw = store_id.encode()
    readable = re.sub(rb"[^A-Za-z0-9._-]", b"_", raw[:64])
    readable = b"_" + readable[1:] if readable.startswith(b".") else readable
    return f"{readable.decode()}~{hashlib.sha256(raw).hexdigest()}"


def _check_secret(name: str, secret: Any) -> None:
    if secret is None:
        return
    if not isinstance(secret, str):
        raise TypeError(f"{name} is a {type(secret).__name__}: a str is needed, or None")
    try:
        secret.encode()
    except UnicodeEncodeError:  # whose text has the secret in it
        raise ValueError(f"{name} is not UTF-8: give it a valid text") from None


def _folder_of(root: Any) -> str:
    folder = os.fsdecode(root)
    if "\0" in folder:
        raise ValueError(f"root is {folder!r}: no folder has U+0000 in its name")
    return folder


def _check_generation(generation: Any, sample_id: str) -> None:
    if generation is None or isinstance(generation, int) and 0 <= generation < 1 << 64:
        return
    if isinstance(generation, int):
        raise KeyError(f"sample {sample_id!r} generation {generation} was never written: use a current ref")
    kind = type(generation).__name__
    raise TypeError(f"the ref of sample {sample_id!r} has generation {generation!r}, a {kind}: an int is needed")


def _check_device(device: torch.device | str) -> None:
    import torch

    torch.empty(0, device=device)


# The others too: as there, they are found here.
__all__ = ["SCHEMA_VERSION", "AuthPolicy", "SharedDirFeatureStore", "load_feature_file", "spec_from_tensor"]
