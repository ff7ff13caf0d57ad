#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Consumes a sample as the reference runtime's consumer does: finds its file by name, loads it, saves what it got, and frees it.

reference_consumer.py FOLDER SAMPLE_ID GENERATION COPY    exit 77: PyTorch is absent
"""

import os
import re
import sys

try:
    import torch
except ImportError as error:
    print(error)
    sys.exit(77)

FILE = re.compile(r"^(.+)\.g(\d+)\.ckpt$")

folder, sample_id, generation, copy = sys.argv[1:]
found = [name for name in os.listdir(folder)
         if (match := FILE.match(name)) and match.groups() == (sample_id, generation)]
assert len(found) == 1, (sample_id, generation, sorted(os.listdir(folder)))
path = os.path.join(folder, found[0])
tensors = torch.load(path, map_location="cpu", weights_only=True)
assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()), tensors
torch.save(tensors, copy)
os.remove(path)
