"""Cross-correlation as XLA has it, in the one layout that networks here use."""

from __future__ import annotations

import jax
from jax import lax

from tsm_jax.models.precision import precision_of


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: int = 1,
    padding: tuple[int, int] | None = None,
    groups: int = 1,
) -> jax.Array:
    """Images `[M, H, W, C]` with a kernel `[k, k, C / groups, D]`, in the dtype of the images.

    Args:
        stride: of rows and columns.
        padding: zeros before and after the rows and the columns; `(k - 1) // 2` each if None.
        groups: of features; as many as features is a depthwise convolution.
    """
    half = (len(kernel) - 1) // 2
    return lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        window_strides=(stride, stride),
        padding=(padding or (half, half),) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
        precision=precision_of(x.dtype),
    )
