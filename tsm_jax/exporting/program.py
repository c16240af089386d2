"""A network as the program that is exported, traced from its module tree, and as StableHLO.

    video     uint8 [N, T, S, S, 3]        RGB frames after resize and crop; N is free
    logits    float32 [N, K]
    features  float32 [N, T, h, w, C]      before the average pool, for activation maps

Of a network that is shifted `past_only` also as the program of one frame of a stream:

    frame     uint8 [1, S, S, 3]
    state_0, state_1, ...                  of each shift, float32 [1, h, w, fold]; zeros at first
    logits    float32 [1, K]
    next_state_0, ...                      the state for the next frame

The program is the module tree itself, with batch norm folded into its tensors and the
normalisation of pixels before it: what a graph computes is what `tsm_jax.models` says.
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
    """What is exported: a function of arrays, by a module whose batch norms are folded.

    Attributes:
        inputs: names, shapes and types of its arguments, in order.
        outputs: names of its results, in order.
    """

    function: Callable[..., tuple[jax.Array, ...]]
    inputs: dict[str, jax.ShapeDtypeStruct]
    outputs: tuple[str, ...]

    def __call__(self, *arguments: jax.Array) -> tuple[jax.Array, ...]:
        return self.function(*arguments)

    @property
    def state(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """What the program of a stream takes besides the frame."""
        return tuple(self.inputs.values())[1:]


def make_program(model: Model, dtype: str = "float32", source: str = "the model") -> Program:
    """The program of a model for the views of its protocol, with convolutions and activations in
    `float32` or `bfloat16`.

    Raises:
        UserError: the tensors do not fit the architecture.
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
    """The program of one frame of a stream; arguments as of `make_program`.

    Raises:
        UserError: as `make_program`; or the network needs frames from the future.
    """
    shift = model.architecture.shift
    if shift != "past_only":
        raise UserError(
            f"{source} is shifted {shift}: only a network trained with"
            " --config.model.shift=past_only can follow a stream frame by frame"
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
    """The module tree with the model's tensors in it; raises as `make_program`."""
    network = build_network(model.architecture, dtype)
    params, stats = network.param_shapes, network.batch_stat_shapes
    check_tensors(model.tensors, {**params, **stats}, source)
    return network.module(
        {name: model.tensors[name] for name in params},
        {name: model.tensors[name] for name in stats},
    )


def export_stablehlo(program: Program) -> bytes:
    """The program with its weights for any batch size on CPU, CUDA and TPU.

    JAX promises to read it for six months of releases; the model's tensors are in the folder, too,
    so that it can be exported again.
    """
    jitted = jax.jit(lambda *inputs: program(*inputs))  # its own, so that nothing is in a cache
    # jax would write the paths of the source files of this machine beside every operation.
    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        exported = export.export(jitted, platforms=PLATFORMS)(*program.inputs.values())
        return bytes(exported.serialize())
    finally:
        jax.config.update(name, before)
