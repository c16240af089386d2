"""float32 means float32 on every device."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

FLOAT32 = jnp.dtype(jnp.float32)


def precision_of(dtype: jnp.dtype) -> lax.Precision | None:
    """What products of this dtype are computed with.

    For float32 on GPU and TPU the default is TF32, or a pass of bfloat16: three digits of a logit.
    """
    return lax.Precision.HIGHEST if dtype == FLOAT32 else None
