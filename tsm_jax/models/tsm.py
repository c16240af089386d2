"""TSM: a backbone with temporal shifts and a head that averages the logits of the frames."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from tsm_jax.models.architecture import BACKBONES
from tsm_jax.models.convolve import FLOAT32
from tsm_jax.models.layers import BatchNorm, linear
from tsm_jax.models.shift import streaming, temporal_shift

# Path of the first batch norm if the stem is a single convolution, and if it is a list of them.
_FIRST_NORMS = (("backbone", "stem", "norm"), ("backbone", "stem", 0, "norm"))


class Head(nnx.Module):
    """Average pooling, dropout and classifier per frame, then the mean over the segments."""

    def __init__(self, features: int, num_classes: int, *, dropout: float):
        self.dropout = dropout
        # The deviation that PaddleVideo, MIT and mmaction2 use.
        self.fc = linear(features, num_classes, deviation=0.001)

    def __call__(
        self, x: jax.Array, num_segments: int, *, dropout_keys: jax.Array | None
    ) -> jax.Array:
        pooled = x.astype(jnp.promote_types(x.dtype, jnp.float32)).mean((1, 2))  # [N*T, C]
        if dropout_keys is not None and self.dropout > 0:
            pooled = self._drop(pooled, num_segments, dropout_keys)
        logits = self.fc(pooled)
        return logits.reshape(-1, num_segments, logits.shape[-1]).mean(1)  # [N, K]

    def _drop(self, pooled: jax.Array, num_segments: int, keys: jax.Array) -> jax.Array:
        """Applies dropout with one key per clip, so the result does not depend on how a batch is
        split."""
        shape, keep = (num_segments, pooled.shape[-1]), 1 - self.dropout
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, keep, shape))(keys)  # [N, T, C]
        return jnp.where(kept.reshape(pooled.shape), pooled / keep, 0)


class TSM(nnx.Module):
    """Temporal Shift Module network.

    Kernels are created as zeros; weights are then loaded, or drawn by `Network.init`.

    Args (those not listed are described in `config.model`):
        batch_norm_group: clips per batch-norm group; a smaller batch is one group, and so is any
            batch if this is 0.
        remat: for the backward pass, keep only the inputs of residual blocks and recompute the
            rest: about a third more operations for a fraction of the memory.
        dtype: dtype of convolutions and activations; parameters, statistics and logits are float32.
    """

    def __init__(
        self,
        backbone: str,
        *,
        num_classes: int,
        num_segments: int = 8,
        width: int = 64,
        shift: str = "past_first",
        shift_fraction: str = "1/8",
        shift_every: int = 1,
        dropout: float = 0.5,
        batch_norm_group: int = 0,
        frozen_batch_norm: str = "none",
        running_variance: str = "biased",
        remat: bool = False,
        dtype: jnp.dtype = FLOAT32,
    ):
        self.num_segments = num_segments
        self.batch_norm_group = batch_norm_group
        self.dtype = dtype
        _, build, whole_clip = BACKBONES[backbone]
        if whole_clip:
            build = partial(build, num_segments=num_segments)
        self.backbone = build(
            width=width,
            shift=partial(
                temporal_shift,
                num_segments=num_segments,
                fraction=shift_fraction,
                direction=shift,
            ),
            shift_every=shift_every,
            remat=remat,
            dtype=dtype,
        )
        self.head = Head(self.backbone.features, num_classes, dropout=dropout)
        for path, norm in nnx.iter_modules(self):
            if isinstance(norm, BatchNorm):
                first = path in _FIRST_NORMS
                norm.unbiased = running_variance == "unbiased"
                norm.frozen = frozen_batch_norm == "all" or (
                    frozen_batch_norm == "all_but_first" and not first
                )

    def __call__(
        self, video: jax.Array, *, train: bool = False, dropout_keys: jax.Array | None = None
    ) -> jax.Array:
        """Classifies clips.

        Args:
            video: normalised frames, `[N, T, H, W, 3]`.
            train: normalise with batch statistics and update the running ones.
            dropout_keys: one random key per clip, `[N]`; None disables dropout.

        Returns:
            Logits, float32 `[N, K]`.
        """
        features = self.features(video, train=train)
        return self.head(features, self.num_segments, dropout_keys=dropout_keys)

    def frame_logits(self, video: jax.Array) -> jax.Array:
        """Returns the logits of each frame, whose mean over T is the result of `__call__`.

        Args:
            video: normalised frames, `[N, T, H, W, 3]`.

        Returns:
            Logits, float32 `[N, T, K]`.
        """
        logits = self.head(self.features(video), 1, dropout_keys=None)
        return logits.reshape(*video.shape[:2], -1)

    def step(
        self, frames: jax.Array, state: Sequence[jax.Array] | None
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Processes the next frame of N streams; requires `shift="past_only"`.

        Args:
            frames: normalised frames, `[N, H, W, 3]`.
            state: the state returned by the previous step; None for the first frame.

        Returns:
            The logits, float32 `[N, K]`, equal to those that `frame_logits` gives for this frame
            in a clip, and the state for the next step: one `[N, h, w, fold]` in `dtype` per shift.
        """
        with streaming(state) as after:
            features = self.backbone(frames.astype(self.dtype), groups=None)
        return self.head(features, 1, dropout_keys=None), tuple(after)

    def features(self, video: jax.Array, *, train: bool = False) -> jax.Array:
        """Returns the input of the head, `[N*T, h, w, C]` in `dtype`.

        The arguments are those of `__call__`.
        """
        images = video.astype(self.dtype).reshape(-1, *video.shape[2:])  # [N*T, H, W, 3]
        groups = self._batch_norm_groups(video.shape[0]) if train else None
        return self.backbone(images, groups=groups)

    def _batch_norm_groups(self, clips: int) -> int:
        if self.batch_norm_group == 0 or clips <= self.batch_norm_group:
            return 1
        if clips % self.batch_norm_group:
            raise ValueError(
                f"a batch of {clips} clips cannot be divided into batch-norm groups of"
                f" {self.batch_norm_group}"
            )
        return clips // self.batch_norm_group
