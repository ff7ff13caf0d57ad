# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
import sys

import pytest


def test_metadata_needs_neither_torch_nor_numpy() -> None:
    program = (
        "import sys\n"
        "import draftflow.compat.specforge, draftflow.compat.specforge.control_plane, draftflow.compat.specforge.inference\n"
        "import draftflow.compat.specforge.training.trainer\n"
        "from draftflow.compat.specforge.data_plane import SampleRefQueue, dp_partition\n"
        "from draftflow.compat.specforge.contracts import assert_no_tensors\n"
        "assert_no_tensors({'a': [1]})\n"
        "sys.exit(sorted({'torch', 'numpy'} & set(sys.modules)) != [])\n"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0


def test_an_unknown_name_of_the_data_plane_is_an_attribute_error() -> None:
    from draftflow.compat.specforge import data_plane

    with pytest.raises(AttributeError, match="SampleRefQueue"):
        data_plane.NoSuchThing
    assert {"SampleRefQueue", "dp_partition", "LocalFeatureStore", "FeatureDataLoader"} <= set(dir(data_plane))
