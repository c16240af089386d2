from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tsm_jax.data import frames as frames_module
from tsm_jax.data.decode import decode_frames
from tsm_jax.data.frames import decode_picture, load_frames
from tsm_jax.data.sampling import middle_frame_of_each_segment
from tsm_jax.errors import UnreadableClipError


def _middle(num_frames: int) -> np.ndarray:
    return middle_frame_of_each_segment(num_frames, 8)


def _picture() -> np.ndarray:
    small = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    return cv2.resize(small, (64, 48))


def _encoded(image: Image.Image, file_format: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path, numbered_frames: np.ndarray) -> Path:
    """`numbered_frames` as 50 JPEG files in a folder named like a video."""
    path = tmp_path / "clip.mp4"
    path.mkdir()
    for number, frame in enumerate(numbered_frames, start=1):
        data = _encoded(Image.fromarray(frame), quality=95, subsampling=0)
        (path / f"img_{number:05}.jpg").write_bytes(data)
    return path


def test_chosen_frames(folder: Path):
    indices = np.array([49, 0, 7, 7])
    frames = load_frames(folder, 50, lambda n: indices)
    assert all((frame.shape, frame.dtype) == ((70, 80, 3), np.uint8) for frame in frames)
    grey_levels = [frame[:, :20].mean() for frame in frames]
    np.testing.assert_allclose(grey_levels, 5 * indices, atol=2)
    np.testing.assert_allclose(frames[0][:, 44:].mean((0, 1)), [200, 0, 0], atol=3)  # RGB


def test_folder_and_video_give_the_same_clip(folder: Path, numbered_video: Path):
    from_folder = np.stack(load_frames(folder, 50, _middle)).astype(int)
    from_video = np.stack(decode_frames(numbered_video, _middle))
    # Both lose a little to compression; the video also loses colour at the edge.
    assert np.abs(from_folder - from_video)[:, :, :36].max() <= 4


def test_each_file_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch):
    names = []
    read = frames_module.decode_picture
    monkeypatch.setattr(
        frames_module, "decode_picture", lambda data, name: names.append(name) or read(data, name)
    )
    frames = load_frames(folder, 3, _middle)
    assert [Path(name).name for name in names] == [
        "img_00001.jpg",
        "img_00002.jpg",
        "img_00003.jpg",
    ]
    assert frames[0] is frames[1]


def test_other_template(folder: Path):
    (folder / "000001.png").write_bytes(_encoded(Image.fromarray(_picture()), "PNG"))
    (frame,) = load_frames(folder, 1, lambda n: np.array([0]), template="{:06}.png")
    np.testing.assert_array_equal(frame, _picture())


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_jpeg_is_decoded_as_pillow_does(mode: str, options: dict):
    data = _encoded(Image.fromarray(_picture()).convert(mode), **options)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    difference = np.abs(decode_picture(data, "a.jpg") - expected)
    assert difference.max() <= (1 if mode == "CMYK" else 0)


def test_a_jpeg_that_claims_to_be_huge_takes_no_memory():
    data = bytearray(_encoded(Image.fromarray(_picture())))
    size = data.index(b"\xff\xc0") + 5
    data[size : size + 4] = b"\xff\xdc" * 2
    with pytest.raises(UnreadableClipError, match="cannot decode a.jpg: Image size .* exceeds"):
        decode_picture(bytes(data), "a.jpg")


def test_orientation_of_a_camera_is_ignored():
    exif = Image.Exif()
    exif[0x112] = 6
    data = _encoded(Image.fromarray(_picture()), exif=exif)
    assert decode_picture(data, "a.jpg").shape == (48, 64, 3)


@pytest.mark.parametrize(
    ("mode", "file_format"), [("RGBA", "PNG"), ("P", "GIF"), ("L", "PNG"), ("RGB", "ICO")]
)
def test_other_images_become_rgb(mode: str, file_format: str):
    image = Image.fromarray(_picture()).resize((32, 32)).convert(mode)
    picture = decode_picture(_encoded(image, file_format), "a")
    assert (picture.shape, picture.dtype) == ((32, 32, 3), np.uint8)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda data: b"", "is empty"),
        (lambda data: b"no picture" * 50, "cannot identify"),
        (lambda data: data[: len(data) // 2], "runcated"),
        (lambda data: data[:-2], "truncated"),
    ],
)
def test_broken_file(folder: Path, capfd: pytest.CaptureFixture[str], spoil, says: str):
    path = folder / "img_00004.jpg"
    path.write_bytes(spoil(path.read_bytes()))
    message = _error(folder, 50, np.array([0, 3]))
    assert says in message
    assert str(path) in message
    assert capfd.readouterr() == ("", "")


def test_frames_of_several_sizes(folder: Path):
    (folder / "img_00004.jpg").write_bytes(_encoded(Image.fromarray(_picture())))
    message = _error(folder, 50, np.array([0, 3]))
    assert f"{folder / 'img_00004.jpg'} is 64x48, but other frames of the clip are 80x70" in message


def test_list_that_says_too_many_frames(folder: Path):
    message = _error(folder, 51, np.array([50]))
    assert "img_00051.jpg" in message
    assert "the list says 51 frames, but the folder has 50; correct the list" in message


def test_gap_in_the_numbers(folder: Path):
    (folder / "img_00030.jpg").unlink()
    message = _error(folder, 50, np.array([0, 29]))
    assert "img_00030.jpg is missing: the folder has 49 of 50 frames, with gaps" in message
    assert len(load_frames(folder, 50, lambda n: np.array([28, 30]))) == 2


def test_other_names(folder: Path):
    with pytest.raises(UnreadableClipError, match=r"config\.data\.frame_template"):
        load_frames(folder, 50, _middle, template="image_{:06}.jpg")


def test_missing_folder(tmp_path: Path):
    assert "does not exist; check config.data.prefix" in _error(tmp_path / "x", 50, np.array([0]))


def test_file_in_place_of_the_folder(numbered_video: Path):
    assert "config.data.source=videos" in _error(numbered_video, 50, np.array([0]))


def _error(folder: Path, num_frames: int, indices: np.ndarray) -> str:
    with pytest.raises(UnreadableClipError) as caught:
        load_frames(folder, num_frames, lambda n: indices)
    assert "\n" not in str(caught.value)
    return str(caught.value)
