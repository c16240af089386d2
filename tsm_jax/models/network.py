"""A TSM as pure functions of named tensors.

Training, evaluation, checkpoints and converters all speak of the same flat dictionary, for example
`{"backbone.stem.conv.kernel": ..., "head.fc.bias": ...}`: names are the paths of the module tree.
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

# ImageNet's mean and deviation of RGB in [0, 1], as PaddleVideo, MIT and mmaction2 use them.
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


def normalize(video: jax.Array | np.ndarray) -> jax.Array:
    """The host's pixels, uint8 `[N, T, H, W, 3]`, as the network's input, float32."""
    return (jnp.asarray(video, jnp.float32) / 255.0 - MEAN) / STD


class Network:
    """The pure functions of a network and the shapes of its tensors.

    Args:
        make_model: builds the module; it is only ever traced.

    Attributes:
        param_shapes: name to shape of what the optimizer trains.
        batch_stat_shapes: name to shape of the running statistics.
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
        """Parameters and statistics to start from, float32 on the host.

        Args:
            seed: of the random ones, see `initial_tensor`.
            loaded: those that need not be drawn.
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
        """Logits of normalised clips (see `TSM.__call__`) and the statistics afterwards."""
        model = self.module(params, batch_stats)
        logits = model(video, train=train, dropout_keys=dropout_keys)
        return logits, _flatten(nnx.state(model, nnx.BatchStat))

    def module(
        self,
        params: Mapping[str, jax.Array | np.ndarray],
        batch_stats: Mapping[str, jax.Array | np.ndarray],
    ) -> TSM:
        """The module tree with these tensors in it."""
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
    """The network of an architecture, computing in `config.dtype`.

    Tracing the modules of a ResNet-50 takes half a second, so who asks again gets the same one.

    Args:
        dropout, training: what `TSM` takes besides, for training.
    """
    options = {"dropout": dropout, "dtype": resolve_dtype(dtype), **training}
    return Network(partial(TSM, **asdict(architecture), **options))


def initial_tensor(
    name: str, shape: tuple[int, ...], seed: int, deviation: float | None = None
) -> np.ndarray:
    """A tensor's first value to train from, float32.

    Drawn with NumPy on the host: as one compiled program the draws of a ResNet-50 cost every start
    2.7 s, even from the compilation cache (two CPU cores). A draw depends on `seed` and on the
    tensor's name alone.

    Kernels are normal with the deviation that their module gives them; scales and variances of
    batch norm are 1, biases and means 0.

    Raises:
        ValueError: there is no rule for this name.
    """
    kind = name.rsplit(".", 1)[-1]
    if kind in ("scale", "var"):
        return np.ones(shape, np.float32)
    if kind in ("bias", "mean"):
        return np.zeros(shape, np.float32)
    if kind != "kernel" or deviation is None:
        raise ValueError(f"no rule for the first value of {name}")
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return generator.standard_normal(shape, np.float32) * np.float32(deviation)


def resolve_dtype(dtype: str) -> jnp.dtype:
    """`auto` is bfloat16 where the hardware has it (GPU, TPU) and float32 on CPU."""
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
