from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from tsm_jax.data import moving_shapes
from tsm_jax.data.decode import decode_frames
from tsm_jax.data.lists import read_video_list
from tsm_jax.data.moving_shapes import LABELS, draw_clip, ensure, render
from tsm_jax.data.sampling import middle_frame_of_each_segment
from tsm_jax.data.transforms import one_crop, resize_short_side
from tsm_jax.errors import UserError

_SIZES = {"train_videos": 48, "val_videos": 16, "seed": 3}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("data") / "shapes"
    render(directory, **_SIZES)
    return directory


def _files(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def _all_frames(path: str) -> np.ndarray:
    return np.stack(decode_frames(path, np.arange))


def test_lists_and_labels(rendered: Path):
    assert (rendered / "labels.txt").read_text().split() == list(LABELS)
    assert (rendered / "train.list").read_text().startswith("videos/move_left/00000.mp4 0\n")
    paths = set()
    for name, count in (("train.list", 48), ("val.list", 16)):
        entries = read_video_list(rendered / name, prefix=str(rendered), num_classes=8)
        assert Counter(entry.label for entry in entries) == dict.fromkeys(range(8), count // 8)
        assert all(Path(entry.path).parent.name == LABELS[entry.label] for entry in entries)
        paths |= {entry.path for entry in entries}
    assert len(paths) == 64
    assert paths == {str(path) for path in rendered.rglob("*.mp4")}


def test_videos_are_varied(rendered: Path):
    clips = [_all_frames(str(path)) for path in sorted(rendered.rglob("*.mp4"))]
    assert all(24 <= len(clip) <= 48 for clip in clips)
    assert all(70 <= side <= 90 for clip in clips for side in clip.shape[1:3])
    assert len({clip.shape for clip in clips}) > 50
    assert len({tuple(clip[0, 0, 0] // 8) for clip in clips}) > 30  # backgrounds


def test_a_video_depends_on_seed_split_and_number_alone(rendered: Path, tmp_path: Path):
    render(tmp_path / "small", train_videos=8, val_videos=8, seed=3)
    render(tmp_path / "other", train_videos=8, val_videos=8, seed=4)
    small, other, full = (
        _files(path) for path in (tmp_path / "small", tmp_path / "other", rendered)
    )
    for i, label in enumerate(LABELS):
        train, val = f"videos/{label}/{i:05}.mp4", f"videos/{label}/{8 + i:05}.mp4"
        assert small[train] == full[train]
        assert small[val] == full[f"videos/{label}/{48 + i:05}.mp4"]
        assert small[train] not in (small[val], other[train])


@pytest.mark.parametrize("label", range(0, 8, 2))
def test_pair_is_the_same_clip_in_opposite_order(label: int):
    for seed in range(5):
        forward = draw_clip(label, np.random.default_rng(seed))
        backward = draw_clip(label + 1, np.random.default_rng(seed))
        np.testing.assert_array_equal(forward, backward[::-1])
        assert (forward != backward).any()


@pytest.mark.parametrize("label", range(0, 8, 2))
def test_encoding_does_not_mark_the_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, label: int
):
    forward, backward = tmp_path / "forward.mp4", tmp_path / "backward.mp4"
    moving_shapes._render_file(forward, seed=0, split=0, i=label)
    draw = moving_shapes.draw_clip
    monkeypatch.setattr(moving_shapes, "draw_clip", lambda label, rng: draw(label + 1, rng))
    moving_shapes._render_file(backward, seed=0, split=0, i=label)
    np.testing.assert_array_equal(_all_frames(str(forward)), _all_frames(str(backward))[::-1])


def test_files_hold_what_was_drawn(rendered: Path):
    for i, label in enumerate(LABELS):
        drawn = draw_clip(i, np.random.default_rng((3, 0, i))).astype(int)
        decoded = _all_frames(str(rendered / f"videos/{label}/{i:05}.mp4"))
        assert np.abs(decoded - drawn).mean() < 4


def _shape(frame: np.ndarray) -> np.ndarray:
    """Returns bool[H, W]: where the bright shape is."""
    return frame.max(axis=2) > 120


def _center(frame: np.ndarray) -> np.ndarray:
    return np.argwhere(_shape(frame)).mean(axis=0)  # y, x


def _turn(before: np.ndarray, after: np.ndarray) -> float:
    """Returns the clockwise rotation, -90..90 degrees, between the longest axes of two shapes."""

    def axis(frame: np.ndarray) -> float:
        moments = cv2.moments(_shape(frame).astype(np.uint8), binaryImage=True)
        angle = np.arctan2(2 * moments["mu11"], moments["mu20"] - moments["mu02"]) / 2
        return float(np.degrees(angle))

    return (axis(after) - axis(before) + 90) % 180 - 90


_EVIDENCE: dict[str, Callable[[np.ndarray], bool]] = {
    "move_left": lambda clip: _center(clip[-1])[1] - _center(clip[0])[1] < -8,
    "move_right": lambda clip: _center(clip[-1])[1] - _center(clip[0])[1] > 8,
    "move_up": lambda clip: _center(clip[-1])[0] - _center(clip[0])[0] < -8,
    "move_down": lambda clip: _center(clip[-1])[0] - _center(clip[0])[0] > 8,
    "rotate_clockwise": lambda clip: sum(map(_turn, clip, clip[1:])) > 90,
    "rotate_counterclockwise": lambda clip: sum(map(_turn, clip, clip[1:])) < -90,
    "grow": lambda clip: _shape(clip[-1]).sum() > 1.6 * _shape(clip[0]).sum(),
    "shrink": lambda clip: _shape(clip[0]).sum() > 1.6 * _shape(clip[-1]).sum(),
}


def test_eight_small_frames_show_the_motion(rendered: Path):
    for path in rendered.rglob("*.mp4"):
        frames = decode_frames(path, lambda n: middle_frame_of_each_segment(n, 8))
        clip = one_crop(resize_short_side(frames, 48), 48)[0]
        seen = {label for label, holds in _EVIDENCE.items() if holds(clip)}
        assert path.parent.name in seen
        assert sum(label in seen for label in ("grow", "shrink")) <= 1


def test_interrupted_rendering_leaves_nothing(tmp_path: Path):
    def interrupt(done: int, total: int):
        assert total == 64
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render(tmp_path / "shapes", **_SIZES, on_progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_ensure_renders_once(tmp_path: Path):
    progress = []
    for _ in range(2):
        ensure(
            tmp_path / "new" / "shapes",
            train_videos=8,
            val_videos=2,
            seed=0,
            on_progress=lambda *counts: progress.append(counts),
        )
    assert progress == [(done, 10) for done in range(1, 11)]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["shapes"]


def test_ensure_accepts_what_another_process_rendered_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    arguments = {"train_videos": 1, "val_videos": 1, "seed": 0}

    def overtake(directory: Path, **arguments):
        monkeypatch.undo()
        render(directory, **arguments)
        render(directory, **arguments)

    monkeypatch.setattr(moving_shapes, "render", overtake)
    ensure(tmp_path / "shapes", **arguments)
    assert len(_files(tmp_path / "shapes")) == 6


@pytest.mark.parametrize("change", [{"seed": 4}, {"train_videos": 56}, {"val_videos": 24}])
def test_ensure_refuses_another_rendering(rendered: Path, change: dict[str, int]):
    with pytest.raises(UserError, match="delete it or choose another folder"):
        ensure(rendered, **{**_SIZES, **change})


def test_ensure_refuses_another_version(rendered: Path, monkeypatch: pytest.MonkeyPatch):
    ensure(rendered, **_SIZES)
    monkeypatch.setattr(moving_shapes, "VERSION", moving_shapes.VERSION + 1)
    with pytest.raises(UserError, match="delete it"):
        ensure(rendered, **_SIZES)


def test_nothing_of_the_users_is_overwritten(tmp_path: Path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="exists but is not a complete data set"):
        ensure(tmp_path, **_SIZES)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(UserError, match=r"dataset\.json"):
        ensure(tmp_path, **_SIZES)


def test_description_is_plain(rendered: Path):
    assert json.loads((rendered / "dataset.json").read_text()) == {
        "version": moving_shapes.VERSION,
        **_SIZES,
    }
