"""The program that is exported, traced from the module tree of a network, and its StableHLO.

    video     uint8 [N, T, S, S, 3]        RGB frames after resizing and cropping; any N
    logits    float32 [N, K]
    features  float32 [N, T, h, w, C]      input of the average pooling, for activation maps

A network with the shift `past_only` also has a program for one frame of a stream:

    frame     uint8 [1, S, S, 3]
    state_0, state_1, ...                  one per shift, float32 [1, h, w, fold]; initially zeros
    logits    float32 [1, K]
    next_state_0, ...                      the states for the next frame

The program is the module tree itself, preceded by the normalisation of pixels and with batch norm
folded into the convolutions, so a graph computes exactly what `tsm_jax.models` defines.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax import export

from tsm_jax.data.protocols import protocol_of
from tsm_jax.deploy.artifact import FEATURES, FRAME, LOGITS, NEXT_STATE, STATE, VIDEO
from tsm_jax.errors import UserError
from tsm_jax.models.layers import ConvNorm
from tsm_jax.models.network import build_network, normalize
from tsm_jax.models.tsm import TSM
from tsm_jax.weights.model_directory import Model, check_tensors

PLATFORMS = ("cpu", "cuda", "tpu")


@dataclass(frozen=True, eq=False)
class Program:
    """The function that is exported, with batch norm folded.

    Attributes:
        function: the function.
        inputs: names, shapes and dtypes of its arguments, in order.
        outputs: names of its results, in order.
    """

    function: Callable[..., tuple[jax.Array, ...]]
    inputs: dict[str, jax.ShapeDtypeStruct]
    outputs: tuple[str, ...]

    def __call__(self, *arguments: jax.Array) -> tuple[jax.Array, ...]:
        return self.function(*arguments)

    @property
    def state(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """The inputs of a stream program after the frame."""
        return tuple(self.inputs.values())[1:]


def make_program(model: Model, dtype: str = "float32", source: str = "the model") -> Program:
    """Returns the program of a model for clips of the size of its protocol's views.

    Args:
        dtype: dtype of convolutions and activations, `float32` or `bfloat16`.
        source: name of the model in error messages.

    Raises:
        UserError: the tensors do not match the architecture.
    """
    module = _folded_module(model, dtype, source)
    frames, size = module.num_segments, protocol_of(model.preprocessing).crop_size

    def answer(video: jax.Array) -> tuple[jax.Array, ...]:
        x = module.features(normalize(video)).astype(jnp.float32)
        logits = module.head(x, frames, dropout_keys=None)
        return logits, x.reshape(-1, frames, *x.shape[1:])

    (clips,) = export.symbolic_shape("N")
    video = jax.ShapeDtypeStruct((clips, frames, size, size, 3), jnp.uint8)
    return Program(answer, {VIDEO: video}, (LOGITS, FEATURES))


def make_stream_program(model: Model, dtype: str = "float32", source: str = "the model") -> Program:
    """Returns the program for one frame of a stream; for the arguments see `make_program`.

    Raises:
        UserError: the tensors do not match the architecture, or the network needs future frames.
    """
    shift = model.architecture.shift
    if shift != "past_only":
        raise UserError(
            f"{source} has the shift {shift}: only a network trained with"
            " --config.model.shift=past_only can process a stream frame by frame"
        )
    module = _folded_module(model, dtype, source)
    size = protocol_of(model.preprocessing).crop_size

    def step(frame: jax.Array, *state: jax.Array) -> tuple[jax.Array, ...]:
        logits, after = module.step(normalize(frame), state or None)
        return logits, *after

    frame = jax.ShapeDtypeStruct((1, size, size, 3), jnp.uint8)
    _, *state = jax.eval_shape(step, frame)
    inputs = {FRAME: frame, **{STATE.format(i): each for i, each in enumerate(state)}}
    return Program(step, inputs, (LOGITS, *(NEXT_STATE.format(i) for i in range(len(state)))))


def _folded_module(model: Model, dtype: str, source: str) -> TSM:
    module = build_module(model, dtype, source)
    for _, child in nnx.iter_modules(module):
        if isinstance(child, ConvNorm):
            child.fold()
    return module


def build_module(model: Model, dtype: str = "float32", source: str = "the model") -> TSM:
    """Returns the module tree with the tensors of the model; for the rest see `make_program`."""
    network = build_network(model.architecture, dtype)
    params, stats = network.param_shapes, network.batch_stat_shapes
    check_tensors(model.tensors, {**params, **stats}, source)
    return network.module(
        {name: model.tensors[name] for name in params},
        {name: model.tensors[name] for name in stats},
    )


def export_stablehlo(program: Program) -> bytes:
    """Serialises a program with its weights, for any batch size on CPU, CUDA and TPU.

    JAX guarantees compatibility for six months only. The exported folder therefore also contains
    the tensors of the model, so that it can be exported again.
    """
    jitted = jax.jit(lambda *inputs: program(*inputs))  # a new function, so no cache is used
    # jax would store the paths of source files on this machine with every operation.
    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        exported = export.export(jitted, platforms=PLATFORMS)(*program.inputs.values())
        return bytes(exported.serialize())
    finally:
        jax.config.update(name, before)
