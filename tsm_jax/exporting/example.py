"""Names the action in videos with the model in this folder.

python example.py VIDEO [VIDEO ...]

It needs `av`, `numpy`, `pillow`, and `onnxruntime` for model.onnx or else `jax` and `flatbuffers`
for model.stablehlo; not the package that exported the folder.
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
NUM_SEGMENTS = CONFIG["architecture"]["num_segments"]  # T, the frames that the network sees
PROTOCOL = CONFIG["preprocessing"]["protocol"]  # which frames they are, and how they are resized
SHORT_SIDE = CONFIG["preprocessing"]["short_side"]  # of a frame when it is cropped, pixels
CROP_SIZE = CONFIG["preprocessing"]["crop_size"]  # S, pixels
LABELS = CONFIG["export"]["labels"]

if PROTOCOL not in ("test", "paddle_predict"):
    sys.exit(f"{PROTOCOL} takes several views of a video, this example one: use tsm_jax instead")


def choose_frames(num_frames: int) -> list[int]:
    """Numbers of the T frames to look at, from 0."""
    if PROTOCOL == "test":  # the middle frame of each of T equal parts
        part = num_frames / NUM_SEGMENTS
        return [int(part / 2 + part * i) for i in range(NUM_SEGMENTS)]
    part = num_frames // NUM_SEGMENTS
    if part == 0:
        return [i % num_frames for i in range(NUM_SEGMENTS)]
    return [(part - 1) // 2 + part * i for i in range(NUM_SEGMENTS)]


def every_frame(path: str) -> Iterator[av.VideoFrame]:
    """The frames of a video, in order."""
    with av.open(path) as container:
        stream = container.streams.best("video")
        if stream is None:
            raise ValueError("it has no video stream")
        for frame in container.decode(stream):
            assert isinstance(frame, av.VideoFrame)
            yield frame


def decode(path: str) -> list[np.ndarray]:
    """The chosen frames, uint8 `[H, W, 3]`: RGB, all of the first one's size, upright."""
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
    """Width and height of a frame after resizing; fractions of a pixel are cut off."""
    if min(width, height) == SHORT_SIDE:
        return width, height
    if PROTOCOL == "paddle_predict":  # 4:3, whatever the frame was
        long_side = int(SHORT_SIDE * 4 / 3)
    else:
        long_side = int(max(width, height) * SHORT_SIDE / min(width, height))
    return (SHORT_SIDE, long_side) if width <= height else (long_side, SHORT_SIDE)


def prepare(frame: np.ndarray) -> np.ndarray:
    """Resizes a frame and cuts out its centre, uint8 `[S, S, 3]`."""
    image = Image.fromarray(frame)
    size = new_size(*image.size)
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = (round((side - CROP_SIZE) / 2) for side in size)
    return np.asarray(image)[top : top + CROP_SIZE, left : left + CROP_SIZE]


def open_network() -> Callable[[np.ndarray], np.ndarray]:
    """The network: uint8 `[N, T, S, S, 3]` to logits, float32 `[N, K]`."""
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
        sys.exit("give a video: python example.py VIDEO")
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
