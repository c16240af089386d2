"""Determines which frames the packets of a video stream hold, and where decoding may start.

This uses only the compressed data; nothing is decoded. `frames_are_known` is True only if every
packet is proven to yield one frame or none. Frames can then be numbered by counting packets, and
decoding may start at any frame after which nothing refers to what came before it. This can be
proven for H.264 without fields, HEVC, MPEG-4 part 2 without B-frames, VP8, VP9 and AV1, the codecs
of nearly all data sets. The frames of other streams are known only by decoding from the first
packet on.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

from av.packet import Packet
from av.video.stream import VideoStream

# Demuxers whose packets carry presentation times. The AVI demuxer, for example, only knows the
# decoding order, which does not show how deep a decoder has to reorder.
_WITH_PRESENTATION_TIMES = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "mpegts", "flv"}

_START_CODE = b"\0\0\1"


class _Kind(Enum):
    """What a packet yields from a decoder that has seen all packets before it."""

    FRAME = "one frame"
    START = "one frame, and decoding may start here"
    LEADING = "one frame, but none if decoding starts at the last start"
    HIDDEN = "none"


class Start(NamedTuple):
    """Where decoding may start: the number of a packet, and of the first frame it outputs."""

    packet: int
    frame: int


class PacketIndex:
    """The frames of a stream, packet by packet.

    Attributes:
        num_packets: Packets added so far.
        num_frames: Frames in these packets; an estimate unless `frames_are_known`.
        frames_are_known: Whether every packet was proven to yield one frame or none.
        starts: Where decoding may start, in ascending order, including the first packet.
    """

    def __init__(self, stream: VideoStream):
        context = stream.codec_context
        self.num_packets = 0
        self.num_frames = 0
        self.starts: list[Start] = []
        self._position = 0  # bytes from the start of the file
        self._times: list[int | None] = []  # of the frames, in packet order
        self._reordered: list[int] = []  # times of all packets, ascending
        self._reorder_depth: int | None = None
        codec = _CODECS.get(context.name)
        self.frames_are_known = codec is not None
        if codec is _H264:
            self._reorder_depth = context.reorder_depth
            self.frames_are_known = stream.container.format.name in _WITH_PRESENTATION_TIMES
        try:
            self._codec = codec(context.extradata or b"") if codec else None
        except (ValueError, IndexError):
            self.frames_are_known = False

    def add(self, packet: Packet) -> None:
        """Adds the next packet of the file."""
        kind = _Kind.FRAME
        if self.frames_are_known:
            try:
                kind = self._check(packet)
            except (ValueError, IndexError):
                self.frames_are_known = False
        if kind is _Kind.START:
            self.starts.append(Start(self.num_packets, self.num_frames))
        elif kind is _Kind.LEADING:
            self.starts[-1] = Start(self.starts[-1].packet, self.starts[-1].frame + 1)
        self.num_packets += 1
        # Packets discarded by an edit list are decoded, but their frames are not output.
        if kind is not _Kind.HIDDEN and not packet.is_discard:
            self.num_frames += 1
            self._times.append(packet.pts)

    def start_before(self, frame: int) -> Start:
        """Returns the last start from which `frame` can be decoded."""
        return self.starts[bisect_right(self.starts, frame, key=lambda start: start.frame) - 1]

    def times(self) -> list[int] | None:
        """Returns the frames' times in presentation order, or None if a packet has none."""
        known = [time for time in self._times if time is not None]
        return sorted(known) if len(known) == len(self._times) else None

    def _check(self, packet: Packet) -> _Kind:
        """Returns what a packet yields; raises a ValueError or IndexError if that is uncertain."""
        # `has_sidedata` would take as long as the rest of this function.
        if packet.is_corrupt or any(
            data.data_type == "new_extradata" for data in packet.iter_sidedata()
        ):
            raise ValueError("broken, or the parameters of decoding change here")
        if packet.pos is not None:
            if packet.pos < self._position:
                raise ValueError("an edit list repeats a part, which decoders do not expect")
            self._position = packet.pos
        if self._reorder_depth is not None:
            self._check_reordering(packet.pts, self._reorder_depth)
        assert self._codec is not None
        kind = self._codec.kind(bytes(packet))
        if not self.starts and kind is not _Kind.START:
            raise ValueError("decoders withhold frames before the first start")
        if kind is _Kind.LEADING and (len(self.starts) == 1 or packet.is_discard):
            raise ValueError("not output at the beginning of a file")
        return kind

    def _check_reordering(self, time: int | None, limit: int) -> None:
        """Checks the reorder depth: an H.264 decoder drops frames that exceed the announced one."""
        if time is None:
            raise ValueError("no presentation time")
        place = bisect_left(self._reordered, time)
        later = self._reordered[place:]
        if len(later) > limit or time in later:
            raise ValueError("reordered deeper than announced, or two frames with the same time")
        self._reordered.insert(place, time)


class _Codec:
    """What the packets of a codec reveal about its frames.

    A decoder that starts midway has seen only the header and the first packet, so a stream whose
    parameters change later is uncertain. Parameters are stored as units (NAL units, OBUs, or
    what follows a start code).
    """

    def __init__(self, extradata: bytes):
        self._parameters = self._header(extradata)
        self._is_first = True
        for unit in self._parameters:
            self._check_parameter(unit)

    def _header(self, extradata: bytes) -> list[bytes]:
        """Returns the parameters that a container stores outside the packets."""
        return []

    def kind(self, data: bytes) -> _Kind:
        """Returns what a packet yields; raises a ValueError or IndexError if that is uncertain."""
        raise NotImplementedError

    def _take_parameters(self, units: list[bytes]) -> None:
        if self._is_first:
            self._is_first = False
            self._parameters = units or self._parameters
            for unit in units:
                self._check_parameter(unit)
        elif any(unit not in self._parameters for unit in units):
            raise ValueError("parameters change midway")

    def _check_parameter(self, unit: bytes) -> None:
        """Raises a ValueError if, with this unit, packets may yield another number of frames."""


class _H264(_Codec):
    """ITU-T H.264, 7.3: no fields, one picture per packet, starts at IDR pictures."""

    _length_size = 0  # bytes of the length before each unit; 0 for start codes

    def _header(self, extradata: bytes) -> list[bytes]:
        if extradata[:1] != b"\1":
            return _units(extradata, 0)
        self._length_size = (extradata[4] & 3) + 1  # ISO/IEC 14496-15, 5.3.3.1
        sequence, place = _counted_units(extradata, 6, extradata[5] & 31)
        return sequence + _counted_units(extradata, place + 1, extradata[place])[0]

    def kind(self, data: bytes) -> _Kind:
        units = _units(data, self._length_size)
        slices = [unit for unit in units if unit[0] & 31 in (1, 5)]
        # first_mb_in_slice is 0 in the first slice of a picture.
        if sum(unit[1] >> 7 for unit in slices) != 1:
            raise ValueError("not one picture")
        self._take_parameters([unit for unit in units if unit[0] & 31 in (7, 8)])
        return _start_if(all(unit[0] & 31 == 5 for unit in slices))

    def _check_parameter(self, unit: bytes) -> None:
        if unit[0] & 31 == 7 and not _is_progressive(unit):
            raise ValueError("a packet may hold a field")


class _Hevc(_Codec):
    """ITU-T H.265, 7.3: one layer, one picture per packet, starts at IDR and CRA pictures."""

    _length_size = 0  # bytes of the length before each unit; 0 for start codes

    def _header(self, extradata: bytes) -> list[bytes]:
        if extradata[:1] != b"\1":
            return _units(extradata, 0)
        self._length_size = (extradata[21] & 3) + 1  # ISO/IEC 14496-15, 8.3.3.1
        place, header = 23, []
        for _ in range(extradata[22]):
            count = int.from_bytes(extradata[place + 1 : place + 3], "big")
            units, place = _counted_units(extradata, place + 3, count)
            header += units
        return header

    def kind(self, data: bytes) -> _Kind:
        units = [(unit[0] >> 1 & 63, unit) for unit in _units(data, self._length_size)]
        if any(unit[0] & 1 or unit[1] >> 3 for _, unit in units):
            raise ValueError("several layers")
        slices = [unit for kind, unit in units if kind < 32]
        if sum(unit[2] >> 7 for unit in slices) != 1:  # first_slice_segment_in_pic_flag
            raise ValueError("not one picture")
        self._take_parameters([unit for kind, unit in units if kind in (32, 33, 34)])
        kinds = {kind for kind, _ in units if kind < 32 or kind in (36, 37)}
        if kinds <= {8, 9}:  # RASL: refers to frames before the last CRA
            return _Kind.LEADING
        if not kinds.isdisjoint((6, 7, 16, 17, 18, 36, 37)):
            raise ValueError("RADL and frames dropped at broken links are not supported")
        if not kinds.isdisjoint((19, 20, 21)) and any(unit[2] & 64 for unit in slices):
            raise ValueError("drops frames that have not been output yet")
        return _start_if(kinds <= {19, 20} or kinds == {21})

    def _check_parameter(self, unit: bytes) -> None:
        if unit[0] >> 1 & 63 == 34:  # a picture parameter set
            bits = _Bits(unit[2:])
            bits.exp_golomb(2)
            if bits.read(2) & 1:
                raise ValueError("a picture may be hidden")


class _Mpeg4(_Codec):
    """ISO/IEC 14496-2, 6.2: one coded I- or P-frame per packet, starts at I-frames."""

    # A frame of at most this many bytes may be a not-coded one, which yields no frame.
    _NOT_CODED = 19

    def _header(self, extradata: bytes) -> list[bytes]:
        # Everything except time codes and frames.
        return [unit for unit in _units(extradata, 0) if unit[0] not in (0xB3, 0xB6)]

    def kind(self, data: bytes) -> _Kind:
        frames = [unit for unit in _units(data, 0) if unit[0] == 0xB6]
        if len(frames) != 1 or len(frames[0]) <= self._NOT_CODED:
            raise ValueError("not one coded frame")
        self._take_parameters(self._header(data))
        coding_type = frames[0][1] >> 6
        if coding_type > 1:
            raise ValueError("a B-frame or sprite")
        return _start_if(coding_type == 0)


class _Vp8(_Codec):
    """RFC 6386, 9.1: one frame per packet, which may be hidden; starts at key frames."""

    def kind(self, data: bytes) -> _Kind:
        is_shown, is_key = data[0] >> 4 & 1, not data[0] & 1
        return _start_if(is_key) if is_shown else _Kind.HIDDEN


class _Vp9(_Codec):
    """VP9 bitstream specification 0.6, 6.2 and annex B: starts at key frames."""

    def kind(self, data: bytes) -> _Kind:
        headers = [_Bits(frame[:2]) for frame in _superframe(data)]
        shown = []
        for bits in headers:
            if bits.read(2) != 2:
                raise ValueError("not a frame")
            if bits.read(2) == 3:
                bits.read(1)
            # show_existing_frame, frame_type (0: key), show_frame
            shown.append((bits.read(1), bits.read(1), bits.read(1)))
        count = sum(again or show for again, _, show in shown)
        if count > 1:
            raise ValueError("several frames")
        return _start_if(shown[0] == (0, 0, 1)) if count else _Kind.HIDDEN


class _Av1(_Codec):
    """AV1 bitstream specification, 5.3 and 5.9: one layer, starts at shown key frames."""

    def _header(self, extradata: bytes) -> list[bytes]:
        header = extradata[4:] if extradata[:1] == b"\x81" else extradata  # av1C
        return [unit for kind, unit in _obus(header) if kind == 1]

    def kind(self, data: bytes) -> _Kind:
        units = _obus(data)
        self._take_parameters([unit for kind, unit in units if kind == 1])
        headers = [unit[0] for kind, unit in units if kind in (3, 6)]
        # show_existing_frame, frame_type (2 bits), show_frame
        count = sum(first >> 7 or first >> 4 & 1 for first in headers)
        if count != 1:
            raise ValueError("not one frame")
        return _start_if(headers[0] >> 4 == 1)

    def _check_parameter(self, unit: bytes) -> None:
        if unit[0] & 8:
            raise ValueError("still pictures have different headers")


_CODECS: dict[str, Callable[[bytes], _Codec]] = {
    "h264": _H264,
    "hevc": _Hevc,
    "mpeg4": _Mpeg4,
    "vp8": _Vp8,
    "vp9": _Vp9,
    "libdav1d": _Av1,
}


def _start_if(is_start: bool) -> _Kind:
    return _Kind.START if is_start else _Kind.FRAME


def _units(data: bytes, length_size: int) -> list[bytes]:
    """Splits a packet into units.

    Each is preceded by its length in `length_size` bytes, or by a start code if that is 0.
    """
    if not length_size:
        junk, *units = data.split(_START_CODE)
        if junk.strip(b"\0"):
            raise ValueError("does not begin with a start code")
        return [unit[:1] + unit[1:].rstrip(b"\0") for unit in units]
    units, place = [], 0
    while place < len(data):
        size = int.from_bytes(data[place : place + length_size], "big")
        place += length_size + size
        if place > len(data) or size == 0:
            raise ValueError("a unit is longer than its packet")
        units.append(data[place - size : place])
    return units


def _superframe(data: bytes) -> list[bytes]:
    """Splits a VP9 packet into frames."""
    marker = data[-1]
    size, count = (marker >> 3 & 3) + 1, (marker & 7) + 1
    index = data[-2 - size * count :]
    if marker >> 5 != 6 or index[0] != marker:
        return [data]
    frames, place = [], 0
    for i in range(count):
        length = int.from_bytes(index[1 + i * size :][:size], "little")
        frames.append(data[place : place + length])
        place += length
    return frames


def _obus(data: bytes) -> list[tuple[int, bytes]]:
    """Returns the types and contents of AV1's open bitstream units."""
    units, place = [], 0
    while place < len(data):
        header = data[place]
        if header >> 2 & 1 or not header >> 1 & 1:
            raise ValueError("several layers, or no size")
        place, size, shift = place + 1, 0, 0
        while True:
            size |= (data[place] & 127) << shift
            shift += 7
            place += 1
            if not data[place - 1] >> 7:
                break
        units.append((header >> 3 & 15, data[place : place + size]))
        place += size
    if place > len(data):
        raise ValueError("a unit is longer than its packet")
    return units


def _counted_units(data: bytes, place: int, count: int) -> tuple[list[bytes], int]:
    """Returns `count` units, each preceded by a two-byte length, and the position after them."""
    units = []
    for _ in range(count):
        size = int.from_bytes(data[place : place + 2], "big")
        units.append(data[place + 2 : place + 2 + size])
        place += 2 + size
    return units, place


def _is_progressive(unit: bytes) -> bool:
    """Reads frame_mbs_only_flag from a sequence parameter set (ITU-T H.264, 7.3.2.1.1)."""
    bits = _Bits(unit[1:])
    profile = bits.read(24) >> 16
    bits.exp_golomb()
    if profile not in (66, 77, 88):
        if bits.exp_golomb() == 3:
            bits.read(1)
        bits.exp_golomb(2)
        if bits.read(2) & 1:
            raise ValueError("scaling lists are not supported")
    bits.exp_golomb()
    order = bits.exp_golomb()
    if order == 0:
        bits.exp_golomb()
    elif order == 1:
        bits.read(1)
        bits.exp_golomb(2)
        bits.exp_golomb(bits.exp_golomb())
    bits.exp_golomb()
    if bits.read(1):
        raise ValueError("frames may be missing")
    bits.exp_golomb(2)
    return bool(bits.read(1))


class _Bits:
    """Reads bits of a NAL unit."""

    def __init__(self, data: bytes):
        data = data.replace(b"\0\0\3", b"\0\0")  # emulation prevention
        self._bits = "".join(f"{byte:08b}" for byte in data)
        self._place = 0

    def read(self, count: int) -> int:
        """Reads an unsigned number of `count` bits."""
        self._place += count
        return int(self._bits[self._place - count : self._place], 2)

    def exp_golomb(self, count: int = 1) -> int:
        """Reads `count` unsigned Exp-Golomb numbers and returns the last one."""
        value = 0
        for _ in range(count):
            zeros = self._bits.index("1", self._place) - self._place
            self._place += zeros
            value = self.read(zeros + 1) - 1
        return value
