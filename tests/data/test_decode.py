from __future__ import annotations

import csv
import json
import os
import struct
import subprocess
import sys
import wave
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.stream import VideoStream

from tsm_jax.data import decode
from tsm_jax.data.decode import decode_frames
from tsm_jax.data.packet_index import PacketIndex
from tsm_jax.data.sampling import middle_frame_of_each_segment
from tsm_jax.errors import UnreadableClipError


def _choose(*indices: int) -> Callable[[int], np.ndarray]:
    return lambda num_frames: np.array(indices)


def _middle(num_frames: int) -> np.ndarray:
    return middle_frame_of_each_segment(num_frames, 8)


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


def test_choose_gets_the_number_of_frames(numbered_video: Path):
    asked = []
    decode_frames(numbered_video, lambda n: asked.append(n) or np.array([0]))
    assert set(asked) == {50}


def test_rotation_is_applied(numbered_video: Path, tmp_path: Path):
    data = bytearray(numbered_video.read_bytes())
    matrix = data.index(b"tkhd") + 44  # ISO 14496-12, track header of version 0
    quarter_turn = [0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30]
    data[matrix : matrix + 36] = np.array(quarter_turn, ">i4").tobytes()
    path = tmp_path / "upright.mp4"
    path.write_bytes(data)
    (frame,) = decode_frames(path, _choose(40))
    assert frame.shape == (80, 70, 3)
    np.testing.assert_allclose(frame[:36].mean((0, 1)), 200, atol=4)  # the former left is on top
    np.testing.assert_allclose(frame[44:].mean((0, 1)), [200, 0, 0], atol=4)


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
        (lambda path, video: None, "No such file"),
        (lambda path, video: path.mkdir(), "is a folder"),
        (lambda path, video: path.touch(), "is empty"),
        (lambda path, video: path.write_text("abc\n" * 99), "Invalid data"),
        (_garbage, "Invalid data"),
        (_sound, "no video stream"),
        (_half, "Invalid data"),
        (_damaged, " frames: "),
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
    assert capfd.readouterr() == ("", "")  # no output of the decoders themselves


def test_text_file(tmp_path: Path):
    path = tmp_path / "val.list.txt"
    path.write_text("videos/a.mp4 0\n" * 100)
    with pytest.raises(UnreadableClipError, match="is text or a list of other files"):
        decode_frames(path, _middle)


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


# Runs in a separate process: a decoder might hang or kill it, or write where it should not.
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


def test_every_frame_is_what_decode_frames_numbers(numbered_video: Path):
    frames = decode_frames(numbered_video, np.arange)
    assert len(frames) == 50
    np.testing.assert_array_equal(list(decode.every_frame(numbered_video)), frames)


# Frames whose pixels encode their number, in streams that are hard to seek in.


_WIDTH, _HEIGHT, _COUNT = 128, 64, 60
_X264 = {"g": "12", "bf": "2"}
_HEVC = {"g": "12", "x265-params": "log-level=0"}
_VARIABLE = np.cumsum(np.where(np.arange(_COUNT) % 7, 40, 200))


def _numbered(number: int, scale: int = 1) -> np.ndarray:
    frame = np.full((_HEIGHT * scale, _WIDTH * scale, 3), 128, np.uint8)
    for bit, square in enumerate(_squares(frame)):
        square[:] = 255 * (number >> bit & 1)
    return frame


def _squares(frame: np.ndarray) -> list[np.ndarray]:
    height, width = frame.shape[0] // 2, frame.shape[1] // 4
    return [
        frame[height * y : height * (y + 1), width * x : width * (x + 1)]
        for y in range(2)
        for x in range(4)
    ]


def _number(frame: np.ndarray) -> int:
    middles = [square[8:-8, 8:-8].mean() for square in _squares(frame)]
    return sum(int(middle > 128) << bit for bit, middle in enumerate(middles))


def _write(
    path: Path,
    codec: str,
    *,
    scale: int = 1,
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
    times: np.ndarray | None = None,
    lose: tuple[int, ...] = (),
):
    """Writes frames 0 to 59; `times` are in milliseconds, `lose` are numbers of omitted packets."""
    with av.open(str(path), "w", options=container or {}) as file:
        stream = file.add_stream(codec, rate=25, options=options or {})
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = _WIDTH * scale, _HEIGHT * scale, "yuv420p"
        stream.bit_rate = 2_000_000
        stream.codec_context.time_base = Fraction(1, 25 if times is None else 1000)
        number = 0
        for i in range(_COUNT + 1):
            frame = None
            if i < _COUNT:
                frame = av.VideoFrame.from_ndarray(_numbered(i, scale), format="rgb24")
                frame.pts = i if times is None else int(times[i])
                frame.time_base = stream.codec_context.time_base
            for packet in stream.encode(frame):
                if number not in lose:
                    file.mux(packet)
                number += 1


def _edit(path: Path, *segments: tuple[int, int]):
    """Replaces an mp4's edit list with (milliseconds, first time), ISO/IEC 14496-12, 8.6.6."""
    data = bytearray(path.read_bytes())
    place = data.index(b"elst") - 4
    old = int.from_bytes(data[place : place + 4], "big")
    entries = b"".join(struct.pack(">IiI", *segment, 1 << 16) for segment in segments)
    box = b"elst" + struct.pack(">II", 0, len(segments)) + entries
    data[place : place + old] = struct.pack(">I", len(box) + 4) + box
    for parent in (b"moov", b"trak", b"edts"):
        at = data.index(parent) - 4
        size = int.from_bytes(data[at : at + 4], "big") + len(box) + 4 - old
        data[at : at + 4] = struct.pack(">I", size)
    path.write_bytes(data)


def _shorten(path: Path, first: float, last: float, unit: int = 1):
    data = path.read_bytes()
    size = len(data) // unit
    path.write_bytes(data[int(size * first) * unit : int(size * last) * unit])


def _append(path: Path, scale: int):
    second = path.with_name("second" + path.suffix)
    _write(second, "libx264", scale=scale, options=_X264)
    path.write_bytes(path.read_bytes() + second.read_bytes())


# File name: codec, arguments of `_write`, and what is done to the file afterwards.
_STREAMS: dict[str, tuple[str, dict, Callable[[Path], None] | None]] = {
    "b_frames.mp4": ("libx264", {"options": _X264}, None),
    "several_gops.ts": ("libx264", {"options": _X264}, None),
    "no_presentation_times.avi": ("libx264", {"options": _X264}, None),
    "open_gop.ts": ("libx264", {"options": {**_X264, "x264-params": "open-gop=1"}}, None),
    "intra_refresh.mkv": (
        "libx264",
        {"options": {"g": "12", "bf": "0", "x264-params": "intra-refresh=1"}},
        None,
    ),
    "interlaced.mkv": ("libx264", {"options": {**_X264, "x264-params": "interlaced=1"}}, None),
    "variable.mkv": ("libx264", {"options": _X264, "times": _VARIABLE}, None),
    "variable.mp4": ("libx264", {"options": _X264, "times": _VARIABLE}, None),
    "starts_midway.ts": ("libx264", {"options": _X264}, lambda path: _shorten(path, 0.3, 1, 188)),
    "cut.ts": ("libx264", {"options": _X264}, lambda path: _shorten(path, 0, 0.6, 188)),
    "joined.ts": ("libx264", {"options": _X264}, lambda path: _append(path, 1)),
    "larger_midway.ts": ("libx264", {"options": _X264}, lambda path: _append(path, 2)),
    "trimmed.mp4": ("libx264", {"options": _X264}, lambda path: _edit(path, (1200, 9000))),
    "swapped.mp4": (
        "libx264",
        {"options": _X264},
        lambda path: _edit(path, (600, 18000), (1000, 3000)),
    ),
    "fragmented.mp4": (
        "libx264",
        {"options": _X264, "container": {"movflags": "frag_keyframe+empty_moov"}},
        None,
    ),
    "open_gop_hevc.mp4": ("libx265", {"options": _HEVC}, None),
    "open_gop_hevc.ts": ("libx265", {"options": _HEVC}, None),
    "starts_with_leading.mkv": ("libx265", {"options": _HEVC, "lose": tuple(range(12))}, None),
    "trimmed_hevc.mp4": ("libx265", {"options": _HEVC}, lambda path: _edit(path, (1200, 9000))),
    "overlapping_hevc.mp4": (
        "libx265",
        {"options": _HEVC},
        lambda path: _edit(path, (1200, 3000), (1200, 9000)),
    ),
    "b_frames.avi": ("mpeg4", {"options": {"g": "12", "bf": "2"}}, None),
    # With one thread, as on one core, frames would be too small to distinguish from uncoded ones.
    "p_frames.avi": ("mpeg4", {"options": {"g": "12", "threads": "2"}}, None),
    "program_stream.mpg": ("mpeg2video", {"options": {"g": "12", "bf": "2"}}, None),
    "mpeg1.mpg": ("mpeg1video", {"options": {"g": "12", "bf": "2"}}, None),
    "windows.wmv": ("wmv2", {"options": {"g": "12"}}, None),
    "hidden_frames.webm": (
        "libvpx",
        {"options": {"g": "30", "auto-alt-ref": "1", "lag-in-frames": "16"}},
        None,
    ),
    "superframes.webm": (
        "libvpx-vp9",
        {"options": {"g": "30", "auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "5"}},
        None,
    ),
    "bare.h264": ("libx264", {"options": _X264}, None),
}
# Files for which unrequested frames are skipped.
_SKIPPED = {
    *("b_frames.mp4", "several_gops.ts", "variable.mkv", "variable.mp4", "trimmed.mp4"),
    *("fragmented.mp4", "open_gop_hevc.mp4", "open_gop_hevc.ts", "cut.ts"),
    *("p_frames.avi", "hidden_frames.webm", "superframes.webm"),
}


@pytest.fixture(scope="module")
def streams(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streams")
    for name, (codec, arguments, change) in _STREAMS.items():
        _write(folder / name, codec, **arguments)
        if change:
            change(folder / name)
    return folder


def _in_sequence(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return frames


class _Counting:
    """Records the numbers of frames that a choice was called with."""

    def __init__(self, choose: Callable[[int], np.ndarray]):
        self._choose = choose
        self.counts: list[int] = []

    def __call__(self, num_frames: int) -> np.ndarray:
        self.counts.append(num_frames)
        return self._choose(num_frames)


def _choices() -> list[Callable[[int], np.ndarray]]:
    def random(seed: int) -> Callable[[int], np.ndarray]:
        return lambda n: np.random.default_rng(seed).integers(0, n, 1 + seed)

    return [
        lambda n: np.arange(n),
        lambda n: np.linspace(0, n - 1, 8).astype(int),
        lambda n: np.array([n - 1, n - 1]),
        lambda n: np.array([0]),
        lambda n: np.arange(n - 1, -1, -max(1, n // 6)),
        *(random(seed) for seed in range(8)),
    ]


@pytest.mark.parametrize("name", _STREAMS)
def test_frames_are_those_of_a_sequential_decode(streams: Path, name: str):
    expected = [_number(frame) for frame in _in_sequence(streams / name)]
    assert len(set(expected)) > 20
    for choose in _choices():
        counting = _Counting(choose)
        frames = decode_frames(streams / name, counting)
        assert counting.counts[-1] == len(expected)
        wanted = choose(len(expected)).tolist()
        assert [_number(frame) for frame in frames] == [expected[i] for i in wanted]
        assert len({frame.shape for frame in frames}) == 1
    assert [_number(frame) for frame in decode.every_frame(streams / name)] == expected


@pytest.mark.parametrize("name", sorted(_SKIPPED | {"open_gop.ts"}))
def test_pixels_are_those_of_a_sequential_decode(streams: Path, name: str):
    expected = _in_sequence(streams / name)
    for i in (1, 13, 29):
        (frame,) = decode_frames(streams / name, _choose(i))
        np.testing.assert_array_equal(frame, expected[i])


@pytest.mark.parametrize("name", _STREAMS)
def test_what_is_skipped(streams: Path, name: str):
    with av.open(str(streams / name)) as container:
        index = PacketIndex(container.streams.video[0])
        packets = [packet for packet in container.demux(video=0) if packet.size]
        for packet in packets:
            index.add(packet)
    assert (index.frames_are_known and len(index.starts) > 1) == (name in _SKIPPED)
    if name in _SKIPPED:
        assert index.start_before(index.num_frames - 1).packet > len(packets) // 3


def test_packets_of_large_files_are_read_again(streams: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(decode, "_KEPT_PACKETS", 0)
    monkeypatch.setattr(decode, "_KEPT_FRAMES", 0)
    for name in ("b_frames.mp4", "b_frames.avi", "starts_midway.ts"):
        expected = [_number(frame) for frame in _in_sequence(streams / name)]
        frames = decode_frames(streams / name, lambda n: np.array([n - 1, 3, 20]))
        assert [_number(frame) for frame in frames] == [expected[i] for i in (-1, 3, 20)]


def test_a_wrong_index_is_noticed(streams: Path, monkeypatch: pytest.MonkeyPatch):
    """Frames whose times differ from those of the index are rejected."""
    monkeypatch.setattr(PacketIndex, "times", lambda index: [0] * index.num_frames)
    frames = decode_frames(streams / "b_frames.mp4", _choose(7, 40))
    assert [_number(frame) for frame in frames] == [7, 40]


def test_last_packet_that_is_broken(tmp_path: Path):
    path = tmp_path / "cut.avi"
    _write(path, "libx264", options=_X264)
    _shorten(path, 0, 0.9)
    counting = _Counting(np.arange)
    frames = decode_frames(path, counting)
    assert 10 < counting.counts[-1] < _COUNT
    assert [_number(frame) for frame in frames] == list(range(counting.counts[-1]))


@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile '{}'\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    ],
)
@pytest.mark.parametrize("name", ["list.mp4", "list.m3u8", "list.sdp"])
def test_files_that_name_other_files(numbered_video: Path, tmp_path: Path, name: str, text: str):
    path = tmp_path / name
    path.write_text(text.format(numbered_video))
    with pytest.raises(UnreadableClipError, match=r"not a video|cannot decode"):
        decode_frames(path, _middle)
    with pytest.raises(UnreadableClipError), decode.open_video(path):
        pass


def test_pipe_is_not_opened(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(UnreadableClipError, match="not a regular file"):
        decode_frames(tmp_path / "pipe.mp4", _middle)


def test_name_that_is_not_utf8(numbered_video: Path, tmp_path: Path):
    path = os.path.join(tmp_path, os.fsdecode(b"\xff\xfe.mp4"))
    os.symlink(numbered_video, path)
    assert len(decode_frames(path, _middle)) == 8
