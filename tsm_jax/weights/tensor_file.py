"""Tensors of a network in a safetensors file: float32, finite, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from tsm_jax.errors import UserError
from tsm_jax.files import check_regular, reason
from tsm_jax.terminal import printable


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
    check_regular(path, "the weights")
    try:
        with safe_open(path, framework="numpy") as file:
            present = set(file.keys())
            for name in names:
                if name not in present:
                    raise UserError(f"cannot read {path}: it has no tensor {name}")
            # The dtype before the values: NumPy has no name for some of them.
            for name in sorted(names or present):
                dtype = file.get_slice(name).get_dtype()
                if dtype != "F32":
                    raise UserError(
                        f"cannot read {path}: {printable(name)} is {dtype}: it must be F32"
                    )
            tensors = {name: file.get_tensor(name) for name in names or file.keys()}
    except (OSError, SafetensorError, ValueError) as error:  # ValueError: a size NumPy cannot have
        raise UserError(f"cannot read {path}: {printable(reason(error))}") from error
    check_values(tensors, path)
    return tensors


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
