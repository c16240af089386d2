"""The whole way from a file to pixels, against what PaddleVideo made of its own example."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tsm_jax.data.decode import decode_frames
from tsm_jax.data.sampling import middle_frame_of_each_segment, paddle_predict_frames
from tsm_jax.data.transforms import center_crop, resize_fixed_ratio, resize_short_side


@pytest.mark.parametrize(
    ("golden", "sample", "resize"),
    [
        ("valid", middle_frame_of_each_segment, resize_short_side),  # main.py --test
        ("infer", paddle_predict_frames, resize_fixed_ratio),  # tools/predict.py
    ],
)
def test_pixels_of_paddle_video(real_videos: Path, golden: str, sample, resize):
    video = real_videos.parent / "video/paddlevideo_example.avi"
    goldens = real_videos.parent / "goldens/paddle_video.npz"
    if not video.exists() or not goldens.exists():
        pytest.skip(f"neither {video} nor {goldens} can be in the repository")
    expected = np.load(goldens)[f"example_avi.{golden}.decord.u8"].transpose(0, 2, 3, 1)
    frames = decode_frames(video, lambda num_frames: sample(num_frames, 8))
    difference = np.abs(center_crop(resize(frames, 256), 224) - expected.astype(int))
    assert difference.mean() < 0.5
    assert (difference <= 2).mean() > 0.99
