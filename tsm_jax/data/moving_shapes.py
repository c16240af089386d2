"""Renders a small data set that only motion can solve: moving, rotating and growing shapes.

Eight classes form four pairs. Both classes of a pair are drawn from the same distribution, and the
clips of the second are then reversed in time: no frame, and no unordered set of frames, reveals the
class. Every frame is encoded on its own at a fixed quality, so that the codec does not mark the
first frame either.

Train on it without random flips: mirroring turns left into right and clockwise into
counterclockwise.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path

import av
import cv2
import numpy as np

from tsm_jax.errors import UserError
from tsm_jax.files import new_folder, read_json, write_json, write_lines
from tsm_jax.host import usable_cores

LABELS = (
    *("move_left", "move_right"),
    *("move_up", "move_down"),
    *("rotate_clockwise", "rotate_counterclockwise"),
    *("grow", "shrink"),
)

# Increase it with every change of the pixels, so that older sets on disk are not reused.
VERSION = 1

_DESCRIPTION_FILE = "dataset.json"  # written last

_FRAMES = (24, 49)  # half-open ranges
# Half of the frame sides, in pixels (yuv420p needs even sides). The range is narrow, so that
# training crops of an oblong frame still show most of the motion.
_HALF_SIDE = (35, 46)
_QUANTIZER = "28"  # of H.264, 0..51: removes the noise, keeps the edges

Progress = Callable[[int, int], None]


def ensure(
    directory: str | Path,
    *,
    train_videos: int,
    val_videos: int,
    seed: int,
    on_progress: Progress | None = None,
) -> None:
    """Calls `render` unless `directory` already holds the same set.

    Several processes may call this at the same time: the first one to finish wins.
    """
    sizes = {"train_videos": train_videos, "val_videos": val_videos, "seed": seed}
    if _holds(directory, sizes):
        return
    try:
        render(directory, **sizes, on_progress=on_progress)
    except UserError:
        if not _holds(directory, sizes):
            raise


def _holds(directory: str | Path, sizes: dict[str, int]) -> bool:
    """Whether `directory` holds the complete set; raises a UserError if it holds another one."""
    path, wanted = Path(directory) / _DESCRIPTION_FILE, {"version": VERSION, **sizes}
    if not path.exists():
        return False
    found = read_json(path, "the description of the data set")
    if found != wanted:
        raise UserError(
            f"{directory} holds a different data set ({found}) from the requested one ({wanted}); "
            "delete it or choose another folder"
        )
    return True


def render(
    directory: str | Path,
    *,
    train_videos: int,
    val_videos: int,
    seed: int,
    on_progress: Progress | None = None,
) -> None:
    """Renders H.264 videos and their PaddleVideo lists.

    `directory` receives `videos/<class>/<number>.mp4`, `train.list`, `val.list` (with paths
    relative to `directory`), `labels.txt` and `dataset.json`. It appears complete or not at all.

    Args:
        train_videos, val_videos: Numbers of videos; classes take turns, so multiples of 8 balance
            them.
        seed: Video i of a split (0: train, 1: val) depends on (seed, split, i) alone.
        on_progress: Called with (videos done, total) after each video.

    Raises:
        UserError: The directory is not empty, or cannot be written.
    """
    with suppress(OSError):  # not empty, or missing
        os.rmdir(directory)
    if os.path.exists(directory):
        raise UserError(
            f"{directory} exists but is not a complete data set; delete it or choose another folder"
        )
    total = train_videos + val_videos
    lists = {"train.list": range(train_videos), "val.list": range(train_videos, total)}
    futures = []
    with new_folder(directory) as staging, ThreadPoolExecutor(usable_cores()) as pool:
        root = Path(staging)
        for label in LABELS:
            (root / "videos" / label).mkdir(parents=True)
        try:
            for split, (name, numbers) in enumerate(lists.items()):
                lines = []
                for i, number in enumerate(numbers):
                    label = i % len(LABELS)
                    video = f"videos/{LABELS[label]}/{number:05}.mp4"
                    futures.append(pool.submit(_render_file, root / video, seed, split, i))
                    lines.append(f"{video} {label}")
                write_lines(root / name, lines)
            for done, future in enumerate(as_completed(futures), start=1):
                future.result()
                if on_progress is not None:
                    on_progress(done, total)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        write_lines(root / "labels.txt", LABELS)
        sizes = {"train_videos": train_videos, "val_videos": val_videos, "seed": seed}
        write_json(root / _DESCRIPTION_FILE, {"version": VERSION, **sizes})


def draw_clip(label: int, rng: np.random.Generator) -> np.ndarray:
    """Draws the frames of a clip of class `label` before encoding: uint8[N, H, W, 3], RGB.

    With equal generators, the two classes of a pair have the same frames in opposite order.
    """
    if label % 2:
        return _draw_forward(LABELS[label - 1], rng)[::-1]
    return _draw_forward(LABELS[label], rng)


def _draw_forward(motion: str, rng: np.random.Generator) -> np.ndarray:
    """Draws uint8[N, H, W, 3] of `move_left`, `move_up`, `rotate_clockwise` or `grow`."""
    num_frames = int(rng.integers(*_FRAMES))
    width, height = (2 * rng.integers(*_HALF_SIDE, size=2)).tolist()
    frames = _background(num_frames, height, width, rng)
    color = _bright_color(rng)
    centers, angles, radii = _path(motion, num_frames, rng)
    # All motion stays in the central square, which centre crops show in full.
    side = min(width, height)
    centers = (centers - 0.5) * side + (width / 2, height / 2)
    outlines = _TURNING if motion == "rotate_clockwise" else _OUTLINES
    outline = outlines[rng.integers(len(outlines))]
    for frame, center, angle, radius in zip(frames, centers, angles, radii * side, strict=True):
        cos, sin = np.cos(angle), np.sin(angle)
        _fill(frame, center + radius * outline @ np.array([[cos, sin], [-sin, cos]]), color)
    return frames


def _path(
    motion: str, num_frames: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the shape's centres float[N, 2], angles float[N] and radii float[N] per frame.

    Centres and radii are fractions of the frame's short side. Angles are in radians, clockwise
    because the y axis points down.
    """
    time = np.linspace(-0.5, 0.5, num_frames)
    center = np.full((num_frames, 2), 0.5) + rng.uniform(-0.08, 0.08, 2)
    angle = np.full(num_frames, rng.uniform(0, 2 * np.pi))
    radius = np.full(num_frames, rng.uniform(0.15, 0.24))
    if motion == "move_left":
        center += np.outer(-time * rng.uniform(0.4, 0.65), (1, 0))
    elif motion == "move_up":
        center += np.outer(-time * rng.uniform(0.4, 0.65), (0, 1))
    elif motion == "rotate_clockwise":
        # Neighbours among eight sampled frames are at most a quarter of the clip apart, which is
        # at most 75 degrees. A bar looks the same after 180 degrees, so from 90 on, the shorter
        # way would be the wrong direction.
        angle += time * np.radians(rng.uniform(150, 300))
        radius *= 1.5
    else:
        radius *= 1.3 * np.exp(time * np.log(rng.uniform(2, 3)))
    return center, angle, radius


def _background(num_frames: int, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Returns uint8[N, H, W, 3]: one dark colour plus noise of 0..7 levels."""
    color = rng.integers(10, 70, 3, dtype=np.uint8)
    noise = rng.integers(256, size=(num_frames, height, width * 3), dtype=np.uint8) >> 5
    noise += np.tile(color, width)  # whole rows: NumPy is slow along an axis of three
    return noise.reshape(num_frames, height, width, 3)


def _bright_color(rng: np.random.Generator) -> tuple[int, int, int]:
    """Returns an RGB colour far from every background: one channel 255, another at least 140."""
    color = np.array([255, rng.integers(140, 256), rng.integers(0, 256)])
    red, green, blue = rng.permutation(color).tolist()
    return red, green, blue


def _fill(frame: np.ndarray, points: np.ndarray, color: tuple[int, int, int]) -> None:
    """Fills an outline, float[P, 2] in pixels, with smooth edges."""
    bits = 4  # fractional bits of a coordinate, so that slow motion is smooth
    fixed = np.round((points - 0.5) * (1 << bits)).astype(np.int32)
    cv2.fillPoly(frame, [fixed], color, lineType=cv2.LINE_AA, shift=bits)


def _regular(*radii: float, count: int) -> np.ndarray:
    """Returns corners float[count, 2] on a circle, or alternating between circles (a star)."""
    turn = np.arange(count) * 2 * np.pi / count
    radius = np.resize(radii, count)
    return np.stack([radius * np.cos(turn), radius * np.sin(turn)], axis=1)


_BAR = np.array([(-0.96, -0.28), (0.96, -0.28), (0.96, 0.28), (-0.96, 0.28)])
_WEDGE = np.array([(1.0, 0.0), (-0.8, 0.55), (-0.8, -0.55)])
_ARROW = np.array(
    [
        *((1.0, 0.0), (0.1, 0.75), (0.1, 0.28), (-0.95, 0.28)),
        *((-0.95, -0.28), (0.1, -0.28), (0.1, -0.75)),
    ]
)
_TURNING = (_BAR, _WEDGE, _ARROW)
_OUTLINES = (
    *_TURNING,
    _regular(1.0, count=48),  # disc
    _regular(1.0, count=4),  # square
    _regular(1.0, count=3),  # triangle
    _regular(1.0, 0.45, count=10),  # star
)


def _render_file(path: Path, seed: int, split: int, i: int) -> None:
    frames = draw_clip(i % len(LABELS), np.random.default_rng((seed, split, i)))
    _, height, width, _ = frames.shape
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        # Key frames only, at one quantizer: frames look the same whether they come first or last.
        stream.options = {"preset": "superfast", "g": "1", "bf": "0", "qp": _QUANTIZER}
        for frame in frames:
            yuv = cv2.cvtColor(frame, cv2.COLOR_RGB2YUV_I420)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(yuv, format="yuv420p")))
        container.mux(stream.encode(None))
