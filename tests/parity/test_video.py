"""Compares the way from a video to logits with PaddleVideo's `--test` and `predict.py`."""

from __future__ import annotations

import os
from pathlib import Path

import golden_recipe
import numpy as np
import pytest

import tsm_jax
from tsm_jax.data.decode import decode_frames
from tsm_jax.models.network import normalize
from tsm_jax.weights.pickle_writers import write_paddle

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def shared():
    """The folder of the video and PaddleVideo's frames, which cannot be part of the repository."""
    data = Path(os.environ.get("TSM_TEST_DATA", REPOSITORY / "../shared/data")).resolve()
    folder = data.parent
    if not (folder / "video" / "paddlevideo_example.avi").is_file():
        pytest.skip(f"no paddlevideo_example.avi in {folder / 'video'}")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("paddle") / "seed0.pdparams"
    write_paddle(path, golden_recipe.state_dict(400, 0))
    return str(path)


@pytest.mark.parametrize(("protocol", "golden"), [("test", "valid"), ("paddle_predict", "infer")])
def test_pictures_logits_and_top_five(shared, weights, protocol, golden):
    video = str(shared / "video" / "paddlevideo_example.avi")
    goldens = np.load(shared / "goldens" / "paddle_video.npz")
    pictures = goldens[f"example_avi.{golden}.decord.u8"].transpose(0, 2, 3, 1)
    logits = goldens[f"example_avi.{golden}.decord.logits"]

    recognizer = tsm_jax.load(weights, num_segments=8, protocol=protocol)
    rules = recognizer.protocol
    (ours,) = rules.views(decode_frames(video, lambda n: rules.choose_frames(n, 8)))
    difference = abs(ours.astype(int) - pictures)
    assert difference.mean() < 0.5
    assert (difference <= 2).mean() > 0.99

    answer = recognizer.forward(np.asarray(normalize(ours[None])))[0]
    assert abs(answer - logits).max() < 0.02 * abs(logits).max()
    best = [prediction.index for prediction in recognizer.predict(video)]
    assert best == np.argsort(-logits)[:5].tolist()


def test_the_two_protocols_differ(shared):
    goldens = np.load(shared / "goldens" / "paddle_video.npz")
    pictures = [goldens[f"example_avi.{name}.decord.u8"].astype(int) for name in ("valid", "infer")]
    assert abs(pictures[0] - pictures[1]).mean() > 5
