from __future__ import annotations

import numpy as np
import pytest

from tsm_jax.data.sampling import (
    middle_frame_of_each_segment,
    paddle_predict_frames,
    random_dense_frames,
    random_frame_of_each_segment,
)


@pytest.mark.parametrize(
    ("num_frames", "num_segments", "expected"),
    [
        (300, 8, [18, 56, 93, 131, 168, 206, 243, 281]),
        (131, 8, [8, 24, 40, 57, 73, 90, 106, 122]),
        (8, 8, range(8)),
        (9, 8, [0, 1, 2, 3, 5, 6, 7, 8]),
        (5, 8, [0, 0, 1, 2, 2, 3, 4, 4]),
        (1, 8, [0] * 8),
        (16, 16, range(16)),
        (10, 1, [5]),
    ],
)
def test_middle_frames(num_frames: int, num_segments: int, expected):
    _check(middle_frame_of_each_segment(num_frames, num_segments), expected)


@pytest.mark.parametrize(
    ("num_frames", "num_segments", "expected"),
    [
        (300, 8, [18, 55, 92, 129, 166, 203, 240, 277]),
        (131, 8, [7, 23, 39, 55, 71, 87, 103, 119]),
        (8, 8, range(8)),
        (17, 8, [0, 2, 4, 6, 8, 10, 12, 14]),
        (5, 8, [0, 1, 2, 3, 4, 0, 1, 2]),
        (1, 8, [0] * 8),
    ],
)
def test_paddle_predict_frames(num_frames: int, num_segments: int, expected):
    _check(paddle_predict_frames(num_frames, num_segments), expected)


def test_random_frames_cover_their_segments_evenly():
    rng = np.random.default_rng(0)
    num_frames, num_segments, draws = 85, 8, 4000
    drawn = np.stack(
        [random_frame_of_each_segment(num_frames, num_segments, rng) for _ in range(draws)]
    )
    offsets = drawn - 10 * np.arange(num_segments)  # 85 // 8 = 10; frames 80..84 are never drawn
    assert offsets.min() == 0
    assert offsets.max() == 9
    expected = draws / 10
    for segment in range(num_segments):
        counts = np.bincount(offsets[:, segment], minlength=10)
        chi_square = ((counts - expected) ** 2 / expected).sum()
        assert chi_square < 27.9  # 99.9 % of a chi-square distribution with 9 degrees
    correlation = np.corrcoef(offsets.T) - np.eye(num_segments)
    assert np.abs(correlation).max() < 0.1  # segments are drawn independently


@pytest.mark.parametrize(
    ("num_frames", "expected"),
    [(8, range(8)), (15, range(8)), (5, [0, 0, 1, 1, 2, 3, 3, 4]), (1, [0] * 8)],
)
def test_random_frames_of_short_clips(num_frames: int, expected):
    rng = np.random.default_rng(0)
    _check(random_frame_of_each_segment(num_frames, 8, rng), expected)


@pytest.mark.parametrize("num_segments", [1, 3, 8, 16])
def test_indices_are_in_the_clip_and_in_order(num_segments: int):
    rng = np.random.default_rng(0)
    for num_frames in range(1, 100):
        for indices in (
            middle_frame_of_each_segment(num_frames, num_segments),
            random_frame_of_each_segment(num_frames, num_segments, rng),
        ):
            _check(indices, np.sort(indices))
            assert indices[0] >= 0
            assert indices[-1] < num_frames
        assert paddle_predict_frames(num_frames, num_segments).max() < num_frames


def test_nothing_to_sample():
    for sample in (middle_frame_of_each_segment, paddle_predict_frames):
        with pytest.raises(ValueError, match="0 frames"):
            sample(0, 8)
    with pytest.raises(ValueError, match="0 frames"):
        random_frame_of_each_segment(0, 8, np.random.default_rng(0))


def _check(indices: np.ndarray, expected):
    assert indices.dtype == np.int64
    assert indices.tolist() == list(expected)


@pytest.mark.parametrize(("num_frames", "starts"), [(10, 1), (64, 1), (67, 4)])
def test_dense_training_draws_every_window(num_frames, starts):
    rng = np.random.default_rng(0)
    found = {tuple(random_dense_frames(num_frames, 8, rng).tolist()) for _ in range(100)}
    window = 8 * np.arange(8)
    assert found == {tuple(((start + window) % num_frames).tolist()) for start in range(starts)}
