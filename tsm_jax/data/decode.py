"""Decodes frames of a video file: a few by number, all of them, or by time.

Frame i is the i-th frame that FFmpeg outputs when it decodes the file from the start, whatever the
container claims about times, lengths and key frames. All packets are read first, and packets are
skipped only if the data shows which frames every packet holds (`packet_index`). Decoding never
seeks by time. Any number of threads may decode at the same time.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.error import ArgumentError, FFmpegError
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from tsm_jax.data.packet_index import PacketIndex
from tsm_jax.errors import UnreadableClipError, UserError
from tsm_jax.files import check_regular, reason

# PyAV raises ValueError for pixel formats that it cannot convert.
_ERRORS = (FFmpegError, OSError, ValueError)
Choose = Callable[[int], np.ndarray]

# Formats that open other files or addresses, and `tty`, which renders text as a terminal's screen.
_REFUSED_FORMATS = (
    *("concat", "dash", "hls", "image2", "imf", "mlv", "rtp", "rtsp", "sap", "sdp", "tty"),
    *("vobsub", "webm_dash_manifest"),
)
_OPEN_OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": ",".join(sorted(av.formats_available.difference(_REFUSED_FORMATS))),
}

# Files up to this size in bytes keep their packets in memory; larger files are read twice.
_KEPT_PACKETS = 64 << 20
# Up to this many bytes, frames are kept unasked: the choice may change with the number of frames.
_KEPT_FRAMES = 64 << 20
_LONGEST_FRAME = 3600  # seconds; a longer one means a broken time stamp


def decode_frames(path: str | Path, choose: Choose) -> list[np.ndarray]:
    """Decodes the frames of a video that `choose` picks.

    A rotation stored in the file is applied, so frames are upright.

    Args:
        path: A video file with any codec and container that FFmpeg reads.
        choose: Maps the number of frames to zero-based indices (1-D, at least one, in any order,
            may repeat). It may be called more than once, with another number if decoding finds
            a different number of frames than the packets promised. Equal numbers must give equal
            indices, so draw from a generator that is seeded inside it.

    Returns:
        T arrays uint8[H, W, 3], RGB, all of the same size, in the order of the indices.

    Raises:
        UnreadableClipError: The file is missing, empty, broken or not a video (one line).
    """
    path = os.path.abspath(path)
    with ExitStack() as opened:

        def reopen() -> tuple[VideoStream, Iterable[Packet]]:
            stream = opened.enter_context(open_video(path))
            return stream, _packets(stream)

        stream, packets = reopen()
        index, packets = _index_packets(path, stream, packets)
        if packets is None:
            stream, packets = reopen()
        num_frames = index.num_frames
        indices = _indices(choose, num_frames)
        if index.frames_are_known:
            frames = _decode_from_starts(stream, packets, index, indices)
            if frames is not None:
                return _chosen(path, frames, indices)
            stream, packets = reopen()
        while True:
            frames, num_decoded = _decode_in_sequence(path, stream, packets, indices)
            if num_decoded not in (None, num_frames):
                num_frames = num_decoded
                indices = _indices(choose, num_frames)
            if frames.keys() >= set(indices.tolist()):
                return _chosen(path, frames, indices)
            stream, packets = reopen()


def every_frame(path: str | Path) -> Generator[np.ndarray, None, None]:
    """Decodes a video from the first frame to the last, holding few frames at a time.

    Yields:
        The frames that `decode_frames` would number 0, 1, 2, ...

    Raises:
        UnreadableClipError: As for `decode_frames`, at the first frame that cannot be decoded.
    """
    path = os.path.abspath(path)
    to_rgb, number = None, 0
    with open_video(path) as stream:
        try:
            for frame in _decode(stream, _packets(stream)):
                to_rgb = to_rgb or Rgb(frame)
                yield to_rgb(frame)
                number += 1
        except _ERRORS as error:
            raise _unreadable(path, error, after=number) from error
    if number == 0:
        raise _without_frames(path)


@contextmanager
def open_video(path: str | Path) -> Iterator[VideoStream]:
    """Opens the best video stream of a file, decoded by one thread.

    Its container is `.container`. No other file or address is opened, whatever the file refers to.

    Raises:
        UnreadableClipError: The file is missing, empty or not a video.
    """
    path = os.path.abspath(path)  # FFmpeg would take "a:b.mp4" for a protocol
    try:
        check_regular(path, "the video")
    except UserError as error:
        raise UnreadableClipError(str(error)) from error
    if os.path.getsize(path) == 0:
        raise UnreadableClipError(f"the video {path} is empty (0 bytes); fetch it again")
    try:
        container = av.open(path, container_options=_OPEN_OPTIONS)
    except ArgumentError as error:
        raise UnreadableClipError(
            f"{path} is text or a list of other files, not a video"
        ) from error
    except _ERRORS as error:
        raise _unreadable(path, error) from error
    with container:
        stream = container.streams.best("video")
        if stream is None:
            raise UnreadableClipError(f"{path} has no video stream ({container.format.name})")
        assert isinstance(stream, VideoStream)
        if stream.codec_context is None:
            raise UnreadableClipError(f"{path} has a video stream with an unknown codec")
        stream.codec_context.thread_count = 1
        yield stream


class Rgb:
    """Converts frames to uint8[H, W, 3], RGB, upright, all of the size of the first frame."""

    def __init__(self, first: VideoFrame):
        self._size = first.width, first.height  # before the rotation that the file asks for
        self._reformatter = VideoReformatter()

    def __call__(self, frame: VideoFrame) -> np.ndarray:
        image = self._reformatter.reformat(frame, *self._size, format="rgb24").to_ndarray()
        return np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90)))


def frame_rate(stream: VideoStream) -> Fraction:
    """Returns the frames per second that the container states, or 25 if it states none."""
    return min(stream.average_rate or Fraction(25), Fraction(1000))  # more: a broken header


def shown_frames(
    path: str, stream: VideoStream, rate: float, wanted: Callable[[int], bool]
) -> Iterator[tuple[int, np.ndarray | None]]:
    """Decodes what is on screen at `(i + 0.5) / rate` seconds for i = 0, 1, ...

    At a constant frame rate, this is the i-th frame.

    Yields:
        i, and the frame as uint8 `[H, W, 3]`, or None if `wanted(i)` is False.
    """
    container, to_rgb, i = stream.container, None, 0
    assert isinstance(container, InputContainer)
    try:
        for frame, end in _with_ends(container.decode(stream), path, rate):
            to_rgb = to_rgb or Rgb(frame)
            while (i + 0.5) / rate < end:
                yield i, to_rgb(frame) if wanted(i) else None
                i += 1
    except _ERRORS as error:
        raise _unreadable(path, error) from error


def _with_ends(
    frames: Iterator[VideoFrame], path: str, rate: float
) -> Iterator[tuple[VideoFrame, float]]:
    """Yields frames, each with the time of the next one in seconds from the first."""
    previous, first, time = None, 0.0, 0.0
    for number, frame in enumerate(frames):
        before, time = time, number / rate if frame.time is None else frame.time
        if previous is None:
            first = time
        elif time - before > _LONGEST_FRAME:
            raise UnreadableClipError(
                f"{path} has a gap of {time - before:.0f} s after frame {number - 1}: repair it"
            )
        else:
            yield previous, time - first
        previous = frame
    if previous is not None:
        yield previous, time - first + 1 / rate


def _packets(stream: VideoStream) -> Iterator[Packet]:
    """Yields all packets with data; a truncated file ends where FFmpeg's own programs end it."""
    container = stream.container
    assert isinstance(container, InputContainer)
    try:
        for packet in container.demux(stream):
            if packet.size:
                yield packet
    except FFmpegError as error:
        if isinstance(error, OSError):  # An error of the disk or network, not in the file.
            raise


def _index_packets(
    path: str, stream: VideoStream, packets: Iterable[Packet]
) -> tuple[PacketIndex, list[Packet] | None]:
    """Returns the index, and the packets if the file is small enough to keep them."""
    index = PacketIndex(stream)
    kept = [] if os.path.getsize(path) <= _KEPT_PACKETS else None
    try:
        for packet in packets:
            index.add(packet)
            if kept is not None:
                kept.append(packet)
    except _ERRORS as error:
        raise _unreadable(path, error) from error
    if index.num_frames == 0:
        raise _without_frames(path)
    return index, kept


def _decode_from_starts(
    stream: VideoStream, packets: Iterable[Packet], index: PacketIndex, indices: np.ndarray
) -> dict[int, VideoFrame] | None:
    """Decodes each frame from the last start before it; returns None in case of doubt."""
    frames: dict[int, VideoFrame] = {}
    wanted = sorted(set(indices.tolist()))
    times = index.times()
    try:
        for number, frame in _from_starts(stream, packets, index, deque(wanted)):
            # Decoders patch up corrupt frames from others, of which a late start leaves fewer.
            if frame.is_corrupt or (times is not None and frame.pts != times[number]):
                return None
            if number in wanted:
                frames[number] = frame
    except (*_ERRORS, IndexError):
        return None
    return frames if len(frames) == len(wanted) else None


def _from_starts(
    stream: VideoStream, packets: Iterable[Packet], index: PacketIndex, wanted: deque[int]
) -> Iterator[tuple[int, VideoFrame]]:
    """Yields numbers and frames: at least the wanted ones (ascending), and few others."""
    # Decoding always begins with the first start: what it says about the encoder applies to all.
    start, number = index.starts[0], 0
    for i, packet in enumerate(packets):
        if i < start.packet:
            continue
        if i == start.packet and number != start.frame:
            stream.codec_context.flush_buffers()
            number = start.frame
        for frame in stream.decode(packet):
            yield number, frame
            number += 1
        while wanted and wanted[0] < number:
            wanted.popleft()
        if not wanted:
            return
        start = max(start, index.start_before(wanted[0]))
    yield from enumerate(stream.decode(None), number)


def _decode_in_sequence(
    path: str, stream: VideoStream, packets: Iterable[Packet], indices: np.ndarray
) -> tuple[dict[int, VideoFrame], int | None]:
    """Decodes from the first packet on.

    Returns:
        The requested frames, and others while there is room; and the number of all frames, or None
        if one is broken.
    """
    frames: dict[int, VideoFrame] = {}
    wanted = set(indices.tolist())
    number, size = 0, 0
    try:
        for frame in _decode(stream, packets):
            size += 3 * frame.width * frame.height
            if number in wanted or size < _KEPT_FRAMES:
                frames[number] = frame
            number += 1
    except _ERRORS as error:
        if frames.keys() >= wanted:
            return frames, None
        raise _unreadable(path, error, after=number) from error
    if number == 0:
        raise _without_frames(path)
    return frames, number


def _decode(stream: VideoStream, packets: Iterable[Packet]) -> Iterator[VideoFrame]:
    """Yields all frames in order; ignores a broken last packet, as in truncated files."""
    error, has_frames = None, False
    for packet in packets:
        if error is not None:
            raise error
        try:
            frames = stream.decode(packet)
        except _ERRORS as caught:
            error = caught
        else:
            has_frames = has_frames or bool(frames)
            yield from frames
    frames = stream.decode(None)
    if error is not None and not (has_frames or frames):
        raise error
    yield from frames


def _chosen(path: str, frames: dict[int, VideoFrame], indices: np.ndarray) -> list[np.ndarray]:
    to_rgb = Rgb(frames[int(indices.min())])
    try:
        images = {i: to_rgb(frames[i]) for i in set(indices.tolist())}
    except _ERRORS as error:
        raise _unreadable(path, error) from error
    return [images[i] for i in indices.tolist()]


def _indices(choose: Choose, num_frames: int) -> np.ndarray:
    """Returns int64[T]. A wrong choice is a bug in the caller and must not look like a bad file."""
    indices = np.asarray(choose(num_frames), np.int64)
    if indices.ndim != 1 or not indices.size:
        raise ValueError(f"choose({num_frames}) must return indices [T], got {indices.shape}")
    if indices.min() < 0 or indices.max() >= num_frames:
        raise ValueError(f"choose({num_frames}) returned {indices.tolist()}, outside the video")
    return indices


def _without_frames(path: str) -> UnreadableClipError:
    return UnreadableClipError(f"{path} has a video stream without frames; fetch it again")


def _unreadable(path: str, error: Exception, after: int = 0) -> UnreadableClipError:
    where = f" after {after} frames" if after else ""
    return UnreadableClipError(
        f"cannot decode {path}{where}: {reason(error)}; fetch it again or leave it out"
    )
