"""Reads files written by PyTorch, and handmade ones."""

from __future__ import annotations

import pickle
import struct
import zipfile

import numpy as np
import pytest
from torch_files import (
    entries,
    global_,
    integer,
    integers,
    old_of,
    storage,
    tensor,
    text,
    zip_of,
)

from tsm_jax.weights.pickle_values import Opaque
from tsm_jax.weights.torch_file import read_torch

FOUR = struct.pack("<4f", 1, 2, 3, 4)


def read(path, content):
    path.write_bytes(content)
    return read_torch(path)


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_checkpoint(tmp_path, is_zip):
    data = entries(
        epoch=b"K\x03",
        state_dict=b"}" + text("module.fc.weight") + tensor((2, 2), (2, 1)) + b"s",
        best_prec1=tensor((), ()),
        optimizer=b"}" + text("state") + b"}" + integer(2**46) + b"}ss",
    )
    content = zip_of(data) if is_zip else old_of(data, {"0": FOUR}, {"0": 4})
    tree = read(tmp_path / "f.pth.tar", content)
    assert tree["epoch"] == 3 and tree["optimizer"] == {"state": {2**46: {}}}
    assert tree["best_prec1"] == 1 and tree["best_prec1"].shape == ()
    weight = tree["state_dict"]["module.fc.weight"]
    np.testing.assert_array_equal(weight, np.array([[1, 2], [3, 4]], np.float32), strict=True)


@pytest.mark.parametrize(
    "size, stride, offset, expected",
    [
        ((2, 2), (1, 2), 0, [[1, 3], [2, 4]]),
        ((2,), (2,), 1, [2, 4]),
        ((3,), (0,), 2, [3, 3, 3]),
        ((2, 2), (1, 1), 1, [[2, 3], [3, 4]]),
        ((1, 2), (2**60, 1), 0, [[1, 2]]),
        ((0, 2), (2, 1), 0, np.zeros((0, 2))),
        ((0,), (1,), 9, []),
    ],
)
def test_strides_and_offsets(tmp_path, size, stride, offset, expected):
    value = read(tmp_path / "f", zip_of(entries(x=tensor(size, stride, offset))))["x"]
    np.testing.assert_array_equal(value, np.array(expected, np.float32), strict=True)
    assert value.flags.aligned and value.flags.writeable


@pytest.mark.parametrize(
    "kind, code",
    [
        ("Half", "f2"),
        ("Double", "f8"),
        ("Long", "i8"),
        ("Int", "i4"),
        ("Short", "i2"),
        ("Char", "i1"),
        ("Byte", "u1"),
        ("Bool", "?"),
        ("ComplexFloat", "c8"),
        ("ComplexDouble", "c16"),
    ],
)
@pytest.mark.parametrize("order", ["little", "big"])
def test_dtypes_and_byte_order(tmp_path, kind, code, order):
    values = np.array([1, 0, 1]).astype(code)
    raw = values.astype(values.dtype.newbyteorder("<" if order == "little" else ">")).tobytes()
    of = storage("k", 3, f"torch.{kind}Storage")
    content = zip_of(entries(x=tensor((3,), of=of)), {"k": raw}, byteorder=order.encode())
    np.testing.assert_array_equal(read(tmp_path / "f", content)["x"], values, strict=True)


@pytest.mark.parametrize("shape", [(4,), (), (0, 4)])
def test_bfloat16_is_exact(tmp_path, shape):
    values = np.array([1, -2.5, 2.0**-130, np.inf], np.float32)  # exact in bfloat16
    raw = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    of = storage("0", 4, "torch.BFloat16Storage")
    value = read(
        tmp_path / "f", zip_of(entries(x=tensor(shape, (1,) * len(shape), of=of)), {"0": raw})
    )["x"]
    np.testing.assert_array_equal(
        value, values.reshape(4)[: value.size].reshape(shape), strict=True
    )


def test_bytes_of_a_dtype_that_has_no_storage_class(tmp_path):
    of = storage("0", 16, "torch.storage.UntypedStorage")
    more = global_("torch.uint32")
    value = tensor(of=of, more=more, rebuild="torch._utils._rebuild_tensor_v3")
    raw = np.arange(4, dtype="<u4").tobytes()
    np.testing.assert_array_equal(
        read(tmp_path / "f", zip_of(entries(x=value), {"0": raw}))["x"],
        np.arange(4, dtype=np.uint32),
        strict=True,
    )


def test_parameters_and_attributes(tmp_path):
    parameter = global_("torch._utils._rebuild_parameter") + b"(" + tensor() + b"\x88}tR"
    arguments = b"(" + storage() + integer(0) + integers([2]) + integers([1]) + b"\x89}t"
    typed = global_("torch._tensor._rebuild_from_type_v2") + b"("
    typed += global_("torch._utils._rebuild_tensor_v2") + global_("torch.Tensor") + arguments
    typed += b"}" + text("note") + b"K\x01stR"
    tree = read(tmp_path / "f", zip_of(entries(parameter=parameter, typed=typed)))
    np.testing.assert_array_equal(tree["parameter"], [1, 2, 3, 4])
    np.testing.assert_array_equal(tree["typed"], [1, 2])


def test_two_tensors_share_a_storage_and_a_name(tmp_path):
    stored = tensor() + pickle.BINPUT + b"\x01"
    data = entries(a=stored, tied=pickle.BINGET + b"\x01", part=tensor((2,), (1,), 2))
    tree = read(tmp_path / "f", zip_of(data))
    assert tree["tied"] is tree["a"]
    np.testing.assert_array_equal(tree["part"], [3, 4])


def test_a_deflated_archive(tmp_path):
    content = zip_of(entries(x=tensor()), {"0": FOUR}, compression=zipfile.ZIP_DEFLATED)
    np.testing.assert_array_equal(read(tmp_path / "f", content)["x"], [1, 2, 3, 4])


def test_unused_objects_stay_opaque(tmp_path):
    """Python's own unpickler would set their state and call their methods."""
    namespace = global_("argparse.Namespace") + b")\x81}" + text("lr") + b"K\x01sb"
    history = global_("mmengine.logging.history_buffer.HistoryBuffer")
    method = global_("builtins.getattr") + history + text("mean") + b"\x86R"
    buffer = history + b")\x81}(" + text("_log_history") + tensor() + text("mean") + method + b"ub"
    config = global_("mmcv.utils.config.ConfigDict") + b")R" + text("a") + b"K\x01s"
    factory = global_("collections.defaultdict") + global_("builtins.list") + b"\x85R"
    data = entries(
        args=namespace,
        log=buffer,
        config=config,
        found=factory + text("a") + b"K\x01s",
        metadata=global_("collections.OrderedDict") + b")R}" + text("_metadata") + b"}sb",
    )
    assert read(tmp_path / "f", zip_of(data, {"0": FOUR})) == {
        "args": Opaque("argparse.Namespace"),
        "log": Opaque("mmengine.logging.history_buffer.HistoryBuffer"),
        "config": Opaque("mmcv.utils.config.ConfigDict"),
        "found": {"a": 1},
        "metadata": {},
    }


@pytest.mark.parametrize("is_zip", [True, False])
def test_files_of_pytorch(tmp_path, is_zip):
    torch = pytest.importorskip("torch")
    base = torch.arange(24.0)
    tensors = {
        "float": torch.randn(3, 4),
        "transposed": torch.randn(3, 4).t(),
        "half": torch.randn(3).half(),
        "bfloat16": torch.randn(5).bfloat16(),
        "double": torch.randn(2).double(),
        "long": torch.tensor([1, 2**40]),
        "bool": torch.tensor([True, False]),
        "complex": torch.randn(3) + 1j * torch.randn(3),
        "uint16": torch.arange(3).to(torch.uint16),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(3),
        "view": base[2:8].view(2, 3),
        "strided": base[::2],
        "expanded": torch.randn(3, 1).expand(3, 4),
        "column": torch.randn(1, 4)[:, :1],
        "parameter": torch.nn.Parameter(torch.randn(2)),
    }
    layer = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.SGD(layer.parameters(), 0.1, momentum=0.9)
    layer(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    checkpoint = {
        "meta": {"note": "x" * 1000, "top1": np.float64(55.5), "values": np.arange(100.0)},
        "state_dict": layer.state_dict(),
        "optimizer": optimizer.state_dict(),
        "tensors": tensors,
    }
    path = tmp_path / "f.pth"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=is_zip)
    tree = read_torch(path)
    assert tree["meta"]["note"] == "x" * 1000 and tree["meta"]["top1"] == 55.5
    np.testing.assert_array_equal(tree["meta"]["values"], np.arange(100.0), strict=True)
    momentum = optimizer.state_dict()["state"][0]["momentum_buffer"]
    np.testing.assert_array_equal(tree["optimizer"]["state"][0]["momentum_buffer"], momentum)
    assert list(tree["state_dict"]) == list(layer.state_dict())
    for name, value in {**tensors, **layer.state_dict()}.items():
        found = tree["tensors"][name] if name in tensors else tree["state_dict"][name]
        expected = value.detach().float() if value.dtype == torch.bfloat16 else value.detach()
        np.testing.assert_array_equal(found, expected.numpy(), strict=True)


@pytest.mark.parametrize(
    "make, reason",
    [
        (lambda torch: torch.eye(3).to_sparse(), "only plain tensors"),
        (
            lambda torch: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
            "only plain tensors",
        ),
        (lambda torch: torch.ones(2).to(torch.float8_e4m3fn), "only plain tensors"),
        (lambda torch: torch.tensor([1j]).conj(), "conjugated"),
        (lambda torch: torch.nn.Linear(2, 2), "only plain tensors"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_unsupported_files_of_pytorch(tmp_path, make, reason):
    torch = pytest.importorskip("torch")
    torch.save({"x": make(torch)}, tmp_path / "f.pth")
    with pytest.raises(Exception, match=reason) as caught:
        read_torch(tmp_path / "f.pth")
    assert type(caught.value).__name__ == "UserError"
