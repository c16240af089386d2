"""A TSM as pure functions of named tensors.

Training, evaluation, checkpoints and converters all use the same flat dictionary, whose keys are
paths in the module tree: `{"backbone.stem.conv.kernel": ..., "head.fc.bias": ...}`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tsm_jax.models.architecture import Architecture
from tsm_jax.models.tsm import TSM

Tensors = dict[str, jax.Array]

# Mean and standard deviation of ImageNet's RGB values in [0, 1]; also used by PaddleVideo, MIT and
# mmaction2.
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


def normalize(video: jax.Array | np.ndarray) -> jax.Array:
    """Converts uint8 pixels `[N, T, H, W, 3]` to the input of the network, float32."""
    return (jnp.asarray(video, jnp.float32) / 255.0 - MEAN) / STD


class Network:
    """The pure functions of a network and the shapes of its tensors.

    Args:
        make_model: builds the module; it is traced, never executed.

    Attributes:
        param_shapes: shapes of the trainable tensors, by name.
        batch_stat_shapes: shapes of the running statistics, by name.
    """

    def __init__(self, make_model: Callable[[], TSM]):
        self._graph, params, batch_stats, self._rest = nnx.split(
            nnx.eval_shape(make_model), nnx.Param, nnx.BatchStat, ...
        )
        variables = _by_name(params)
        self.param_shapes = {name: each.get_value().shape for name, each in variables.items()}
        self._deviations = {
            name: each.get_metadata().get("deviation") for name, each in variables.items()
        }
        self.batch_stat_shapes = {name: leaf.shape for name, leaf in _flatten(batch_stats).items()}

    def init(
        self, seed: int, loaded: Mapping[str, np.ndarray] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Returns the initial parameters and statistics, float32 on the host.

        Args:
            seed: seed of the random tensors; see `initial_tensor`.
            loaded: tensors to use instead of drawing them.
        """
        given = loaded or {}

        def first_values(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
            return {
                name: given[name]
                if name in given
                else initial_tensor(name, shape, seed, self._deviations.get(name))
                for name, shape in shapes.items()
            }

        return first_values(self.param_shapes), first_values(self.batch_stat_shapes)

    def apply(
        self,
        params: Mapping[str, jax.Array | np.ndarray],
        batch_stats: Mapping[str, jax.Array | np.ndarray],
        video: jax.Array,
        *,
        train: bool = False,
        dropout_keys: jax.Array | None = None,
    ) -> tuple[jax.Array, Tensors]:
        """Returns logits of normalised clips (see `TSM.__call__`) and the updated statistics."""
        model = self.module(params, batch_stats)
        logits = model(video, train=train, dropout_keys=dropout_keys)
        return logits, _flatten(nnx.state(model, nnx.BatchStat))

    def module(
        self,
        params: Mapping[str, jax.Array | np.ndarray],
        batch_stats: Mapping[str, jax.Array | np.ndarray],
    ) -> TSM:
        """Returns the module tree with these tensors."""
        return nnx.merge(
            self._graph,
            _unflatten(params, nnx.Param),
            _unflatten(batch_stats, nnx.BatchStat),
            self._rest,
            copy=True,
        )


@lru_cache(maxsize=8)
def build_network(
    architecture: Architecture, dtype: str, *, dropout: float = 0.0, **training: Any
) -> Network:
    """Builds the network of an architecture.

    Networks are cached, because tracing the modules of a ResNet-50 takes half a second.

    Args:
        dtype: dtype of the computation, as in `config.dtype`.
        dropout, training: further arguments of `TSM`, used in training.
    """
    options = {"dropout": dropout, "dtype": resolve_dtype(dtype), **training}
    return Network(partial(TSM, **asdict(architecture), **options))


def initial_tensor(
    name: str, shape: tuple[int, ...], seed: int, deviation: float | None = None
) -> np.ndarray:
    """Returns the initial value of a tensor, float32.

    Kernels are normally distributed with the standard deviation that their module specifies;
    scales and variances of batch norm are 1, biases and means 0.

    Values are drawn with NumPy on the host and depend only on `seed` and the name of the tensor.
    Drawing those of a ResNet-50 in one compiled program would add 2.7 s to every start, even from
    the compilation cache (two CPU cores).

    Raises:
        ValueError: there is no rule for this name.
    """
    kind = name.rsplit(".", 1)[-1]
    if kind in ("scale", "var"):
        return np.ones(shape, np.float32)
    if kind in ("bias", "mean"):
        return np.zeros(shape, np.float32)
    if kind != "kernel" or deviation is None:
        raise ValueError(f"there is no rule for the initial value of {name}")
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return generator.standard_normal(shape, np.float32) * np.float32(deviation)


def resolve_dtype(dtype: str) -> jnp.dtype:
    """Resolves `auto`: bfloat16 on hardware that supports it (GPU, TPU), float32 on a CPU."""
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(dtype)


def _by_name(state: nnx.State) -> dict[str, nnx.Variable]:
    return {".".join(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}


def _flatten(state: nnx.State) -> dict[str, Any]:
    return {name: variable.get_value() for name, variable in _by_name(state).items()}


def _unflatten(tensors: Mapping[str, Any], kind: type[nnx.Variable]) -> nnx.State:
    return nnx.from_flat_state((_path(name), kind(value)) for name, value in tensors.items())


def _path(name: str) -> tuple[str | int, ...]:
    return tuple(int(part) if part.isdigit() else part for part in name.split("."))
