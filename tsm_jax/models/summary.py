"""Summary of a network: its layers with their parameters and multiply-adds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from tsm_jax.models.architecture import Architecture
from tsm_jax.models.layers import ConvNorm
from tsm_jax.models.tsm import TSM


class Layer(NamedTuple):
    """A convolution with its batch norm, or another layer that has parameters.

    Attributes:
        name: path in the module tree; the names of its tensors start with it.
        output: shape of the output for one clip, starting with T if it has a frame axis.
        parameters: number of trainable parameters; running statistics are not counted.
        multiply_adds: number for one clip; a multiplication and an addition count as one.
    """

    name: str
    output: tuple[int, ...]
    parameters: int
    multiply_adds: int


@dataclass(frozen=True)
class Summary:
    """The layers of a network; `str` and `print` give a table.

    Attributes:
        title: name of the network.
        input: shape of the input that the numbers are for, one view: (T, S, S, 3).
        layers: in order of definition.
    """

    title: str
    input: tuple[int, int, int, int]
    layers: tuple[Layer, ...]

    @property
    def parameters(self) -> int:
        """Parameters of all layers."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of convolutions and matrix products, which papers often call FLOPs."""
        return sum(layer.multiply_adds for layer in self.layers)

    def __str__(self) -> str:
        width = max(len(layer.name) for layer in self.layers)
        head = f"{'layer':{width}}  {'output':>18}  {'parameters':>12}  {'multiply-adds':>15}"
        rows = [
            f"{name:{width}}  {'x'.join(map(str, output)):>18}  {parameters:>12,}  {products:>15,}"
            for name, output, parameters, products in self.layers
        ]
        size = "x".join(map(str, self.input))
        total = (
            f"{self.title}, input {size}: {self.parameters:,} parameters,"
            f" {self.multiply_adds / 1e9:.2f} billion multiply-adds"
        )
        return "\n".join([head, *rows, total])


def summarize(architecture: Architecture, crop_size: int) -> Summary:
    """Lists the layers of a network for one clip of `crop_size` pixels, without computing it."""
    shape = (architecture.num_segments, crop_size, crop_size, 3)
    found: list[Layer] = []

    def trace() -> None:
        module = TSM(**asdict(architecture), dropout=0.0)
        run = nnx.capture(module, nnx.Intermediate, method_outputs=nnx.Intermediate)
        _, outputs = run(jnp.zeros((1, *shape)))
        found.extend(_layers(module, dict(nnx.to_flat_state(outputs))))

    jax.eval_shape(trace)
    return Summary(str(architecture), shape, tuple(found))


def _layers(module: TSM, outputs: dict[tuple[Any, ...], Any]) -> Iterator[Layer]:
    def output(path: tuple[Any, ...]) -> tuple[int, ...]:
        return outputs[(*path, "__call__")].get_value()[0].shape

    for path, part in _rows(module):
        parameters = {
            name: leaf.get_value() for name, leaf in nnx.to_flat_state(nnx.state(part, nnx.Param))
        }
        products = sum(
            kernel.size * prod(output((*path, *name[:-1]))[:-1])
            for name, kernel in parameters.items()
            if name[-1] == "kernel"
        )
        size = sum(parameter.size for parameter in parameters.values())
        yield Layer(".".join(map(str, path)), output(path), size, products)


def _rows(module: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yields the modules that hold parameters in order of definition; a `ConvNorm` is one row."""
    children = vars(module)
    if isinstance(module, ConvNorm) or any(isinstance(x, nnx.Param) for x in children.values()):
        yield path, module
        return
    for name, child in children.items():
        if isinstance(child, nnx.Pytree) and not isinstance(child, nnx.Variable):
            yield from _rows(child, (*path, int(name) if name.isdigit() else name))
