"""Generated clips, and the folder of real ones if there are any."""

from __future__ import annotations

import os
from pathlib import Path

import av
import numpy as np
import pytest

_REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def real_videos() -> Path:
    """The folder TSM_TEST_DATA (by default ../shared/data), which cannot be in the repository."""
    folder = Path(os.environ.get("TSM_TEST_DATA", _REPOSITORY / "../shared/data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no real videos in {folder}; TSM_TEST_DATA names their folder")
    return folder


@pytest.fixture(scope="session")
def make_video():
    """A function that encodes frames to a file and returns its path."""
    return _make_video


def _make_video(path: Path, frames: np.ndarray, codec: str = "libx264", **options: str) -> Path:
    """Encodes uint8[N, H, W, 3] with even H and W."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30, options={"qp": "10", **options})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="session")
def numbered_frames() -> np.ndarray:
    """uint8[50, 70, 80, 3]: frame i has grey level 5 * i on its left half, and a red right half."""
    frames = np.zeros((50, 70, 80, 3), np.uint8)
    frames[:, :, :40] = (5 * np.arange(50, dtype=np.uint8))[:, None, None, None]
    frames[:, :, 40:, 0] = 200
    return frames


@pytest.fixture(scope="session")
def numbered_video(tmp_path_factory: pytest.TempPathFactory, numbered_frames: np.ndarray) -> Path:
    """`numbered_frames` as an mp4."""
    return _make_video(tmp_path_factory.mktemp("video") / "numbered.mp4", numbered_frames)
