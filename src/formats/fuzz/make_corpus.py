#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes corpus/ beside this script again, byte for byte. A file whose name begins with ok_ must be read, any other refused.

A file of torch_zip that does not begin with PK is a data.pkl: the fuzz body wraps it into a sound zip beside a storage data/0
of 64 bytes.
"""

import json
import pathlib
import struct
import zlib

ROOT = pathlib.Path(__file__).parent / "corpus"


def u16(value):
    return struct.pack("<H", value)


def u32(value):
    return struct.pack("<I", value)


def u64(value):
    return struct.pack("<Q", value)


def safetensors():
    def file(header, data=b"", length=None):
        text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
        return u64(len(text) if length is None else length) + text + data

    def tensor(dtype, shape, begin, end):
        return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}

    dtypes = {"BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "I32": 4, "I64": 8, "F16": 2, "BF16": 2, "F32": 4, "F64": 8}
    every, at = {"__metadata__": {"format": "pt", "\u00e9\n": "\U0001f600"}}, 0
    for name, size in dtypes.items():
        every[name.lower()] = tensor(name, [1, 2], at, at + 2 * size)
        at += 2 * size
    big = 1 << 40
    return {
        "ok_dtypes": file(every, bytes(range(at))),
        "ok_empty": file(b"{}"),
        "ok_none": file({"none": tensor("BF16", [0, big, big, big], 0, 0), "scalar": tensor("U8", [], 0, 1)}, b"\x07"),
        "ok_padded": file(b'{"a":{"data_offsets":[0,2],"shape":[2],"dtype":"U8"}}   ', b"ab"),
        "length_2_64": file(b"{}", length=(1 << 64) - 1),
        "length_2_63": file(b"{}", length=1 << 63),
        "length_100_million": file(b"{}", length=100_000_000),
        "length_wraps": file(b"{}", length=(1 << 64) - 8),
        "length_one_more": file(b"{}", length=3),
        "shape_2_40": file({"a": tensor("F64", [big], 0, big * 8)}),
        "shape_2_40_no_span": file({"a": tensor("F64", [big], 0, 0)}),
        "shape_wraps_to_0": file({"a": tensor("I64", [1 << 61], 0, 0)}),
        "shape_wraps_to_8": file({"a": tensor("I64", [(1 << 32) + 1, (1 << 32) - 1], 0, 8)}, b"8" * 8),
        "shape_past_64_bits": file(b'{"a":{"dtype":"U8","shape":[340282366920938463463374607431768211456],"data_offsets":[0,0]}}'),
        "many_dimensions": file({"a": tensor("U8", [1] * 2000, 0, 2)}, b"a"),
        "offsets_reversed": file({"a": tensor("U8", [4], 4, 0)}, b"abcd"),
        "offsets_2_64": file({"a": tensor("U8", [1], (1 << 64) - 1, 0)}, b"a"),
        "overlap": file({"a": tensor("U8", [2], 0, 2), "b": tensor("U8", [2], 1, 3)}, b"abc"),
        "hole": file({"a": tensor("U8", [1], 1, 2)}, b"ab"),
        "tail": file({"a": tensor("U8", [1], 0, 1)}, b"ab"),
        "name_twice": file(b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"\\u0061":{"dtype":"U8","shape":[0],'
                           b'"data_offsets":[0,0]}}'),
        "deep_lists": file(b'{"a":{"dtype":"U8","shape":' + b"[" * 4000),
        "deep_objects": file(b'{"a":' * 800),
        "deep_metadata": file(b'{"__metadata__":{"a":' + b"[" * 4000),
        "not_utf8": file(b'{"\xff":{}}'),
        "long_number": file(b'{"a":{"dtype":"U8","shape":[' + b"9" * 3000 + b'],"data_offsets":[0,0]}}'),
        "unknown_dtype": file({"a": tensor("F8_E4M3", [1], 0, 1)}, b"a"),
    }


# Pickles


def number(value):
    return b"\x8a\x08" + struct.pack("<q", value)


def text(value):
    return b"X" + u32(len(value)) + value


def numbers(values):
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(elements=8, offset=0, shape=(2, 4), strides=(4, 1), key=b"0", storage=b"LongStorage"):
    return (b"ctorch._utils\n_rebuild_tensor_v2\n((" + text(b"storage") + b"ctorch\n" + storage + b"\n" + text(key) +
            text(b"cpu") + number(elements) + b"tQ" + number(offset) + numbers(shape) + numbers(strides) +
            b"\x89ccollections\nOrderedDict\n)RtR")


def dict_of(items):
    return b"\x80\x02}(" + items + b"u."


def x(**fields):
    return dict_of(text(b"x") + tensor(**fields))


class Zip:
    """Stored entries; the named fields of the headers may lie."""

    def __init__(self):
        self.file, self.directory, self.count = b"", b"", 0

    def add(self, name, data, size=None, crc=None, flags=0, method=0, local=None, extra=b"", local_size=None):
        crc = zlib.crc32(data) if crc is None else crc
        size = len(data) if size is None else size
        local = len(self.file) if local is None else local
        padding = -(len(self.file) + 34 + len(name)) % 64
        said = size if local_size is None else local_size
        self.file += (b"PK\x03\x04" + u16(0) + u16(flags) + u16(method) + u32(0) + u32(crc) + u32(said) + u32(said) +
                      u16(len(name)) + u16(4 + padding) + name + b"FB" + u16(padding) + b"Z" * padding + data)
        self.directory += (b"PK\x01\x02" + u16(0) + u16(0) + u16(flags) + u16(method) + u32(0) + u32(crc) + u32(size) + u32(size) +
                           u16(len(name)) + u16(len(extra)) + u16(0) + u16(0) + u16(0) + u32(0) + u32(local) + name + extra)
        self.count += 1
        return self

    def finish(self, count64=None, begin64=None, size64=None):
        record = len(self.file) + len(self.directory)
        count64 = self.count if count64 is None else count64
        begin64 = len(self.file) if begin64 is None else begin64
        size64 = len(self.directory) if size64 is None else size64
        return (self.file + self.directory + b"PK\x06\x06" + u64(44) + u16(0) + u16(0) + u32(0) + u32(0) + u64(count64) +
                u64(count64) + u64(size64) + u64(begin64) + b"PK\x06\x07" + u32(0) + u64(record) + u32(1) + b"PK\x05\x06" +
                u16(0) + u16(0) + u16(min(count64, 0xffff)) + u16(min(count64, 0xffff)) + u32(min(size64, 0xffffffff)) +
                u32(min(begin64, 0xffffffff)) + u16(0))


def torch_zip():
    data = b"".join(map(u64, range(8)))
    plain = lambda: Zip().add(b"a/data.pkl", x()).add(b"a/data/0", data)
    big, folder = 1 << 40, b"a/data.pkl"
    shared = text(b"s") + tensor(shape=[1] * 64, strides=[1] * 64) + b"q\x00"  # one tensor of 64 dimensions under many names
    bomb = b"cposix\nsystem\n(" + text(b"echo bombed") + b"tR"
    return {
        "ok_plain.zip": plain().add(b"a/version", b"3\n").finish(),
        "ok_byteorder.zip": plain().add(b"a/byteorder", b"little").finish(),
        "ok_empty.zip": Zip().add(folder, b"\x80\x02}.").finish(),
        "ok_plain.pkl": x(),
        "ok_views.pkl": dict_of(text(b"t") + tensor(shape=(4, 2), strides=(1, 4)) + text(b"e") +
                                tensor(shape=(0, big), strides=(big, 1)) + text(b"s") + tensor(offset=7, shape=(), strides=())),
        "ok_values.pkl": dict_of(text(b"n") + b"N" + text(b"l") + b"](K\x01M\x00\x01J\xff\xff\xff\xff\x88eq\x01" + text(b"m") +
                                 b"h\x01" + text(b"f") + b"G" + b"\x3f" * 8),
        "ok_vast_strides.pkl": x(shape=(0, big, big), strides=(1, 1, 1)),
        "ok_stride_0_small.pkl": x(shape=(1000,), strides=(0,)),
        "ok_deep_tuples.pkl": dict_of(text(b"d") + b")" + b"\x85" * 3000),
        "ok_deep_lists.pkl": dict_of(text(b"d") + b"]" + b"]" * 1500 + b"a" * 1500),
        "ok_cycle.pkl": dict_of(text(b"d") + b"]q\x00h\x00a"),
        "ok_shared.pkl": dict_of(shared + b"".join(text(b"%03d" % i) + b"h\x00" for i in range(300))),
        # The zip
        "overlap.zip": plain().add(b"a/data/1", b"", size=32, crc=zlib.crc32(data[:32]), local=0).finish(),
        "same_entry_twice.zip": plain().add(b"a/data/0", data).finish(),
        "one_data_two_names.zip": Zip().add(folder, b"\x80\x02}.").add(b"a/data/0", data).add(b"a/data/1", data, local=64).finish(),
        "size_4_gib.zip": Zip().add(folder, x()).add(b"a/data/0", data, size=0xfffffff0).finish(),
        "size_2_60.zip": Zip().add(folder, x()).add(b"a/data/0", data, size=0xffffffff,
                                                    extra=u16(1) + u16(16) + u64(1 << 60) * 2).finish(),
        "local_2_64.zip": Zip().add(folder, x()).add(b"a/data/0", data, local=0xffffffff,
                                                     extra=u16(1) + u16(8) + u64((1 << 64) - 8)).finish(),
        "local_size_lies.zip": Zip().add(folder, x()).add(b"a/data/0", data, local_size=1 << 30).finish(),
        "crc_wrong.zip": Zip().add(folder, x()).add(b"a/data/0", data, crc=0).finish(),
        "deflated.zip": Zip().add(folder, x()).add(b"a/data/0", data, method=8).finish(),
        "encrypted.zip": Zip().add(folder, x()).add(b"a/data/0", data, flags=1).finish(),
        "count_2_60.zip": plain().finish(count64=1 << 60),
        "directory_2_63.zip": plain().finish(size64=1 << 63),
        "directory_wraps.zip": plain().finish(begin64=(1 << 64) - 100, size64=200),
        "truncated.zip": plain().finish()[:-30],
        "two_folders.zip": Zip().add(folder, x()).add(b"b/data/0", data).finish(),
        # The pickle
        "bomb.pkl": dict_of(text(b"x") + bomb),
        "bomb_builtins.pkl": dict_of(text(b"x") + b"cbuiltins\neval\n(" + text(b"1") + b"tR"),
        "bomb_newobj.pkl": dict_of(text(b"x") + b"ccollections\nOrderedDict\n)\x81"),
        "bomb_stack_global.pkl": dict_of(text(b"x") + text(b"os") + text(b"system") + b"\x93"),
        "memo_2_32.pkl": b"\x80\x02}r\xff\xff\xff\xff.",
        "memo_2_28.pkl": b"\x80\x02}r\x00\x00\x00\x10.",
        "memo_unfilled.pkl": b"\x80\x02j\x00\x00\x00\x10.",
        "text_4_gib.pkl": b"\x80\x02X\xff\xff\xff\xffabc.",
        "long_short.pkl": b"\x80\x02\x8a\xff1.",
        "protocol_4.pkl": b"\x80\x04}.",
        "marks.pkl": b"\x80\x02" + b"(" * 4000 + b".",
        "deep_tuples_top.pkl": b"\x80\x02)" + b"\x85" * 4000 + b".",
        "laughs.pkl": b"\x80\x02)q\x00" + b"".join(b"(" + b"h\x00" * 100 + b"tq\x00" for _ in range(20)) + b".",
        "dict_odd.pkl": b"\x80\x02}(" + text(b"x") + b"u.",
        "name_twice.pkl": dict_of((text(b"x") + b"N") * 2),
        "stack_empty.pkl": b"\x80\x02\x87.",
        "no_stop.pkl": b"\x80\x02}",
        # The tensor
        "storage_2_40.pkl": x(elements=big, shape=(big,), strides=(1,)),
        "storage_2_61.pkl": x(elements=1 << 61),
        "storage_missing.pkl": x(key=b"7"),
        "storage_path.pkl": x(key=b"../data.pkl"),
        "storage_untyped.pkl": x(storage=b"UntypedStorage", elements=64),
        "shape_2_40.pkl": x(shape=(big,), strides=(1,)),
        "shape_wraps.pkl": x(shape=(1 << 32, 1 << 32), strides=(0, 0)),
        "stride_0_2_40.pkl": x(shape=(big,), strides=(0,)),
        "stride_0_32_mib.pkl": x(shape=(1 << 22,), strides=(0,)),
        "stride_0_in_parts.pkl": dict_of(b"".join(text(b"%d" % i) + tensor(shape=(1 << 20,), strides=(0,)) for i in range(3))),
        "stride_2_62.pkl": x(shape=(3, 4), strides=(1 << 62, 1)),
        "stride_negative.pkl": x(strides=(-4, 1)),
        "offset_2_62.pkl": x(offset=1 << 62),
        "offset_negative.pkl": x(offset=-1),
        "dimensions_100.pkl": x(shape=[1] * 100, strides=[1] * 100),
    }


for kind, files in ("safetensors", safetensors()), ("torch_zip", torch_zip()):
    folder = ROOT / kind
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for name, content in files.items():
        (folder / name).write_bytes(content)
