# SPDX-License-Identifier: Apache-2.0
"""Tensors in and out: every element type, every way in, bit for bit; what is refused is refused by name."""

import array
import collections.abc
import ctypes
import gc
import hashlib
import subprocess
import sys
import threading
import weakref

import numpy
import pytest
import torch

import draftflow
from stage import Thread, in_forked_child

TORCH_TYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
]
NUMPY_TYPES = ["?", "u1", "i1", "i2", "i4", "i8", "f2", "f4", "f8"]


def noise(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Random bits, so NaNs with payloads and denormals too; of bool, zeros and ones."""
    if dtype == torch.bool:
        return torch.rand(*shape) < 0.5
    element = torch.tensor([], dtype=dtype).element_size()
    count = int(numpy.prod(shape))
    drawn = numpy.random.default_rng(7).integers(0, 256, count * element, dtype=numpy.uint8)
    return torch.from_numpy(drawn).view(dtype).reshape(shape)


def bits(tensor: torch.Tensor) -> bytes:
    tensor = tensor.detach().contiguous()
    return tensor.view(torch.uint8).numpy().tobytes() if tensor.dim() > 0 else bits(tensor.reshape(1))


def assert_same(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert found.dtype == wanted.dtype
    assert tuple(found.shape) == tuple(wanted.shape)
    assert bits(found) == bits(wanted)


def through(store: draftflow.Store, tensor: object, **options: object) -> torch.Tensor:
    with store.get(store.put({"x": tensor}, "s"), **options) as tensors:
        return tensors["x"]


class OnlyDlpack:
    """Something of another library: no buffer protocol, no torch."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor

    def __dlpack__(self, stream: object = None) -> object:
        return self._tensor.__dlpack__()


@pytest.mark.parametrize("dtype", TORCH_TYPES, ids=str)
@pytest.mark.parametrize("zero_copy", [False, True], ids=["copy", "zero_copy"])
def test_every_type_of_torch_comes_back_bit_for_bit(store, dtype, zero_copy):
    whole = noise(dtype, 3, 4, 5)
    for tensor in (whole, whole[0, 0, 0], whole[:0], whole.transpose(0, 2), whole[::2, :, 1::3], whole[:1].expand(3, 4, 5)):
        assert_same(through(store, tensor, zero_copy=zero_copy), tensor)


@pytest.mark.parametrize("elements", [1 << 9, 1 << 14], ids=["copied at once", "by its own memory"])
@pytest.mark.parametrize("dtype", TORCH_TYPES, ids=str)
def test_large_and_small_ones_come_back_alike(store, dtype, elements):
    whole = noise(dtype, 2, elements)
    for tensor in (whole, whole.T, whole[1], torch.nn.Parameter(whole, requires_grad=False)):
        assert_same(through(store, tensor), tensor.data)
    if dtype.is_floating_point:
        assert_same(through(store, torch._neg_view(whole)), -whole)


@pytest.mark.parametrize("kind", NUMPY_TYPES)
def test_every_type_of_numpy_comes_back_bit_for_bit(store, kind):
    whole = numpy.random.default_rng(3).integers(0, 2, (3, 4, 5)).astype(kind)
    if kind != "?":
        whole = numpy.random.default_rng(3).integers(0, 256, 60 * whole.itemsize, dtype="u1").view(kind).reshape(3, 4, 5)
    views = [whole, whole[0, 0, 0:1].reshape(()), whole[:0], whole.T, whole[::-1, :, ::-2]]
    for array in (*views, numpy.broadcast_to(whole[0], (2, 4, 5))):
        ref = store.put({"x": array}, "s")
        with store.get(ref, framework="numpy") as tensors:
            found = tensors["x"]
            assert found.dtype == array.dtype and found.shape == array.shape
            assert found.tobytes() == array.tobytes()


@pytest.mark.parametrize("dtype", [kind for kind in TORCH_TYPES if kind != torch.bool], ids=str)
def test_whatever_has_dlpack_is_taken(store, dtype):
    tensor = noise(dtype, 4, 3)
    for given in (OnlyDlpack(tensor), OnlyDlpack(tensor.T), OnlyDlpack(tensor[:0])):
        assert_same(through(store, given), given._tensor)


def test_eight_bit_floats_go_as_their_bytes(store):
    tensor = noise(torch.uint8, 16)
    ref = store.put({"x": tensor}, "s")
    assert ref.feature_specs["x"].dtype == "uint8"
    assert_same(store.read(ref)["x"], tensor)


def test_what_is_trained_is_taken_without_its_history(store):
    weight = torch.nn.Parameter(torch.randn(3, 3))
    for tensor in (weight, weight * 2, torch.randn(2, requires_grad=True)):
        found = through(store, tensor)
        assert_same(found, tensor)
        assert not found.requires_grad


def test_many_tensors_keep_their_order_and_names(store):
    tensors = {f"naïve/{i} 🙂": torch.full((i + 1,), i) for i in (3, 1, 2, 0)}
    ref = store.put(tensors, "s")
    assert list(ref.feature_specs) == list(tensors)
    with store.get(ref) as found:
        assert list(found) == list(tensors)
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    with store.get(ref, names=["naïve/1 🙂"]) as found:
        assert list(found) == ["naïve/1 🙂"]


def test_a_store_owns_its_bytes(store):
    for tensor in (torch.zeros(4), numpy.zeros(4), draftflow.Tensor(torch.zeros(4))):
        ref = store.put({"x": tensor}, "s")
        (tensor.numpy() if isinstance(tensor, draftflow.Tensor) else tensor)[:] = 7
        assert torch.equal(store.read(ref)["x"], torch.zeros(4, dtype=store.read(ref)["x"].dtype))


def test_what_torch_says_of_a_tensor_that_it_cannot_pack_is_told(store):
    with pytest.raises(TypeError, match="tensor 'x' cannot be taken as it is .*(as_strided|parse)"):
        store.put({"x": torch.eye(2).to_sparse()}, "s")
    with pytest.raises(TypeError, match="tensor 'x' cannot be taken as it is .*meta"):
        store.put({"x": torch.zeros(2, device="meta")}, "s")


# Only where nobody has asked before does torch.Tensor's `is_cpu` have to be looked for.
ASKED_FIRST = """
import torch, draftflow
class OnDevice(torch.Tensor):
    def cpu(self):
        return torch.full((3,), 7.0)
try:
    draftflow.Tensor(torch.eye(3).to_sparse())
except TypeError as error:
    assert "as_strided" in str(error), error
moved = draftflow.Tensor(torch.empty(3, device="meta").as_subclass(OnDevice))
assert moved.torch().tolist() == [7.0] * 3
"""


def test_a_tensor_elsewhere_is_brought_by_its_own_cpu():
    subprocess.run([sys.executable, "-c", ASKED_FIRST], check=True)

    class Overridden(torch.Tensor):
        is_cpu = False

        def cpu(self) -> torch.Tensor:
            return torch.full((2,), 3.0)

    class Broken(torch.Tensor):
        @property
        def dtype(self) -> torch.dtype:
            raise KeyError("its own")

    assert draftflow.Tensor(torch.ones(2).as_subclass(Overridden)).torch().tolist() == [3.0, 3.0]
    with pytest.raises(KeyError, match="its own"):
        draftflow.Tensor(torch.ones(2).as_subclass(Broken))


def test_what_is_copied_is_let_go_at_once(store):
    """A put of many transposed tensors does not hold all of what they were copied from to its end."""
    lent, alive = [], []

    class Fresh:
        def __dlpack_device__(self) -> tuple:
            return (1, 0)

        def __dlpack__(self, stream: object = None) -> object:
            made = numpy.ones((4, 3)).T
            lent.append(weakref.ref(made))
            alive.append(sum(each() is not None for each in lent))
            return made.__dlpack__()

    store.put({"kept": torch.zeros(1), **{f"t{i}": Fresh() for i in range(50)}}, "s")
    assert len(alive) == 50 and max(alive) <= 2


@pytest.mark.parametrize("use", [numpy.asarray, memoryview, bytes, bytearray, hashlib.sha1])
def test_a_bfloat16_tensor_has_no_buffer(use):
    with pytest.raises(TypeError, match="no bfloat16: take the tensor as torch's"):
        use(draftflow.Tensor(torch.ones(2, dtype=torch.bfloat16)))
    use(draftflow.Tensor(torch.ones(2)))


REFUSED = {
    "complex": lambda: torch.zeros(2, dtype=torch.complex64),
    "sparse": lambda: torch.eye(2).to_sparse(),
    "quantized": lambda: torch.quantize_per_tensor(torch.zeros(2), 1.0, 0, torch.quint8),
    "meta": lambda: torch.zeros(2, device="meta"),
    "uint16": lambda: numpy.zeros(2, "u2"),
    "big_endian": lambda: numpy.zeros(2, ">f4"),
    "complex_array": lambda: numpy.zeros(2, "c8"),
    "long_double": lambda: numpy.zeros(2, numpy.longdouble),
    "objects": lambda: numpy.array([None, 1], dtype=object),
    "strings": lambda: numpy.array(["a", "b"]),
    "dates": lambda: numpy.array(["2020-01-01"], dtype="M8[D]"),
    "fields": lambda: numpy.zeros(2, dtype=[("a", "f4"), ("b", "i4")]),
    "field": lambda: numpy.zeros(2, dtype=[("a", "i1"), ("b", "f4")])["b"],
    "list": lambda: [1.0, 2.0],
    "number": lambda: 3.0,
    "nothing": lambda: None,
    "text": lambda: "abc",
    "no_capsule": lambda: Capsule("no capsule"),
    "taken": lambda: Capsule(taken_capsule()),
    "raises": lambda: Capsule(BufferError("not now")),
    "device": lambda: Capsule(device_capsule()),
    "lanes": lambda: Capsule(device_capsule(device=1, lanes=4)),
}


class Capsule:
    def __init__(self, capsule: object) -> None:
        self._capsule = capsule

    def __dlpack__(self, stream: object = None) -> object:
        if isinstance(self._capsule, Exception):
            raise self._capsule
        return self._capsule


def taken_capsule() -> object:
    capsule = torch.zeros(2).__dlpack__()
    torch.utils.dlpack.from_dlpack(capsule)
    return capsule


class DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    ]


_kept = []


def device_capsule(device: int = 2, lanes: int = 1) -> object:
    """Two floats that say to lie on a GPU, at an address that nobody may read."""
    shape = (ctypes.c_int64 * 1)(2)
    tensor = DLTensor(8, device, 0, 1, 2, 32, lanes, shape, None, 0, None, None)
    _kept.extend([shape, tensor])
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return new(ctypes.addressof(tensor), b"dltensor", None)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused_is_refused_by_name(store, kind):
    with pytest.raises(TypeError, match="'the_one'"):
        store.put({"fine": torch.zeros(2), "the_one": REFUSED[kind]()}, "s")
    assert store.health()["resident_samples"] == 0


@pytest.mark.parametrize("bytes_left", [0, 8])
def test_a_tensor_whose_memory_was_taken_away_is_refused(store, bytes_left):
    for tensor in (torch.arange(100.0)[10:20], torch.zeros(1000)):
        tensor.storage().resize_(bytes_left // 4)
        with pytest.raises(TypeError, match="'x' cannot be taken as it is"):
            store.put({"x": tensor}, "s")


def test_a_put_beside_one_who_changes_the_tensor_stores_one_or_the_other(store):
    large, small, x = torch.zeros(4000), torch.full((1,), 5.0), torch.zeros(4000)
    stop = threading.Event()

    def change():
        while not stop.is_set():
            for each in (small, large):
                x.data = each

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    other = threading.Thread(target=change)
    other.start()
    try:
        for _ in range(5000):
            found = store.read(store.put({"x": x}, "s"))["x"]
            assert torch.equal(found, large if found.shape == large.shape else small)
    finally:
        stop.set()
        other.join()
        sys.setswitchinterval(before)


def test_names_are_strings_and_there_is_a_tensor(store):
    with pytest.raises(TypeError, match="names of tensors are strings: found a int"):
        store.put({1: torch.zeros(2)}, "s")
    with pytest.raises(ValueError, match="s"):
        store.put({}, "s")


def test_bfloat16_is_refused_for_numpy_and_the_way_round_is_told(store):
    values = torch.tensor([[1.5, -2.0]], dtype=torch.bfloat16)
    ref = store.put({"n": torch.arange(2), "x": values}, "s")
    said = "tensor 'x' is bfloat16, for which numpy has no type: ask for framework='torch', or for 'draftflow'"
    with pytest.raises(TypeError, match=said):
        store.read(ref, framework="numpy")
    with pytest.raises(TypeError, match=said):
        draftflow.pad_batch([{"x": values}], framework="numpy")
    sample = store.get(ref, framework="numpy")
    assert sample["n"].tolist() == [0, 1]
    for ask in (lambda: sample["x"], lambda: sample.get("x"), lambda: dict(sample), sample.tensors):
        with pytest.raises(TypeError, match=said):
            ask()
    t = held = store.read(ref, framework="draftflow")["x"]
    with pytest.raises(TypeError, match="no bfloat16: take the tensor as torch's"):
        held.numpy()
    way = str(pytest.raises(TypeError, held.numpy).value).split("another type: ")[1]
    bits = eval(way, {"numpy": numpy, "t": t})
    assert bits.shape == (1, 2) and bits.tolist() == [[0x3FC0, 0xC000]]
    with pytest.raises(ValueError, match="'jax'.*'torch', 'numpy' and 'draftflow'"):
        store.get(ref, framework="jax")


# --- no copy


def test_a_tensor_crosses_and_comes_back_at_its_place():
    tensor = torch.randn(5, 3)
    held = draftflow.Tensor(tensor)
    assert held.data_ptr == tensor.data_ptr() == held.torch().data_ptr() == torch.from_dlpack(held).data_ptr()
    assert held.dtype == "float32" and held.shape == (5, 3) and held.nbytes == 60
    array = numpy.arange(6.0)
    held = draftflow.Tensor(array)
    assert held.data_ptr == array.ctypes.data == held.numpy().ctypes.data == numpy.from_dlpack(held).ctypes.data
    assert held.torch().data_ptr() == array.ctypes.data
    flags = torch.tensor([True, False])
    assert draftflow.Tensor(flags).torch().data_ptr() == flags.data_ptr()
    assert draftflow.Tensor(flags).torch().dtype == torch.bool


def test_what_does_not_lie_in_a_row_is_copied():
    tensor = torch.arange(6).reshape(2, 3)
    assert draftflow.Tensor(tensor.T).data_ptr != tensor.data_ptr()
    assert torch.equal(draftflow.Tensor(tensor.T).torch(), tensor.T)


def test_zero_copy_in_memory_is_one_place_and_a_copy_is_another():
    with draftflow.Store.create("mem://places") as store:
        ref = store.put({"x": torch.arange(1000)}, "s")
        first, second = store.get(ref, zero_copy=True), store.get(ref, zero_copy=True)
        copy, other = store.get(ref), store.get(ref)
        places = {got["x"].data_ptr() for got in (first, second)}
        assert len(places) == 1
        assert len(places | {got["x"].data_ptr() for got in (copy, other)}) == 3
        assert first["x"].data_ptr() == first["x"].data_ptr() == first.tensors()["x"].data_ptr()
        assert store.get(ref, zero_copy=True, framework="numpy")["x"].ctypes.data in places
        assert store.get(ref, zero_copy=True, framework="draftflow")["x"].data_ptr in places


def test_a_stores_memory_is_read_only_for_numpy(store):
    ref = store.put({"x": torch.arange(3)}, "s")
    shared = store.get(ref, zero_copy=True, framework="numpy")["x"]
    with pytest.raises(ValueError, match="read-only"):
        shared[0] = 9
    mine = store.get(ref, framework="numpy")["x"]
    mine[0] = 9
    assert store.read(ref)["x"][0] == 0


def test_writing_into_a_mapped_file_reaches_nobody(folder_store):
    wanted = torch.arange(100_000)
    ref = folder_store.put({"x": wanted}, "s")
    with folder_store.get(ref, zero_copy=True) as tensors:
        tensors["x"].zero_()
        tensors["x"][5:500] = 3
        with folder_store.get(ref) as again:
            assert torch.equal(again["x"], wanted)
        with folder_store.get(ref, zero_copy=True) as again:
            assert torch.equal(again["x"], wanted)
    with draftflow.Store.open(folder_store.url) as other:
        assert torch.equal(other.read(ref)["x"], wanted)


# --- who owns what


def test_tensors_outlive_samples_and_stores(tmp_path):
    for url in ("mem://outlived", str(tmp_path / "store")):
        store = draftflow.Store.create(url)
        ref = store.put({"x": torch.arange(50_000), "y": torch.ones(3, dtype=torch.bool)}, "s")
        sample = store.get(ref, zero_copy=True)
        tensors, copies, arrays = sample.tensors(), store.read(ref), store.get(ref, zero_copy=True, framework="numpy").tensors()
        sample.release()
        store.remove(ref)
        store.close()
        del sample, store
        gc.collect()
        for found in (tensors, copies):
            assert torch.equal(found["x"], torch.arange(50_000)) and found["y"].all()
        assert arrays["x"].sum() == sum(range(50_000))


def test_the_source_lives_as_long_as_a_view_of_it():
    for make in (lambda: torch.arange(10_000), lambda: numpy.arange(10_000)):
        view = draftflow.Tensor(make()).torch()
        gc.collect()
        rubbish = [torch.full((10_000,), -1) for _ in range(8)]
        assert torch.equal(view, torch.arange(10_000)), rubbish


@pytest.mark.parametrize("make", [lambda: numpy.ones(9), lambda: array.array("d", [1.0])], ids=["numpy", "array"])
def test_a_view_of_an_array_may_die_where_python_is_not_locked(make):
    """As in torch's backward(). What is deleted by it runs Python code, which crashes without the lock: hence a child."""

    def work():
        source, died = make(), []
        told = weakref.ref(source, lambda _: died.append("with the lock"))
        capsule = draftflow.Tensor(source).__dlpack__()
        held = DLTensor.from_address(capsule_call("PyCapsule_GetPointer", ctypes.c_void_p)(capsule, b"dltensor"))
        capsule_call("PyCapsule_SetName", ctypes.c_int)(capsule, b"used_dltensor")  # this test is its taker now
        del source
        gc.collect()
        assert died == []
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(held.deleter)(ctypes.addressof(held))  # ctypes lets the lock go
        assert died == ["with the lock"] and told() is None

    assert in_forked_child(work) == 0


def capsule_call(function, result):
    call = ctypes.PYFUNCTYPE(result, ctypes.py_object, ctypes.c_char_p)
    return call((function, ctypes.pythonapi))


def test_views_die_in_other_threads():
    source = numpy.ones(1000)
    threads = [Thread(lambda: [draftflow.Tensor(source).torch().sum() for _ in range(500)]) for _ in range(4)]
    for thread in threads:
        thread.finish()
    assert threading.active_count() >= 1


def test_pad_batch_pads_on_the_right():
    samples = [{"input_ids": torch.tensor([1, 2, 3]), "h": torch.ones(1, 3, 2)}]
    batch = draftflow.pad_batch([*samples, {"input_ids": numpy.array([4]), "h": torch.ones(1, 1, 2)}])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 0, 0]]
    assert batch["h"].shape == (2, 3, 2) and batch["h"][1].tolist() == [[1, 1], [0, 0], [0, 0]]
    with pytest.raises(ValueError, match="'h'"):
        draftflow.pad_batch([{"input_ids": torch.tensor([1]), "h": torch.ones(1)}, {"input_ids": torch.tensor([1])}])
    assert draftflow.pad_batch([]) == {} and draftflow.pad_batch([], return_lengths=True) == ({}, [])
    rows, lengths = draftflow.pad_batch([*samples, {}], return_lengths=True)
    assert lengths == [sample["input_ids"].shape[0] for sample in samples] + [0]
    assert rows["input_ids"].shape == (len(lengths), max(lengths))
    with pytest.raises(TypeError, match="sample 1 is a int: a mapping of names to tensors is taken"):
        draftflow.pad_batch([{}, 3])


def test_a_sample_is_a_mapping(store):
    tensors = {"a": torch.arange(3), "b": torch.ones(3, 2)}
    ref = store.put(tensors, "s")
    sample = store.get(ref)
    assert isinstance(sample, collections.abc.Mapping) and len(sample) == 2
    assert list(sample) == list(sample.keys()) == ["a", "b"] and sample.keys() == {"a", "b"}
    for copy in (dict(sample), {**sample}, dict(sample.items()), dict(zip(sample, sample.values()))):
        assert list(copy) == ["a", "b"] and all(torch.equal(copy[key], tensors[key]) for key in tensors)
    assert (lambda **named: sorted(named))(**sample) == ["a", "b"]
    assert torch.equal(sample.get("a"), tensors["a"]) and sample.get("c") is None and sample.get("c", 7) == 7
    assert sample.get(3) is None and 3 not in sample and "a" in sample and "c" not in sample
    with pytest.raises(KeyError):
        sample["c"]
    match = draftflow.pad_batch([sample, tensors])
    assert match["a"].shape == (2, 3)
    sample.release()
    assert torch.equal(dict(sample)["a"], tensors["a"])


class OnADevice:
    """As torch tells of a tensor on a GPU; test_gpu.py has real ones."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __dlpack_device__(self):
        return (2, 0)

    def __dlpack__(self):
        raise AssertionError("its memory cannot be read from here")

    def cpu(self):
        return self.tensor


def test_what_is_on_a_device_is_brought_to_host_memory(store):
    tensor = torch.arange(6).reshape(2, 3)
    ref = store.put({"x": OnADevice(tensor)}, "a")
    assert torch.equal(store.read(ref)["x"], tensor)
    with pytest.raises(TypeError, match="tensor 'x' is on a device .*bring it to host memory first"):
        store.put({"x": OnADevice(OnADevice(tensor))}, "b")
