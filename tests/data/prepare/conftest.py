"""Small videos in folders of classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def videos(tmp_path_factory, make_video) -> Path:
    """`a/` and `b b/` with three videos each, 20 to 25 frames of 64x48; one in `a/` is broken."""
    root = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(0)
    for name in ("a", "b b"):
        (root / name).mkdir()
        longer = 3 * (name == "a")
        for i in range(3):
            shape = (20 + longer + i, 6, 8, 1)
            small = rng.integers(0, 256, shape, dtype=np.uint8)
            make_video(root / name / f"clip{i}.mp4", small.repeat(8, 1).repeat(8, 2).repeat(3, 3))
    (root / "a" / "clip9.mp4").write_bytes(b"no video")
    return root


@pytest.fixture
def video_list(videos, tmp_path) -> Path:
    """A list of the videos, relative to their folder."""
    path = tmp_path / "train.list"
    names = sorted(str(path.relative_to(videos)) for path in videos.rglob("*.mp4"))
    path.write_text("".join(f"{name} {int(name[0] == 'b')}\n" for name in names))
    return path
