"""What XLA is told when it compiles a step."""

from __future__ import annotations

from jax.sharding import Mesh


def compiler_options(mesh: Mesh, *, deterministic: bool) -> dict[str, bool] | None:
    """Options for `jax.jit`.

    Args:
        mesh: the devices.
        deterministic: the same bits in every run. A GPU otherwise may add up in any order, and
            picks its algorithms by timing them; without that it is slower. On CPU and TPU it is
            always so.
    """
    if deterministic and mesh.devices.flat[0].platform == "gpu":
        return {"xla_gpu_deterministic_ops": True}
    return None
