#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Reads what torch_zip_writer_test wrote into a folder with the real torch.load. Exit 77: PyTorch is absent.

check_torch_files.py FOLDER        the values that the test says it wrote; saves them again with torch.save
check_torch_files.py --big FILE    the directory of a file over 4 GiB, and its last tensor
"""

import os
import sys
import zipfile

try:
    import torch
except ImportError as error:
    print(error)
    sys.exit(77)

INTEGERS = [[0, 1, 2], [3, 100, 127]]
FLOATS = [[0.0, 1.5, -2.0], [0.25, -0.125, 96.0]]
EXPECTED = {
    "dtypes.ckpt": {
        "bool": torch.tensor([[False, True, True], [True, False, True]]),
        **{name: torch.tensor(INTEGERS, dtype=getattr(torch, name)) for name in ("uint8", "int8", "int16", "int32", "int64")},
        **{name: torch.tensor(FLOATS, dtype=getattr(torch, name)) for name in ("float16", "bfloat16", "float32", "float64")},
    },
    "shapes.ckpt": {
        "scalar": torch.tensor(7),
        "one": torch.tensor([7]),
        "four": torch.arange(24).reshape(1, 2, 3, 4),
        "five": torch.arange(24).reshape(1, 2, 3, 4, 1),
        "none": torch.empty(0, 4, dtype=torch.bfloat16),
        "none_inside": torch.empty(2, 0, 70000, dtype=torch.bool),
        "long": torch.arange(70000),
    },
    "names.ckpt": {
        name: torch.tensor([i])
        for i, name in enumerate(
            ["", "plain", "run:00000001/aux_hidden_state", "it's \"quoted\"", "two\nlines\ttab", "\N{GRINNING FACE} \u00e9",
             "nul\0inside", "back\\slash", "../../etc/passwd", "x" * 70000])
    },
    "nothing.ckpt": {},
}


def check(folder):
    os.chdir(folder)
    for file, expected in EXPECTED.items():
        with zipfile.ZipFile(file) as archive:
            assert archive.testzip() is None, file
        found = torch.load(file, weights_only=True)
        assert list(found) == list(expected), (file, list(found))
        for name, tensor in expected.items():
            got = found[name]
            assert got.dtype == tensor.dtype and got.shape == tensor.shape, (file, name, got.dtype, got.shape)
            assert got.stride() == tensor.stride() and got.is_contiguous() and not got.requires_grad, (file, name, got.stride())
            assert torch.equal(got, tensor), (file, name, got)
        torch.save(found, "again." + file)


def check_big(file):
    with zipfile.ZipFile(file) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
        assert sizes["archive/data/0"] == (1 << 32) + 5, sizes
        assert archive.getinfo("archive/data/1").header_offset > 1 << 32
        assert archive.read("archive/data/1") == bytes(range(16)), "zipfile"
    reader = torch._C.PyTorchFileReader(file)
    assert reader.get_record("data/1") == bytes(range(16)), "torch"
    small = torch.tensor([], dtype=torch.uint8).set_(reader.get_storage_from_record("data/1", 16, torch.uint8).storage())
    assert small.tolist() == list(range(16))


if sys.argv[1] == "--big":
    check_big(sys.argv[2])
else:
    check(sys.argv[1])
