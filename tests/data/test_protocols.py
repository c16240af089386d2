"""Views at test time: frames, crops and their order, compared with the references' formulas."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tsm_jax.config import default, validate
from tsm_jax.data.pipeline import Reading, eval_batches
from tsm_jax.data.protocols import PROTOCOLS, eval_protocol
from tsm_jax.data.sampling import dense_frames, twice_frames
from tsm_jax.data.sources import EvalClips, SyntheticSource
from tsm_jax.data.transforms import (
    resize_short_side_cv2,
    ten_crops,
    three_crops,
    three_crops_of_long_side,
    truncated_center_crop,
)
from tsm_jax.errors import UnreadableClipError, UserError
from tsm_jax.models.network import normalize
from tsm_jax.training.mesh import make_mesh, put_batch
from tsm_jax.training.steps import make_eval_step

NUM_VIEWS = {
    "test": 1,
    "paddle_predict": 1,
    "paddle_dense": 30,
    "mit_twice": 2,
    "mit_dense": 10,
    "mit_three_crop": 3,
    "mit_twice_three_crop": 6,
    "mit_dense_three_crop": 30,
    "mit_ten_crop": 10,
    "mmaction2_center_crop": 1,
    "mmaction2_ten_crop": 10,
    "mmaction2_dense_ten_crop": 100,
    "mmaction2_dense_three_crop": 30,
    "mmaction2_three_crop": 3,
    "mmaction2_twice_three_crop": 6,
}


def test_the_recipe_knows_every_protocol():
    config = default()
    for name in ("", *PROTOCOLS):
        config.data.protocol = name
        validate(config)
    config.data.protocol = "other"
    with pytest.raises(UserError, match="config.data.protocol is 'other': .*'mit_twice'"):
        validate(config)
    assert set(NUM_VIEWS) == set(PROTOCOLS)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_crop_fits_into_the_short_side(name):
    for short_side, crop_size in ((32, 36), (32, 0), (0, 0)):
        with pytest.raises(UserError, match=f"cannot cut {crop_size} px out of frames"):
            eval_protocol(name, short_side=short_side, crop_size=crop_size)


@pytest.mark.parametrize("num_frames", [300, 131, 100])
def test_dense_frames_are_ten_windows_of_64(num_frames):
    frames = dense_frames(num_frames, 8).reshape(10, 8)
    assert (np.diff(frames, axis=1) == 8).all()
    assert frames[0, 0] == 0 and frames[-1, 0] == num_frames - 64
    starts = np.linspace(0, num_frames - 64, 10, dtype=int)
    np.testing.assert_array_equal(frames[:, 0], starts)


def test_dense_frames_of_a_short_video_start_over():
    frames = dense_frames(20, 8).reshape(10, 8)
    np.testing.assert_array_equal(frames, [[0, 8, 16, 4, 12, 0, 8, 16]] * 10)


# File numbers, from 1, by MIT's and mmaction2's formulas.
WORKED_EXAMPLES = {
    (300, 8): [
        *(19, 57, 94, 132, 169, 207, 244, 282),
        *(1, 38, 76, 113, 151, 188, 226, 263),
    ],
    (300, 16): [
        *(10, 29, 47, 66, 85, 104, 122, 141, 160, 179, 197, 216, 235, 254, 272, 291),
        *(1, 19, 38, 57, 76, 94, 113, 132, 151, 169, 188, 207, 226, 244, 263, 282),
    ],
    (250, 8): [16, 47, 79, 110, 141, 172, 204, 235],
}


@pytest.mark.parametrize(("size", "expected"), WORKED_EXAMPLES.items(), ids=str)
def test_twice_frames_are_the_middles_and_the_beginnings(size, expected):
    found = (twice_frames(*size) + 1).tolist()
    assert found[: len(expected)] == expected
    for name in ("mit_twice_three_crop", "mmaction2_twice_three_crop"):
        protocol = eval_protocol(name, short_side=40, crop_size=32)
        assert (protocol.choose_frames(*size) + 1).tolist() == found


def position_frames(height, width, count=2):
    """Pixels encode their row, column and frame."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    frames[..., 0] = np.arange(height)[:, None]
    frames[..., 1] = np.arange(width)
    frames[..., 2] = np.arange(count)[:, None, None]
    return frames


@pytest.mark.parametrize(
    ("crops", "size", "corners"),
    [
        # PIL.crop at (0, 2h), (4w, 2h), (2w, 2h) with w, h = free space // 4
        (truncated_center_crop, 40, [(5, 9)]),
        (truncated_center_crop, 49, [(0, 5)]),
        (three_crops, 40, [(4, 0), (4, 16), (4, 8)]),
        (three_crops, 50, [(0, 0), (0, 8), (0, 4)]),
        # 0, 2s, s with s = free space // 2
        (three_crops_of_long_side, 50, [(0, 0), (0, 8), (0, 4)]),
        (three_crops_of_long_side, 49, [(0, 0), (0, 10), (0, 5)]),
    ],
)
def test_three_crops_are_left_right_and_centre(crops, size, corners):
    views = crops(position_frames(50, 59), size)
    found = [tuple(int(x) for x in view[0, 0, 0, :2]) for view in views]
    assert found == corners
    assert all(view.shape == (2, size, size, 3) for view in views)


def test_ten_crops_are_corners_and_centre_each_mirrored():
    views = ten_crops(position_frames(50, 59), 40)
    corners = [(0, 0), (0, 16), (8, 0), (8, 16), (4, 8)]
    assert [tuple(int(x) for x in view[0, 0, 0, :2]) for view in views[::2]] == corners
    for plain, mirrored in zip(views[::2], views[1::2], strict=True):
        np.testing.assert_array_equal(plain[:, :, ::-1], mirrored)


def test_crops_of_portrait_frames_are_above_each_other():
    views = three_crops_of_long_side(position_frames(59, 50), 50)
    assert [int(view[0, 0, 0, 0]) for view in views] == [0, 8, 4]


def test_short_side_by_opencv_rounds():
    assert resize_short_side_cv2(position_frames(240, 321), 256)[0].shape == (256, 342, 3)
    frames = list(position_frames(50, 60))
    assert resize_short_side_cv2(frames, 50)[0] is frames[0]


class Numbered(SyntheticSource):
    """Frame i has grey level i."""

    def read(self, index, choose):
        shape = (self.height, self.width, 3)
        return [np.full(shape, i, np.uint8) for i in choose(200).tolist()]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_views_keep_clips_and_time_in_order(name):
    protocol = eval_protocol(name, short_side=40, crop_size=32)
    clips = EvalClips(Numbered(3, 2, height=44, width=60), num_segments=4, protocol=protocol)
    video = clips.read(1)["video"]
    size = 40 if "three_crop" in name else 32
    assert video.shape == (NUM_VIEWS[name], 4, size, size, 3)
    assert video.shape == clips.padding()["video"].shape
    frames = protocol.choose_frames(200, 4).reshape(protocol.num_clips, 4)
    expected = np.repeat(frames, protocol.num_crops, axis=0)  # [V, T]
    np.testing.assert_array_equal(video[:, :, 0, 0, 0], expected)


def test_batches_have_the_views():
    protocol = eval_protocol("mit_twice_three_crop", short_side=40, crop_size=32)
    clips = EvalClips(SyntheticSource(3, 2, height=44, width=60), 4, protocol)
    batches = list(eval_batches(clips, batch_size=2, reading=Reading(threads=2)))
    assert [batch["video"].shape for batch in batches] == [(2, 6, 4, 40, 40, 3)] * 2
    assert batches[1]["mask"].tolist() == [True, False]


class BrightnessNetwork:
    """Logits are multiples of a clip's brightness: a different answer for every view."""

    def apply(self, params, batch_stats, video):
        return video.mean((1, 2, 3, 4))[:, None] * params, batch_stats


@pytest.mark.parametrize("average_probabilities", [False, True])
def test_scores_are_averaged_over_views(average_probabilities):
    step = make_eval_step(
        BrightnessNetwork(),  # type: ignore[arg-type]
        mesh=(mesh := make_mesh(jax.devices()[:1])),
        average_probabilities=average_probabilities,
    )
    brightness = np.array([[10, 60, 250], [200, 0, 90]], np.uint8)  # [B, V]
    video = np.broadcast_to(brightness[..., None, None, None, None], (2, 3, 1, 4, 4, 3)).copy()
    weights = np.array([1.0, -2.0, 3.0], np.float32)
    label = np.array([0, 2], np.int32)
    batch = {"video": video, "label": label, "mask": np.ones(2, bool)}
    sums, clips = jax.device_get(step(weights, {}, put_batch(batch, mesh)))

    logits = np.asarray(normalize(video.reshape(6, 1, 4, 4, 3))).mean((1, 2, 3, 4))
    logits = (logits[:, None] * weights).reshape(2, 3, 3)  # [B, V, K]
    of_views, of_mean = softmax(logits), softmax(logits.mean(1))
    means = of_views.mean(1) if average_probabilities else of_mean
    expected = -np.log(means[[0, 1], label]).sum()
    assert sums["loss"] == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(softmax(clips["logits"]), means, rtol=1e-4, atol=1e-7)


def softmax(logits):
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


@pytest.mark.parametrize("name", ["paddle_dense", "mit_dense", "mmaction2_dense_ten_crop"])
def test_dense_frames_never_repeat(name):
    """A window has 64 frames; for 65 segments, a stride of 0 would repeat one frame."""
    protocol = eval_protocol(name, short_side=32, crop_size=32)
    assert (np.diff(protocol.choose_frames(300, 64).reshape(10, 64)) == 1).all()
    with pytest.raises(UserError, match="takes 64 frames, so at most 64 segments, not 65"):
        protocol.choose_frames(300, 65)


@pytest.mark.parametrize("shape", [(2, 4000, 3), (4000, 2, 3)])
def test_narrow_frames_do_not_fill_the_memory(shape):
    protocol = eval_protocol("test", short_side=256, crop_size=224)
    clips = EvalClips(SyntheticSource(1, 1, *shape[:2]), 8, protocol)
    with pytest.raises(UnreadableClipError, match="synthetic clip 0: frames of 4000x2 are too"):
        clips.read(0)
    wide = np.zeros((2, 1000, 3), np.uint8)
    assert protocol.views([wide]).shape == (1, 1, 224, 224, 3)
