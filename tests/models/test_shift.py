"""Compares the temporal shift with its definition."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tsm_jax.models.shift import fold_sizes, streaming, temporal_shift

SEGMENTS = (2, 3, 5, 8, 10, 16)


def shift_by_definition(clips, first_end, second_end, direction):
    """Shifts clips `[N, T, H, W, C]` frame by frame in NumPy."""
    shifted = clips.copy()
    num_segments = clips.shape[1]
    first_source, second_source = (+1, -1) if direction == "future_first" else (-1, +1)
    if direction == "past_only":
        second_end = first_end
    for t in range(num_segments):
        for source, channels in (
            (t + first_source, slice(0, first_end)),
            (t + second_source, slice(first_end, second_end)),
        ):
            inside = 0 <= source < num_segments
            shifted[:, t, ..., channels] = clips[:, source, ..., channels] if inside else 0
    return shifted


def random_clips(num_segments, channels=24, clips=2):
    rng = np.random.default_rng(num_segments)
    return rng.normal(size=(clips, num_segments, 3, 2, channels)).astype(np.float32)


@pytest.mark.parametrize("num_segments", SEGMENTS)
@pytest.mark.parametrize("fraction", ["1/8", "1/num_segments"])
@pytest.mark.parametrize("direction", ["past_first", "future_first", "past_only"])
def test_follows_the_definition(num_segments, fraction, direction):
    clips = random_clips(num_segments)
    images = clips.reshape(-1, *clips.shape[2:])
    folds = fold_sizes(clips.shape[-1], num_segments, fraction)
    expected = shift_by_definition(clips, *folds, direction).reshape(images.shape)
    shift = partial(
        temporal_shift, num_segments=num_segments, fraction=fraction, direction=direction
    )
    shifted = jax.jit(shift)(images)
    np.testing.assert_array_equal(shifted, expected)
    assert not np.array_equal(shifted, images)


def test_none_changes_nothing():
    images = jnp.asarray(random_clips(4)[0])
    assert temporal_shift(images, 4, direction="none") is images


@pytest.mark.parametrize(
    ("direction", "neighbours"), [("past_first", (-1, 0, 1)), ("past_only", (-1, 0))]
)
def test_gradient_of_a_frame_reaches_its_neighbours_and_no_further(direction, neighbours):
    clips = jnp.asarray(random_clips(5, clips=1)[0])
    squares = jax.jit(
        jax.jacrev(lambda x: (temporal_shift(x, 5, direction=direction) ** 2).sum((1, 2, 3)))
    )
    for t, mixed in enumerate(squares(clips)):
        reached = [i for i in range(5) if np.any(mixed[i])]
        assert reached == [t + step for step in neighbours if 0 <= t + step < 5]


def test_a_stream_equals_a_clip_frame_by_frame():
    clips = jnp.asarray(random_clips(5)).swapaxes(0, 1)  # [T, N, H, W, C]: two streams at once
    expected = temporal_shift(
        clips.swapaxes(0, 1).reshape(-1, *clips.shape[2:]), 5, direction="past_only"
    ).reshape(2, 5, *clips.shape[2:])
    state = None
    for t, frames in enumerate(clips):
        with streaming(state) as after:
            shifted = temporal_shift(frames, 5, direction="past_only")
        np.testing.assert_array_equal(shifted, expected[:, t])
        state = list(after)
        assert state[0].shape == (2, 3, 2, 3)  # an eighth of 24 channels


def test_a_stream_refuses_future_frames_and_a_wrong_state():
    frames = jnp.ones((1, 2, 2, 16))
    with pytest.raises(ValueError, match="past_first needs future frames"), streaming(None):
        temporal_shift(frames, 8, direction="past_first")
    with (
        pytest.raises(ValueError, match="2 tensors, but the network needs 1"),
        streaming([frames] * 2),
    ):
        temporal_shift(frames, 8, direction="past_only")
    with pytest.raises(ValueError, match="0 tensors, but the network needs more"), streaming([]):
        temporal_shift(frames, 8, direction="past_only")
    # Outside the context, the input is a clip again.
    assert temporal_shift(frames, 1).shape == frames.shape


def test_the_ends_are_zero_and_clips_do_not_mix():
    clips = jnp.ones((3, 4, 1, 1, 16))
    shifted = temporal_shift(clips.reshape(12, 1, 1, 16), 4).reshape(3, 4, 16)
    assert not shifted[:, 0, :2].any()  # there is no frame before the first one
    assert not shifted[:, -1, 2:4].any()  # there is no frame after the last one
    assert shifted.sum() == 3 * 4 * 16 - 3 * 4


# (T, C) to the ends of PaddleVideo's folds, from the float32 arithmetic of its kernel.
PADDLE_FOLDS = {
    (3, 64): (21, 42),
    (3, 256): (85, 170),
    (3, 512): (170, 341),
    (5, 64): (12, 25),
    (5, 2048): (409, 819),
    (7, 512): (73, 146),
    (8, 64): (8, 16),
    (10, 256): (25, 51),
    (12, 1024): (85, 170),
    (16, 2048): (128, 256),
}


@pytest.mark.parametrize(("shape", "ends"), PADDLE_FOLDS.items())
def test_paddle_folds(shape, ends):
    num_segments, channels = shape
    assert fold_sizes(channels, num_segments, "1/num_segments") == ends


def test_an_eighth_does_not_depend_on_the_number_of_segments():
    assert {fold_sizes(256, segments, "1/8") for segments in SEGMENTS} == {(32, 64)}
