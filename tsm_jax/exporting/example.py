"""Recognises the action in videos with the model in this folder.

python example.py VIDEO [VIDEO ...]

Requires `av`, `numpy`, `pillow`, and either `onnxruntime` for model.onnx or `jax` and `flatbuffers`
for model.stablehlo. It does not need the package that exported the folder.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError
from PIL import Image

FOLDER = Path(__file__).parent
CONFIG = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
NUM_SEGMENTS = CONFIG["architecture"]["num_segments"]  # T, the number of frames per clip
PROTOCOL = CONFIG["preprocessing"]["protocol"]  # how frames are chosen and resized
SHORT_SIDE = CONFIG["preprocessing"]["short_side"]  # of a resized frame, in pixels
CROP_SIZE = CONFIG["preprocessing"]["crop_size"]  # S, in pixels
LABELS = CONFIG["export"]["labels"]

if PROTOCOL not in ("test", "paddle_predict"):
    sys.exit(f"{PROTOCOL} takes several views of a video, this example only one: use tsm_jax")


def choose_frames(num_frames: int) -> list[int]:
    """Returns the indices of the T frames for the network."""
    if PROTOCOL == "test":  # the middle frame of each of T equal parts
        part = num_frames / NUM_SEGMENTS
        return [int(part / 2 + part * i) for i in range(NUM_SEGMENTS)]
    part = num_frames // NUM_SEGMENTS
    if part == 0:
        return [i % num_frames for i in range(NUM_SEGMENTS)]
    return [(part - 1) // 2 + part * i for i in range(NUM_SEGMENTS)]


def every_frame(path: str) -> Iterator[av.VideoFrame]:
    """Yields the frames of a video in order."""
    with av.open(path) as container:
        stream = container.streams.best("video")
        if stream is None:
            raise ValueError("it has no video stream")
        for frame in container.decode(stream):
            assert isinstance(frame, av.VideoFrame)
            yield frame


def decode(path: str) -> list[np.ndarray]:
    """Decodes the chosen frames: RGB, uint8 `[H, W, 3]`, upright, all the size of the first one."""
    num_frames = sum(1 for _ in every_frame(path))
    if num_frames == 0:
        raise ValueError("it has no frames")
    chosen = choose_frames(num_frames)
    frames: dict[int, np.ndarray] = {}
    width = height = None
    for i, frame in enumerate(every_frame(path)):
        if i in chosen:
            width, height = width or frame.width, height or frame.height
            image = frame.to_ndarray(format="rgb24", width=width, height=height)
            frames[i] = np.rot90(image, round(frame.rotation / 90))
    return [frames[i] for i in chosen]


def new_size(width: int, height: int) -> tuple[int, int]:
    """Returns width and height of a frame after resizing, truncated to whole pixels."""
    if min(width, height) == SHORT_SIDE:
        return width, height
    if PROTOCOL == "paddle_predict":  # always 4:3
        long_side = int(SHORT_SIDE * 4 / 3)
    else:
        long_side = int(max(width, height) * SHORT_SIDE / min(width, height))
    return (SHORT_SIDE, long_side) if width <= height else (long_side, SHORT_SIDE)


def prepare(frame: np.ndarray) -> np.ndarray:
    """Resizes a frame and crops its centre: uint8 `[S, S, 3]`."""
    image = Image.fromarray(frame)
    size = new_size(*image.size)
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = (round((side - CROP_SIZE) / 2) for side in size)
    return np.asarray(image)[top : top + CROP_SIZE, left : left + CROP_SIZE]


def open_network() -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function from clips, uint8 `[N, T, S, S, 3]`, to logits, float32 `[N, K]`."""
    if (FOLDER / "model.onnx").exists():
        import onnxruntime

        session = onnxruntime.InferenceSession(str(FOLDER / "model.onnx"))
        return lambda video: np.asarray(session.run(["logits"], {"video": video})[0])
    import jax
    import jax.export

    content = bytearray((FOLDER / "model.stablehlo").read_bytes())
    call = jax.jit(jax.export.deserialize(content).call)
    return lambda video: np.asarray(call(video)[0])


def main() -> None:
    if not sys.argv[1:]:
        sys.exit("usage: python example.py VIDEO [VIDEO ...]")
    network = open_network()
    for path in sys.argv[1:]:
        try:
            clip = np.stack([prepare(frame) for frame in decode(path)])
        except (FFmpegError, OSError, ValueError) as error:
            sys.exit(f"cannot decode {path}: {getattr(error, 'strerror', None) or error}")
        logits = network(clip[None])[0]
        scores = np.exp(logits - logits.max())
        scores /= scores.sum()
        print(path)
        for place, k in enumerate(np.argsort(-scores, kind="stable")[:5], start=1):
            print(f"  {place}. {LABELS[k]} (class {k})  {scores[k]:.4f}")


if __name__ == "__main__":
    main()
