"""Crops, resizes and flips uint8 RGB frames, and finds the classes of flipped clips.

A clip's frames come as `Frames`: a list of T arrays uint8[H, W, 3] of the same size (a repeated
frame may be the same object), or uint8[T, H, W, 3]. Functions never modify the `Frames` they get.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeAlias

import cv2
import numpy as np
from PIL import Image

from tsm_jax.data.sampling import PLACES, Crop, fixed_ratio
from tsm_jax.errors import UserError
from tsm_jax.terminal import printable

Frames: TypeAlias = "Sequence[np.ndarray] | np.ndarray"

# Clips are read by many threads already; OpenCV's own threads would only compete with them.
cv2.setNumThreads(0)


def crop_resize_flip(
    frames: Frames, crop: Crop, size: int, flip: bool, out: np.ndarray | None = None
) -> np.ndarray:
    """Cuts `crop` out of every frame, resizes it to a square and mirrors it if `flip`.

    Interpolation is bilinear, or area averaging if a side shrinks to less than half (bilinear would
    skip pixels).

    Returns:
        uint8[T, size, size, 3]: `out` (which must be C-contiguous) if given.
    """
    if out is None:
        out = np.empty((len(frames), size, size, 3), np.uint8)
    shrinks = max(crop.width, crop.height) > 2 * size
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    for frame, target in zip(frames, out, strict=True):
        view = frame[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
        if view.shape == target.shape:
            target[...] = view
        else:
            cv2.resize(view, (size, size), dst=target, interpolation=interpolation)
        if flip:
            cv2.flip(target, 1, dst=target)
    return out


# Weights of red, green and blue in the brightness of a pixel (ITU-R BT.601), as in Pillow.
_LUMA = np.array([0.299, 0.587, 0.114])


def jitter_color(video: np.ndarray, strength: float, rng: np.random.Generator) -> None:
    """Changes brightness, contrast and saturation of uint8[T, H, W, 3] in place.

    The three factors, drawn from `[1 - strength, 1 + strength]`, are the same for all frames, so
    that a moving object looks the same from frame to frame.

    Reference: torchvision's `ColorJitter`, but always in the order brightness, contrast (about the
    clip's mean brightness), saturation, and rounded only once.
    """
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, 3)
    grey = float(video.mean((0, 1, 2)) @ _LUMA)
    mix = saturation * np.eye(3) + (1 - saturation) * _LUMA
    offset = np.full((3, 1), brightness * (1 - contrast) * grey)
    rows = video.reshape(-1, *video.shape[2:])  # [T*H, W, 3]
    cv2.transform(rows, np.hstack([brightness * contrast * mix, offset]), dst=rows)


def resize_short_side(frames: Frames, short_side: int) -> list[np.ndarray]:
    """Resizes the short side to `short_side` pixels, keeping the ratio (long side truncated).

    Frames whose short side already fits are returned as they are.

    Reference: PaddleVideo pipelines/augmentations.py `Scale(fixed_ratio=False)`; Pillow's
    bilinear filter, which averages when it shrinks.
    """
    height, width = frames[0].shape[:2]
    if width <= height:
        return _resize(frames, int(height * short_side / width), short_side)
    return _resize(frames, short_side, int(width * short_side / height))


def resize_fixed_ratio(frames: Frames, short_side: int) -> list[np.ndarray]:
    """Resizes to 4:3 whatever the original ratio, which may distort: 256 gives 341x256.

    The result is portrait (3:4) if the frames are portrait or square. Frames whose short side
    already fits are returned as they are, whatever their long side.

    Reference: PaddleVideo's `Scale` by default, and thus its `tools/predict.py`.
    """
    height, width = frames[0].shape[:2]
    return _resize(frames, *fixed_ratio(height, width, short_side))


def resize_short_side_cv2(frames: Frames, short_side: int) -> list[np.ndarray]:
    """Like `resize_short_side`, but with OpenCV's bilinear filter and the long side rounded.

    Reference: mmaction2's `Resize(scale=(-1, 256))`, which does not average when it shrinks.
    """
    height, width = frames[0].shape[:2]
    if min(height, width) == short_side:
        return list(frames)
    scale = short_side / min(height, width)
    size = (int(width * scale + 0.5), int(height * scale + 0.5))
    return [np.asarray(cv2.resize(f, size, interpolation=cv2.INTER_LINEAR)) for f in frames]


def one_crop(frames: Frames, size: int) -> list[np.ndarray]:
    """Returns the central square: one uint8[T, size, size, 3].

    Raises:
        ValueError: The frames are smaller than `size` (all crops raise this).

    Reference: PaddleVideo's and torchvision's `CenterCrop`: offsets are rounded half to even
    (mmaction2 truncates).
    """
    width, height = _free_space(frames, size)
    crop = Crop(round(width / 2), round(height / 2), size, size)
    return [crop_resize_flip(frames, crop, size, flip=False)]


def truncated_center_crop(frames: Frames, size: int) -> list[np.ndarray]:
    """Like `one_crop`, but half of an odd free space is rounded down.

    Reference: mmaction2 `CenterCrop`.
    """
    return _crops(frames, size, ((1, 1),), parts=2)


def three_crops(frames: Frames, size: int) -> list[np.ndarray]:
    """Returns crops at the left, right and centre at mid-height: three uint8[T, size, size, 3].

    Reference: `GroupFullResSample` in MIT ops/transforms.py and in PaddleVideo. Both step by whole
    quarters of the free space, and show portrait frames three times alike.
    """
    return _crops(frames, size, ((0, 2), (4, 2), (2, 2)))


def three_crops_of_long_side(frames: Frames, size: int) -> list[np.ndarray]:
    """Returns crops at both ends and the centre of the long side: uint8[T, size, size, 3] each.

    Reference: mmaction2 `ThreeCrop`, which steps by whole halves of the free space.
    """
    height, width = frames[0].shape[:2]
    ends = ((0, 1), (2, 1), (1, 1)) if width >= height else ((1, 0), (1, 2), (1, 1))
    return _crops(frames, size, ends, parts=2)


def ten_crops(frames: Frames, size: int) -> list[np.ndarray]:
    """Returns the four corners and the centre, each followed by its mirror image.

    Reference: MIT ops/transforms.py `GroupOverSample`, mmaction2 and PaddleVideo `TenCrop`.
    """
    crops = _crops(frames, size, PLACES[:5])
    return [view for crop in crops for view in (crop, crop[:, :, ::-1])]


def _crops(
    frames: Frames, size: int, places: Sequence[tuple[int, int]], parts: int = 4
) -> list[np.ndarray]:
    """Returns crops at (x, y) steps; a step is the free space // `parts`."""
    width, height = _free_space(frames, size)
    step_x, step_y = width // parts, height // parts
    return [
        crop_resize_flip(frames, Crop(x * step_x, y * step_y, size, size), size, flip=False)
        for x, y in places
    ]


def _free_space(frames: Frames, size: int) -> tuple[int, int]:
    """Returns the pixels of width and height that a crop leaves free."""
    height, width = frames[0].shape[:2]
    if min(height, width) < size:
        raise ValueError(f"cannot cut {size}x{size} out of a frame of {width}x{height}")
    return width - size, height - size


def _resize(frames: Frames, height: int, width: int) -> list[np.ndarray]:
    """Resizes with Pillow's bilinear filter; frames of that size are returned as they are."""
    if frames[0].shape[:2] == (height, width):
        return list(frames)
    size, bilinear = (width, height), Image.Resampling.BILINEAR
    return [np.asarray(Image.fromarray(frame).resize(size, bilinear)) for frame in frames]


_PAIRS = (("left", "right"), ("clockwise", "counterclockwise"), ("左", "右"), ("顺时针", "逆时针"))
_OPPOSITE = {a: b for one, other in _PAIRS for a, b in ((one, other), (other, one))}

# Whole words, including `leftwards` and `left-handed`, but not `leftover` or `upright`, and not
# words that mean no direction, as in Something-Something's `pulling it right out`.
_DIRECTION = re.compile(
    r"\b(?:left(?! (?:over|behind)\b)|right(?! (?:out|away)\b))(?=(?:wards?|hand|handed|most)?\b)"
    r"|\b(?:counter)?clockwise\b|左|右|顺时针|逆时针"
)


def mirrored_labels(names: Sequence[str]) -> tuple[int, ...]:
    """Returns the label of each class's mirrored clips, judged by names; usually its own label.

    Two classes mirror each other if their names differ only in left and right, or clockwise and
    counterclockwise (or anticlockwise), apart from case, blanks and punctuation.

    Raises:
        UserError: A class that names a direction has no such partner, or has two.
    """
    own = [_comparable(name) for name in names]
    labels = {name: label for label, name in enumerate(own) if _mirrored(name) != name}
    mirrored = list(range(len(own)))
    for label, name in enumerate(own):
        if (opposite := _mirrored(name)) == name:
            continue
        why = ""
        if opposite not in labels:
            why = f"'{names[label]}' has no opposite class '{opposite}'"
        elif labels[name] != label:
            why = f"'{names[label]}' and '{names[labels[name]]}' name the same direction"
        if why:
            raise UserError(
                f"the label of mirrored clips is unknown, because {printable(why)}: set"
                " --config.data.flip=False, or --config.data.flip_labels=keep if left and right"
                " make no difference"
            )
        mirrored[label] = labels[opposite]
    return tuple(mirrored)


def with_direction(names: Sequence[str]) -> list[str]:
    """Returns the names that do not describe a mirrored clip of their class."""
    return [name for name in names if _mirrored(_comparable(name)) != _comparable(name)]


def _comparable(name: str) -> str:
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
    words = re.sub(r"[\W_]+", " ", words).strip()
    return re.sub(r"\b(?:counter|anti) ?clockwise\b", "counterclockwise", words)


def _mirrored(words: str) -> str:
    return _DIRECTION.sub(lambda match: _OPPOSITE[match[0]], words)
