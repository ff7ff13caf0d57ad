# SPDX-License-Identifier: Apache-2.0
"""OfflineManifestReader: a folder of feature files as refs that point at the files in place; nothing is copied."""

from __future__ import annotations

import errno
import os
from itertools import islice
from typing import Any, Iterator, Optional, Sequence

from draftflow.compat.specforge.contracts import SCHEMA_VERSION, FeatureSpec, SampleRef
from draftflow.compat.specforge.data_plane.feature_store import check_keys, load_feature_file, spec_from_tensor
from draftflow.compat.specforge.limits import one_of

_OFFLINE_EAGLE3_KEYS = EAGLE3_KEYS = ("input_ids", "loss_mask", "hidden_state", "aux_hidden_state")

_ENDINGS = (".ckpt", ".ckpt.gz")


def list_feature_files(path: str) -> list[str]:
    """Absolute paths of the `.ckpt` and `.ckpt.gz` files anywhere under the folder, sorted; of a file, its own."""
    if os.path.isfile(path):
        return [os.path.abspath(path)]
    found = []
    for folder, _, names in os.walk(path):
        found += [os.path.abspath(os.path.join(folder, name)) for name in names if name.endswith(_ENDINGS)]
    return sorted(found)


class OfflineManifestReader:
    """Iterates over the refs of a folder, or of one file: the n-th file is sample `{run_id}:{n:08d}`, with a file:// URI.

    With `validate_files` each file is read once: its specs, `num_tokens` and `estimated_bytes` are filled in; KeyError names a
    file that lacks one of `feature_keys`, TypeError one where the value of such a key is no tensor. Without it a ref costs no
    reading and those fields stay empty. FileNotFoundError for a path where nothing is, when it is read. `path` is another name
    for `hidden_states_path`.
    """

    def __init__(
        self,
        hidden_states_path: Optional[str] = None,
        *,
        path: Optional[str] = None,
        run_id: str = "offline",
        strategy: str = "eagle3",
        target_model_version: str = "unknown",
        tokenizer_version: str = "unknown",
        feature_keys: Sequence[str] = EAGLE3_KEYS,
        ttt_length: int = 7,
        max_len: int = 2048,
        target_repr: Optional[str] = "hidden_state",
        validate_files: bool = True,
    ) -> None:
        self.hidden_states_path: str = one_of("OfflineManifestReader", hidden_states_path=hidden_states_path, path=path)
        self.run_id = run_id
        self.strategy = strategy
        self.target_model_version = target_model_version
        self.tokenizer_version = tokenizer_version
        self.feature_keys = tuple(feature_keys)
        self.ttt_length = ttt_length
        self.max_len = max_len
        self.target_repr = target_repr
        self.validate_files = validate_files

    @property
    def path(self) -> str:
        """Another name for `hidden_states_path`."""
        return self.hidden_states_path

    @path.setter
    def path(self, path: str) -> None:
        self.hidden_states_path = path

    def __iter__(self) -> Iterator[SampleRef]:
        if not os.path.exists(self.path):  # a misspelled name is no set without samples
            raise FileNotFoundError(errno.ENOENT, "no folder of feature files is here", os.path.abspath(self.path))
        for index, path in enumerate(list_feature_files(self.path)):
            yield self._make_ref(index, path)

    def read(self, limit: Optional[int] = None) -> list[SampleRef]:
        """The refs as a list; the first `limit` of them."""
        return list(islice(self, limit))

    def _make_ref(self, index: int, path: str) -> SampleRef:
        specs, num_tokens, nbytes = self._inspect(path) if self.validate_files else ({}, 0, 0)
        return SampleRef(
            sample_id=f"{self.run_id}:{index:08d}",
            run_id=self.run_id,
            source_task_id=None,
            feature_store_uri=f"file://{path}",
            feature_keys={key: key for key in self.feature_keys},
            feature_specs=specs,
            strategy=self.strategy,
            schema_version=SCHEMA_VERSION,
            target_model_version=self.target_model_version,
            tokenizer_version=self.tokenizer_version,
            num_tokens=num_tokens,
            estimated_bytes=nbytes,
            metadata={
                "format": f"offline_{self.strategy}",
                "target_repr": self.target_repr,
                "schema_version": SCHEMA_VERSION,
                "ttt_length": self.ttt_length,
                "max_len": self.max_len,
                "file_index": index,
            },
        )

    def _inspect(self, path: str) -> tuple[dict[str, FeatureSpec], int, int]:
        tensors = load_feature_file(path)
        check_keys(path, tensors, self.feature_keys)
        specs = {key: spec_from_tensor(key, tensors[key]) for key in self.feature_keys}
        nbytes = sum(tensors[key].numel() * tensors[key].element_size() for key in self.feature_keys)
        num_tokens = int(tensors["input_ids"].numel()) if "input_ids" in tensors else 0
        return specs, num_tokens, nbytes


__all__ = ["OfflineManifestReader", "list_feature_files"]
