"""A program as a StableHLO file.

The file holds the weights, too: it runs with nothing but jax and NumPy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import jax
from jax import export

from tsm_jax.exporting.program import Program

PLATFORMS = ("cpu", "cuda", "tpu")


def export_stablehlo(program: Program) -> bytes:
    """Serialises the program for any batch size on CPU, CUDA and TPU.

    JAX promises to read it for six months of releases; the model's tensors are in the folder, too,
    so that it can be exported again.
    """
    jitted = jax.jit(lambda video: program(video))  # its own, so that nothing is in a cache
    with _without_source_locations():
        return bytes(export.export(jitted, platforms=PLATFORMS)(program.video).serialize())


@contextmanager
def _without_source_locations() -> Iterator[None]:
    """jax writes the paths of the source files of this machine beside every operation."""
    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)
