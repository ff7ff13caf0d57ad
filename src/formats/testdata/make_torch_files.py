#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes files with the real torch.save into a folder, for torch_zip_test. Exit 77: PyTorch is absent.

A tensor 'x' comes with 'expected.x', its row-major bytes as uint8, so that the reader is checked against PyTorch's own
idea of the values.
"""

import collections
import gzip
import os
import sys
import zipfile

try:
    import torch
except ImportError as error:
    print(error)
    sys.exit(77)


def with_expected(tensors):
    result = dict(tensors)
    for name, tensor in tensors.items():
        result["expected." + name] = tensor.contiguous().reshape(-1).view(torch.uint8).clone()
    return result


class Bomb:
    def __reduce__(self):
        return os.system, ("touch bombed",)


def main(folder):
    os.chdir(folder)
    torch.manual_seed(0)
    names = "bool uint8 int8 int16 int32 int64 float16 bfloat16 float32 float64".split()
    dtypes = {name: (torch.rand(5, 3) * 100 - 50).to(getattr(torch, name)) for name in names}
    torch.save(with_expected(dtypes), "dtypes.ckpt")

    base = torch.arange(120).reshape(2, 3, 4, 5)
    halves = torch.rand(8, 6).to(torch.bfloat16)
    flags = torch.rand(5, 7) > 0.5
    views = {
        "base": base,
        "row": base[1],
        "transposed": base.transpose(0, 2),
        "permuted": base.permute(3, 1, 0, 2),
        "stepped": base[:, ::2, 1:3, ::3],
        "one": base[1, 2, 3, 4],
        "column": base[:, :, :, 2:3],
        "halves": halves,
        "halves_t": halves.t(),
        "flags_t": flags.t(),
        "expanded": torch.tensor([7.0, 8.0]).reshape(2, 1).expand(2, 1000),
        "scalar": torch.tensor(1.5),
        "scalar_expanded": torch.tensor(3).expand(4, 5, 6),
    }
    torch.save(with_expected(views), "views.ckpt")
    torch.save({"none": torch.empty(0, 3), "none_view": base[:, 3:], "none_offset": torch.empty(0, 3)[:, 2:]}, "empty.ckpt")
    torch.save({"x": base.transpose(0, 3)}, "small.ckpt")
    torch.save({"t%03d" % i: torch.full((2,), i) for i in range(100)}, "many.ckpt")

    values = {
        "str": "text", "unicode": "\N{GRINNING FACE}", "int": 7, "negative": -7, "long": 1 << 40, "longer": 1 << 90, "float": 1.5,
        "true": True, "none": None, "list": [1, [2, {"a": base}]], "tuple": (1, 2, 3, 4, 5), "dict": {"a": 1, 2: "b"},
        "ordered": collections.OrderedDict(a=1), "storage": torch.ones(2).storage(), "tensor": base,
    }
    torch.save(values, "values.ckpt")
    torch.save(torch.nn.Sequential(torch.nn.Linear(2, 3)).state_dict(), "state_dict.ckpt")
    torch.save([base], "list.ckpt")
    torch.save({1: base}, "int_key.ckpt")
    torch.save({"x": base, "bomb": Bomb()}, "bomb.ckpt")
    torch.save({"x": torch.nn.Parameter(torch.ones(2))}, "parameter.ckpt")
    torch.save({"x": torch.zeros(2, dtype=torch.complex64)}, "complex.ckpt")
    torch.save({"x": base}, "legacy.ckpt", _use_new_zipfile_serialization=False)
    torch.save({"x": base}, "protocol4.ckpt", pickle_protocol=4)
    torch.save({"x": torch.zeros(1).expand(1 << 20, 1 << 10)}, "stride_bomb.ckpt")

    with open("views.ckpt", "rb") as plain, gzip.open("views.ckpt.gz", "wb") as packed:
        packed.write(plain.read())
    with zipfile.ZipFile("views.ckpt") as original:
        for method, name in (zipfile.ZIP_STORED, "unaligned.ckpt"), (zipfile.ZIP_DEFLATED, "deflated.ckpt"):
            with zipfile.ZipFile(name, "w", method) as copy:
                for entry in original.namelist():
                    copy.writestr(entry, original.read(entry))


main(sys.argv[1])
