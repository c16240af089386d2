"""Which frames the packets of a video stream hold, and from where decoding may start.

Told from the compressed data, without decoding any. `frames_are_known` holds only where every
packet is shown to give one frame, or none: then the number of a frame is a matter of counting, and
decoding may start at any frame after which nothing refers to what came before it. That can be
shown for H.264 without fields, HEVC, MPEG-4 part 2 without B-frames, VP8, VP9 and AV1, the codecs
of nearly all data sets. Of other streams only a decode from the first packet on tells the frames.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

from av.packet import Packet
from av.video.stream import VideoStream

# Demuxers whose packets carry the time of presentation. That of AVI, for one, knows the order of
# decoding only, which does not show how deep a decoder has to reorder.
_WITH_PRESENTATION_TIMES = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "mpegts", "flv"}

_START_CODE = b"\0\0\1"


class _Kind(Enum):
    """What a packet gives to a decoder that has seen all before it."""

    FRAME = "one frame"
    START = "one frame, and decoding may start here"
    LEADING = "one frame, but none if decoding starts at the last start"
    HIDDEN = "none"


class Start(NamedTuple):
    """Where decoding may start: the number of a packet and of the first frame that comes out."""

    packet: int
    frame: int


class PacketIndex:
    """The frames of a stream, packet by packet.

    Attributes:
        num_packets: added so far.
        num_frames: of those; an estimate unless `frames_are_known`.
        frames_are_known: every packet was shown to give one frame or none.
        starts: where decoding may start, ascending; the first packet among them.
    """

    def __init__(self, stream: VideoStream):
        context = stream.codec_context
        self.num_packets = 0
        self.num_frames = 0
        self.starts: list[Start] = []
        self._position = 0  # bytes from the start of the file
        self._times: list[int | None] = []  # of the frames, in the order of the packets
        self._reordered: list[int] = []  # of all packets, ascending
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
        """Counts one more packet, in the order of the file."""
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
        # Discarded ones are decoded, but not given: edit lists.
        if kind is not _Kind.HIDDEN and not packet.is_discard:
            self.num_frames += 1
            self._times.append(packet.pts)

    def start_before(self, frame: int) -> Start:
        """The last place to start from to decode a frame."""
        return self.starts[bisect_right(self.starts, frame, key=lambda start: start.frame) - 1]

    def times(self) -> list[int] | None:
        """The time of each frame in order of presentation, if all packets have one."""
        known = [time for time in self._times if time is not None]
        return sorted(known) if len(known) == len(self._times) else None

    def _check(self, packet: Packet) -> _Kind:
        """Raises a ValueError or IndexError if it is not shown what the packet gives."""
        # `has_sidedata` takes as long as all the rest here.
        if packet.is_corrupt or any(
            data.data_type == "new_extradata" for data in packet.iter_sidedata()
        ):
            raise ValueError("broken, or decoded by other parameters from here on")
        if packet.pos is not None:
            if packet.pos < self._position:
                raise ValueError("an edit list repeats a part, which decoders are not made for")
            self._position = packet.pos
        if self._reorder_depth is not None:
            self._check_reordering(packet.pts, self._reorder_depth)
        assert self._codec is not None
        kind = self._codec.kind(bytes(packet))
        if not self.starts and kind is not _Kind.START:
            raise ValueError("decoders withhold frames before the first start")
        if kind is _Kind.LEADING and (len(self.starts) == 1 or packet.is_discard):
            raise ValueError("not given at the beginning of a file")
        return kind

    def _check_reordering(self, time: int | None, limit: int) -> None:
        """An H.264 decoder drops frames that come later than the announced depth allows."""
        if time is None:
            raise ValueError("without a time of presentation")
        place = bisect_left(self._reordered, time)
        later = self._reordered[place:]
        if len(later) > limit or time in later:
            raise ValueError("reordered deeper than announced, or two frames at one time")
        self._reordered.insert(place, time)


class _Codec:
    """What the packets of a codec say about its frames.

    A decoder that starts midway has seen the header and the first packet, so parameters that
    change later make a stream undecided. They are named units here (NAL units, start codes).
    """

    def __init__(self, extradata: bytes):
        self._parameters = self._header(extradata)
        self._is_first = True
        for unit in self._parameters:
            self._check_parameter(unit)

    def _header(self, extradata: bytes) -> list[bytes]:
        """The parameters that a container keeps apart from the packets."""
        return []

    def kind(self, data: bytes) -> _Kind:
        """Raises a ValueError or IndexError if it is not shown what the packet gives."""
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
        """Raises a ValueError if with it a packet may give another number of frames."""


class _H264(_Codec):
    """ITU-T H.264, 7.3: no fields, one picture in a packet, starts at IDR pictures."""

    _length_size = 0  # bytes before a unit; 0 for start codes

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
    """ITU-T H.265, 7.3: one layer, one picture in a packet, starts at IDR and CRA pictures."""

    _length_size = 0  # bytes before a unit; 0 for start codes

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
        if kinds <= {8, 9}:  # RASL: refers to what was before the last CRA
            return _Kind.LEADING
        if not kinds.isdisjoint((6, 7, 16, 17, 18, 36, 37)):
            raise ValueError("RADL and frames left out at breaks are not followed here")
        if not kinds.isdisjoint((19, 20, 21)) and any(unit[2] & 64 for unit in slices):
            raise ValueError("drops frames that were not given yet")
        return _start_if(kinds <= {19, 20} or kinds == {21})

    def _check_parameter(self, unit: bytes) -> None:
        if unit[0] >> 1 & 63 == 34:  # a picture parameter set
            bits = _Bits(unit[2:])
            bits.exp_golomb(2)
            if bits.read(2) & 1:
                raise ValueError("a picture may be hidden")


class _Mpeg4(_Codec):
    """ISO/IEC 14496-2, 6.2: one coded I- or P-frame in a packet, starts at I-frames."""

    # A frame of so few bytes may be one that is not coded, which gives none.
    _NOT_CODED = 19

    def _header(self, extradata: bytes) -> list[bytes]:
        # All but time codes and frames.
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
    """RFC 6386, 9.1: a frame in a packet, which may be hidden; starts at key frames."""

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
            shown.append((bits.read(1), bits.read(1), bits.read(1)))  # again, not key, shown
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
            raise ValueError("still pictures have other headers")


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
    """The units of a packet, each after its length in bytes, or after a start code (0)."""
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
    """The frames of a packet of VP9."""
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
    """Types and contents of the open bitstream units of AV1."""
    units, place = [], 0
    while place < len(data):
        header = data[place]
        if header >> 2 & 1 or not header >> 1 & 1:
            raise ValueError("several layers, or without a size")
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
    """`count` units, each after two bytes with its length; and the place after them."""
    units = []
    for _ in range(count):
        size = int.from_bytes(data[place : place + 2], "big")
        units.append(data[place + 2 : place + 2 + size])
        place += 2 + size
    return units, place


def _is_progressive(unit: bytes) -> bool:
    """frame_mbs_only_flag of a sequence parameter set (ITU-T H.264, 7.3.2.1.1)."""
    bits = _Bits(unit[1:])
    profile = bits.read(24) >> 16
    bits.exp_golomb()
    if profile not in (66, 77, 88):
        if bits.exp_golomb() == 3:
            bits.read(1)
        bits.exp_golomb(2)
        if bits.read(2) & 1:
            raise ValueError("has scaling lists, which are not read here")
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
        """An unsigned number of `count` bits."""
        self._place += count
        return int(self._bits[self._place - count : self._place], 2)

    def exp_golomb(self, count: int = 1) -> int:
        """The last of `count` unsigned numbers of variable length."""
        value = 0
        for _ in range(count):
            zeros = self._bits.index("1", self._place) - self._place
            self._place += zeros
            value = self.read(zeros + 1) - 1
        return value
