from __future__ import annotations

import csv
import json
import subprocess
import sys
import wave
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tsm_jax.data import decode
from tsm_jax.data.decode import decode_frames
from tsm_jax.data.sampling import middle_frame_of_each_segment
from tsm_jax.errors import UnreadableClipError

needs_decord = pytest.mark.skipif(decode.decord is None, reason="no wheel of decord here")


@pytest.fixture(params=[pytest.param("decord", marks=needs_decord), "pyav"])
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The only decoder that `decode_frames` gets to use."""
    if request.param == "pyav":
        monkeypatch.setattr(decode, "decord", None)
    else:
        monkeypatch.setattr(decode, "_decode_with_pyav", None)
    return request.param


def _choose(*indices: int) -> Callable[[int], np.ndarray]:
    return lambda num_frames: np.array(indices)


def _middle(num_frames: int) -> np.ndarray:
    return middle_frame_of_each_segment(num_frames, 8)


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("indices", [(0, 7, 21, 49), (49, 3, 3, 0), (25,)])
def test_chosen_frames(numbered_video: Path, numbered_frames: np.ndarray, indices: tuple[int, ...]):
    frames = decode_frames(numbered_video, _choose(*indices))
    assert len(frames) == len(indices)
    for frame, index in zip(frames, indices, strict=True):
        assert frame.dtype == np.uint8
        assert frame.shape == (70, 80, 3)
        expected = numbered_frames[index].astype(int)
        away_from_edge = np.r_[0:36, 44:80]  # colour has half the resolution
        assert np.abs(frame - expected)[:, away_from_edge].max() <= 4


@pytest.mark.usefixtures("decoder")
def test_choose_gets_the_number_of_frames(numbered_video: Path):
    asked = []
    decode_frames(numbered_video, lambda n: asked.append(n) or np.array([0]))
    assert set(asked) == {50}


@needs_decord
def test_decoders_agree(numbered_video: Path):
    with_decord = decode._decode_with_decord(str(numbered_video), _middle)
    with_pyav = decode._decode_with_pyav(str(numbered_video), _middle)
    np.testing.assert_array_equal(with_decord, with_pyav)


def test_pyav_reads_what_decord_cannot_copy(
    tmp_path: Path, make_video, numbered_frames: np.ndarray
):
    # decord2 3.4 allocates other lines than it copies where a width is 16, 24, 32, 48, 96 or 144.
    path = make_video(tmp_path / "narrow.mp4", numbered_frames[:, :, 20:68])
    frames = decode_frames(path, _choose(10, 40))
    assert [frame.shape for frame in frames] == [(70, 48, 3)] * 2


def test_pyav_reads_what_decord_cannot_count(
    tmp_path: Path, make_video, numbered_frames: np.ndarray
):
    # A bare stream of pictures says nothing about its length.
    path = make_video(tmp_path / "bare.m2v", numbered_frames, codec="mpeg2video", b="4000000")
    assert decode._decode_with_decord(str(path), _middle) is None
    grey_levels = [frame[:, :20].mean() for frame in decode_frames(path, _choose(10, 40))]
    np.testing.assert_allclose(grey_levels, [50, 200], atol=3)


def test_container_that_claims_too_many_frames(
    numbered_video: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(decode, "decord", None)
    monkeypatch.setattr(decode, "_claimed_length", lambda path: 80)
    asked = []
    frames = decode_frames(numbered_video, lambda n: asked.append(n) or np.array([n - 1]))
    assert asked == [80, 50]
    assert frames[0][:, :20].mean() == pytest.approx(245, abs=3)


def test_pyav_stops_at_the_last_wanted_frame(numbered_video: Path, monkeypatch: pytest.MonkeyPatch):
    walked = []
    walk = decode._walk
    monkeypatch.setattr(
        decode, "_walk", lambda *args: (walked.append(1) or frame for frame in walk(*args))
    )
    decode._decode_with_pyav(str(numbered_video), _choose(2, 5))
    assert len(walked) == 6


@pytest.mark.usefixtures("decoder")
def test_rotation_is_applied(numbered_video: Path, tmp_path: Path):
    data = bytearray(numbered_video.read_bytes())
    matrix = data.index(b"tkhd") + 44  # ISO 14496-12, track header of version 0
    quarter_turn = [0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30]
    data[matrix : matrix + 36] = np.array(quarter_turn, ">i4").tobytes()
    path = tmp_path / "upright.mp4"
    path.write_bytes(data)
    (frame,) = decode_frames(path, _choose(40))
    assert frame.shape == (80, 70, 3)
    np.testing.assert_allclose(frame[:36].mean((0, 1)), 200, atol=4)  # what was left is on top
    np.testing.assert_allclose(frame[44:].mean((0, 1)), [200, 0, 0], atol=4)


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("indices", [[50], [-1], [], [[0]]])
def test_wrong_choice_is_not_blamed_on_the_file(numbered_video: Path, indices: list):
    with pytest.raises(ValueError, match="choose"):
        decode_frames(numbered_video, lambda n: np.array(indices))


def test_name_with_a_colon(numbered_video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("file:a b.mp4").symlink_to(numbered_video)
    assert len(decode_frames("file:a b.mp4", _middle)) == 8


def _garbage(path: Path, video: bytes):
    path.write_bytes(np.random.default_rng(0).bytes(5000))


def _sound(path: Path, video: bytes):
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(8000))


def _half(path: Path, video: bytes):
    path.write_bytes(video[: len(video) // 2])


def _damaged(path: Path, video: bytes):
    first = video.index(b"mdat") + 4
    middle = first + (video.index(b"moov") - first) // 2
    path.write_bytes(video[:middle] + b"\xff" * 400 + video[middle + 400 :])


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda path, video: None, "does not exist"),
        (lambda path, video: path.mkdir(), "is not a file"),
        (lambda path, video: path.touch(), "is empty"),
        (lambda path, video: path.write_text("abc\n" * 99), "Invalid data"),
        (_garbage, "Invalid data"),
        (_sound, "no video stream"),
        (_half, "Invalid data"),
        (_damaged, "beyond frame"),
    ],
)
def test_broken_file(
    numbered_video: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    spoil: Callable[[Path, bytes], object],
    says: str,
):
    path = tmp_path / "broken.mp4"
    spoil(path, numbered_video.read_bytes())
    with pytest.raises(UnreadableClipError) as caught:
        decode_frames(path, _middle)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")  # the decoders' own complaints


def test_text_file(tmp_path: Path):
    path = tmp_path / "val.list.txt"
    path.write_text("videos/a.mp4 0\n" * 100)
    with pytest.raises(UnreadableClipError, match="is a text file, not a video"):
        decode_frames(path, _middle)


@pytest.mark.usefixtures("decoder")
def test_threads_get_what_one_alone_gets(tmp_path: Path, make_video, numbered_frames: np.ndarray):
    paths = [
        make_video(tmp_path / f"{i}.mp4", np.roll(numbered_frames, i, axis=2), g=str(1 + 5 * i))
        for i in range(6)
    ]
    alone = [decode_frames(path, _middle) for path in paths]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda path: decode_frames(path, _middle), paths * 8))
    for i, frames in enumerate(together):
        np.testing.assert_array_equal(frames, alone[i % len(paths)])


# Runs in a process of its own: a decoder might hang it, kill it or write where it should not.
_READ_ALL = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from tsm_jax.data.decode import decode_frames
from tsm_jax.data.sampling import middle_frame_of_each_segment
from tsm_jax.errors import UnreadableClipError

def read(path):
    try:
        frames = decode_frames(path, lambda n: middle_frame_of_each_segment(n, 8))
    except UnreadableClipError as error:
        return str(error)
    return [[*frame.shape, str(frame.dtype)] for frame in frames]

with ThreadPoolExecutor(2) as pool:
    json.dump(list(pool.map(read, json.load(sys.stdin))), sys.stdout)
"""


def test_odd_videos(real_videos: Path):
    folder = real_videos / "odd_videos"
    with open(folder / "manifest.csv") as file:
        paths = [str(folder / row["path"]) for row in csv.DictReader(file)]
    finished = subprocess.run(
        [sys.executable, "-c", _READ_ALL],
        input=json.dumps(paths),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    results = json.loads(finished.stdout)
    readable = [result for result in results if isinstance(result, list)]
    assert len(results) == 148
    assert len(readable) >= 90
    for shapes in readable:
        height, width, channels, dtype = shapes[0]
        assert (channels, dtype) == (3, "uint8")
        assert shapes == [[height, width, 3, "uint8"]] * 8
    for path, result in zip(paths, results, strict=True):
        assert isinstance(result, list) or (path in result and "\n" not in result)


@needs_decord
@pytest.mark.parametrize(
    "name", ["video_0.mov", "video_90.mov", "video_180.mov", "video_270.mov", "unordered.mov"]
)
def test_decoders_agree_on_real_videos(real_videos: Path, name: str):
    path = str(real_videos / "odd_videos/decord/tests/test_data" / name)
    with_decord = decode._decode_with_decord(path, _middle)
    np.testing.assert_array_equal(with_decord, decode._decode_with_pyav(path, _middle))


@pytest.mark.parametrize("has_decord", [pytest.param(True, marks=needs_decord), False])
def test_every_frame_is_what_decode_frames_numbers(
    numbered_video: Path, monkeypatch: pytest.MonkeyPatch, has_decord: bool
):
    if not has_decord:
        monkeypatch.setattr(decode, "decord", None)
    frames = decode_frames(numbered_video, np.arange)
    assert len(frames) == 50
    np.testing.assert_array_equal(list(decode.every_frame(numbered_video)), frames)


@needs_decord
def test_pyav_goes_on_where_decord_stops(numbered_video: Path, monkeypatch: pytest.MonkeyPatch):
    expected = decode_frames(numbered_video, np.arange)

    class Stops:
        def __init__(self, path, num_threads):
            self.reader = reader(path, num_threads=num_threads)

        def __len__(self):
            return len(self.reader)

        def get_batch(self, indices):
            if indices[0] >= 32:
                raise RuntimeError("broken")
            return self.reader.get_batch(indices)

    assert decode.decord is not None
    reader = decode.decord.VideoReader
    monkeypatch.setattr(decode.decord, "VideoReader", Stops)
    np.testing.assert_array_equal(list(decode.every_frame(numbered_video)), expected)
