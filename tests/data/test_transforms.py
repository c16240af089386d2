from __future__ import annotations

from collections import Counter

import cv2
import numpy as np
import pytest
from PIL import Image

from tsm_jax.data.sampling import Crop, draw_multi_scale_crop, draw_pptsm_crop
from tsm_jax.data.transforms import (
    crop_resize_flip,
    jitter_color,
    one_crop,
    resize_fixed_ratio,
    resize_short_side,
)


def _pictures(height: int, width: int, count: int = 2) -> list[np.ndarray]:
    """Makes smooth random images with details of several pixels."""
    rng = np.random.default_rng((height, width))
    small = rng.integers(0, 256, (count, height // 4 + 2, width // 4 + 2, 3), np.uint8)
    return [cv2.resize(picture, (width, height)) for picture in small]


def _draw(height: int, width: int, crop_size: int, count: int) -> list[Crop]:
    rng = np.random.default_rng(0)
    return [draw_multi_scale_crop(height, width, crop_size, rng) for _ in range(count)]


def test_multi_scale_crop_reaches_every_shape_and_place_evenly():
    counts = Counter(_draw(256, 340, 224, 13_000))
    # Sides are int(256 * s): 256, 224, 192, 168.
    shapes = Counter((crop.width, crop.height) for crop in counts.elements())
    assert set(shapes) == {
        *((256, 256), (256, 224), (224, 256), (224, 224), (224, 192)),
        *((192, 224), (192, 192), (192, 168), (168, 192), (168, 168)),
    }
    assert max(shapes.values()) < 1.15 * min(shapes.values())
    places = Counter(
        (crop.left, crop.top) for crop in counts.elements() if crop.width == crop.height == 192
    )
    assert set(places) == {
        *((0, 0), (148, 0), (0, 64), (148, 64), (74, 32), (0, 32), (148, 32), (74, 64), (74, 0)),
        *((37, 16), (111, 16), (37, 48), (111, 48)),
    }
    # With the full height, positions that differ only in y coincide.
    assert len({crop for crop in counts if (crop.width, crop.height) == (256, 256)}) == 5


def test_multi_scale_crop_rounds_offsets_half_to_even():
    crops = {crop for crop in _draw(240, 321, 224, 3000) if (crop.width, crop.height) == (210, 240)}
    # (321 - 210) / 4 = 27.75 a step: 0, 27.75, 55.5, 83.25, 111.
    assert {crop.left for crop in crops} == {0, 28, 56, 83, 111}
    crops = {crop for crop in _draw(240, 320, 224, 3000) if (crop.width, crop.height) == (210, 240)}
    assert {crop.left for crop in crops} == {0, 28, 55, 82, 110}  # 27.5 and 82.5 round to even


def test_multi_scale_crop_snaps_to_the_crop_size():
    sides = {crop.width for crop in _draw(226, 300, 224, 300)}
    assert sides == {224, 197, 169, 149}
    # 222 is within two pixels of 224, too, but the image is no larger.
    assert {crop.width for crop in _draw(222, 300, 224, 300)} == {222, 194, 166, 146}


@pytest.mark.parametrize(
    ("height", "width", "scaled"),
    [
        *((360, 640, (256, 341)), (640, 360, (341, 256)), (240, 320, (256, 341))),
        *((720, 720, (341, 256)), (256, 454, (256, 454))),  # a short side that fits is kept
    ],
)
def test_pptsm_crop_shows_what_its_three_steps_show(height, width, scaled):
    """Each pixel encodes its position in the image, and so does each pixel of the result."""
    places = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32)
    pixel = max(width / scaled[1], height / scaled[0])  # of the scaled image
    for seed in range(20):
        crop = draw_pptsm_crop(height, width, 224, np.random.default_rng(seed))
        assert min(crop.left, crop.top) >= 0
        assert crop.left + crop.width <= width and crop.top + crop.height <= height
        rows = slice(crop.top, crop.top + crop.height)
        found = cv2.resize(places[rows, crop.left : crop.left + crop.width], (224, 224))

        rng = np.random.default_rng(seed)
        outer = draw_multi_scale_crop(*scaled, 256, rng)
        x, y = rng.integers(33, size=2)
        steps = cv2.resize(places, scaled[::-1])
        steps = steps[outer.top :, outer.left :][: outer.height, : outer.width]
        steps = cv2.resize(steps, (256, 256))[y : y + 224, x : x + 224]
        assert abs(found - steps).max() < 0.6 + 0.5 * pixel


@pytest.mark.parametrize(("height", "width"), [(97, 131), (10, 300), (300, 10), (3, 2), (1, 1)])
def test_pptsm_crop_stays_inside(height, width):
    rng = np.random.default_rng(0)
    for crop in (draw_pptsm_crop(height, width, 224, rng) for _ in range(400)):
        assert 0 <= crop.left < crop.left + crop.width <= width
        assert 0 <= crop.top < crop.top + crop.height <= height


def test_pptsm_crop_cuts_out_seven_eighths():
    rng = np.random.default_rng(0)
    crops = [draw_pptsm_crop(256, 341, 224, rng) for _ in range(2000)]
    assert {crop.width for crop in crops} == {224, 196, 168, 147}
    assert (min(c.left for c in crops), max(c.left + c.width for c in crops)) == (0, 341)


@pytest.mark.parametrize(
    ("height", "width"),
    [(256, 340), (255, 341), (340, 256), (97, 131), (223, 223), (10, 300), (3, 2), (1, 1)],
)
def test_multi_scale_crop_stays_inside(height: int, width: int):
    for crop in _draw(height, width, 224, 400):
        assert crop.left >= 0
        assert crop.top >= 0
        assert crop.width >= 1
        assert crop.height >= 1
        assert crop.left + crop.width <= width
        assert crop.top + crop.height <= height


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("crop", [Crop(30, 5, 60, 80), Crop(1, 2, 48, 48), Crop(0, 0, 20, 30)])
def test_crop_resize_flip_is_crop_then_resize_then_flip(crop: Crop, flip: bool):
    frames = _pictures(90, 120)
    originals = [frame.copy() for frame in frames]
    out = np.full((2, 48, 48, 3), 77, np.uint8)
    assert crop_resize_flip(frames, crop, 48, flip, out=out) is out
    for frame, original, result in zip(frames, originals, out, strict=True):
        part = frame[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
        expected = cv2.resize(part.copy(), (48, 48), interpolation=cv2.INTER_LINEAR)
        np.testing.assert_array_equal(result, expected[:, ::-1] if flip else expected)
        np.testing.assert_array_equal(frame, original)


def test_crop_resize_takes_an_array_or_a_list_that_repeats_a_frame():
    frames = _pictures(60, 80)
    crop = Crop(3, 4, 50, 40)
    repeated = crop_resize_flip([frames[0], frames[1], frames[0]], crop, 32, True)
    stacked = crop_resize_flip(np.stack(frames), crop, 32, True)
    np.testing.assert_array_equal(repeated[:2], stacked)
    np.testing.assert_array_equal(repeated[2], stacked[0])


def test_shrinking_a_lot_does_not_alias():
    stripes = np.zeros((480, 480, 3), np.uint8)
    stripes[:, np.arange(480) % 10 < 3] = 250  # bilinear only reads columns 4 and 5 of ten
    result = crop_resize_flip([stripes], Crop(0, 0, 480, 480), 48, False)
    assert np.abs(result.astype(int) - 75).max() <= 1


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (240, 320, (256, 341)),  # 341.33 is truncated
        (320, 240, (341, 256)),
        (100, 100, (256, 256)),
        (480, 853, (256, 454)),  # 454.93 is truncated, not rounded
        (853, 480, (454, 256)),
        (13, 500, (256, 9846)),
    ],
)
def test_resize_short_side_is_pillow_bilinear(height: int, width: int, expected: tuple[int, int]):
    frames = _pictures(height, width)
    resized = resize_short_side(frames, 256)
    for frame, result in zip(frames, resized, strict=True):
        image = Image.fromarray(frame).resize(expected[::-1], Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(result, np.asarray(image))


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(240, 320, (256, 341)), (320, 240, (341, 256)), (100, 100, (341, 256)), (90, 400, (256, 341))],
)
def test_resize_fixed_ratio(height: int, width: int, expected: tuple[int, int]):
    frames = _pictures(height, width)
    image = Image.fromarray(frames[1]).resize(expected[::-1], Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(resize_fixed_ratio(frames, 256)[1], np.asarray(image))


@pytest.mark.parametrize("resize", [resize_short_side, resize_fixed_ratio])
@pytest.mark.parametrize("shape", [(256, 400), (400, 256), (256, 256)])
def test_frames_of_the_right_short_side_are_left_alone(resize, shape: tuple[int, int]):
    frames = _pictures(*shape)
    assert all(a is b for a, b in zip(resize(frames, 256), frames, strict=True))


@pytest.mark.parametrize(
    ("width", "left"),
    [(341, 58), (455, 116), (340, 58), (224, 0), (225, 0), (227, 2)],  # halves are rounded to even
)
def test_center_crop_offsets(width: int, left: int):
    columns = np.broadcast_to(np.arange(width) % 256, (224, width)).astype(np.uint8)
    frame = np.repeat(columns[..., None], 3, axis=2)
    expected = frame[:, left : left + 224]
    np.testing.assert_array_equal(one_crop([frame], 224)[0], expected[None])
    upright = np.ascontiguousarray(frame.transpose(1, 0, 2))
    np.testing.assert_array_equal(one_crop([upright], 224)[0], expected.transpose(1, 0, 2)[None])


def test_center_crop_of_a_smaller_frame():
    with pytest.raises(ValueError, match="224x224 out of a frame of 340x200"):
        one_crop(_pictures(200, 340), 224)


def test_colours_change_alike_in_all_frames_and_as_pillow_changes_them():
    pictures = _pictures(20, 24)
    video = np.stack([*pictures, pictures[0]])
    jittered = video.copy()
    jitter_color(jittered, 0.4, np.random.default_rng(3))
    np.testing.assert_array_equal(jittered[0], jittered[2])
    assert abs(jittered.astype(int) - video).mean() > 5

    brightness, contrast, saturation = np.random.default_rng(3).uniform(0.6, 1.4, 3)
    luma = np.array([0.299, 0.587, 0.114])
    expected = brightness * video.astype(float)
    grey = (expected @ luma).mean()
    expected = grey + contrast * (expected - grey)
    own_grey = (expected @ luma)[..., None]
    expected = np.clip(own_grey + saturation * (expected - own_grey), 0, 255)
    assert abs(jittered - expected).max() < 1.01
