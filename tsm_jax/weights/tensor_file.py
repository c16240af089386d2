"""Tensors of a network in a safetensors file: float32, finite, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from tsm_jax.errors import UserError
from tsm_jax.files import check_regular, reason
from tsm_jax.terminal import printable

_NUMPY = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")


def write_tensors(path: str, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes tensors.

    Raises:
        UserError: one is not float32 or not finite.
    """
    check_values(tensors, path)
    content = save({name: np.ascontiguousarray(value) for name, value in tensors.items()})
    with open(path, "wb") as file:  # safetensors itself makes files that only their owner can read
        file.write(content)


def read_tensors(path: str, names: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Reads those of some names, or all.

    Raises:
        UserError: the file is damaged, or a tensor is missing, not float32 or not finite.
    """
    with _opened(path) as file:
        present = set(file.keys())
        for name in names:
            if name not in present:
                raise UserError(f"cannot read {path}: it has no tensor {name}")
        # The dtype before the values: NumPy has no name for some of them.
        for name in sorted(names or present):
            dtype = file.get_slice(name).get_dtype()
            if dtype != "F32":
                raise UserError(f"cannot read {path}: {printable(name)} is {dtype}: it must be F32")
        tensors = {name: file.get_tensor(name) for name in names or file.keys()}
    check_values(tensors, path)
    return tensors


def read_any_tensors(path: str) -> dict[str, np.ndarray]:
    """Reads all, of any dtype that NumPy has; bfloat16 becomes float32, exactly.

    Raises:
        UserError: the file is damaged, or a tensor has another dtype.
    """
    import ml_dtypes  # noqa: F401  # which gives NumPy the name; wherever jax is

    with _opened(path) as file:
        tensors = {}
        for name in sorted(set(file.keys())):
            dtype = file.get_slice(name).get_dtype()
            if dtype not in _NUMPY:
                raise UserError(f"cannot read {path}: {printable(name)} is {dtype}")
            tensors[name] = file.get_tensor(name)
    is_bfloat16 = {name for name, value in tensors.items() if value.dtype.name == "bfloat16"}
    return {n: v.astype(np.float32) if n in is_bfloat16 else v for n, v in tensors.items()}


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    check_regular(path, "the weights")
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (OSError, SafetensorError, ValueError) as error:  # ValueError: a size NumPy cannot have
        raise UserError(f"cannot read {path}: {printable(reason(error))}") from error


def check_values(tensors: Mapping[str, np.ndarray], source: str) -> None:
    """Raises a UserError unless all tensors are float32 and finite."""
    for name, value in tensors.items():
        if value.dtype != np.float32:
            raise UserError(f"{source}: {printable(name)} is {value.dtype}: it must be float32")
        if not np.isfinite(value).all():
            raise UserError(
                f"{source}: {printable(name)} holds values that are not finite: the weights are"
                " damaged, or their training diverged"
            )
