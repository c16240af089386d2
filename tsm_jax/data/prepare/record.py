"""One clip as a record: a `tf.train.Example` with its frames as JPEG files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tsm_jax.data.decode import decode_frames, every_frame
from tsm_jax.data.frames import load_frames
from tsm_jax.data.lists import ClipEntry
from tsm_jax.data.prepare.extract import encode_frame
from tsm_jax.data.sampling import spread_frames

_JPEG = b"\xff\xd8\xff"


@dataclass(frozen=True)
class RecordOptions:
    """What a record keeps of a clip.

    Attributes:
        source: of the list, `videos` or `frames`.
        template: name of a frame, for frames.
        frames_per_clip: evenly spaced frames kept; 0 for all of them.
        short_side: pixels; larger frames are scaled down to it. 0 keeps all as they are.
        quality: of JPEG files that are written anew, 1 to 100. Frames that are JPEG files of the
            right size already are taken over byte by byte.
    """

    source: str = "videos"
    template: str = "img_{:05}.jpg"
    frames_per_clip: int = 64
    short_side: int = 256
    quality: int = 95


@dataclass(frozen=True)
class Record:
    """A serialized clip.

    Attributes:
        data: the serialized `tf.train.Example`.
        num_frames: of the original clip.
    """

    data: bytes
    num_frames: int


def make_record(clip: tuple[str, ClipEntry], options: RecordOptions) -> Record:
    """The record of (name, entry); the same bytes every time.

    Raises:
        UnreadableClipError: names the file.
    """
    from tensorflow_datasets.proto import tf_example_pb2  # takes a second

    name, entry = clip
    read = _pictures_of_folder if options.source == "frames" else _pictures_of_video
    pictures, num_frames = read(entry, options)
    example = tf_example_pb2.Example()  # pyright: ignore[reportAttributeAccessIssue]
    feature = example.features.feature
    feature["frames"].bytes_list.value.extend(pictures)
    feature["label"].int64_list.value.append(entry.label)
    feature["name"].bytes_list.value.append(os.fsencode(name))
    feature["num_frames"].int64_list.value.append(num_frames)
    return Record(example.SerializeToString(deterministic=True), num_frames)


class _Kept:
    """Chooses the frames to keep, and remembers how many there were."""

    def __init__(self, frames_per_clip: int):
        self._count = frames_per_clip
        self.num_frames = 0
        self.indices = np.zeros(0, np.int64)

    def __call__(self, num_frames: int) -> np.ndarray:
        self.num_frames = num_frames
        self.indices = spread_frames(num_frames, min(self._count or num_frames, num_frames))
        return self.indices


def _pictures_of_video(entry: ClipEntry, options: RecordOptions) -> tuple[Sequence[bytes], int]:
    kept = _Kept(options.frames_per_clip)
    # All frames of a long video at once would not fit into memory.
    frames = decode_frames(entry.path, kept) if options.frames_per_clip else every_frame(entry.path)
    pictures = [encode_frame(frame, options.short_side, options.quality) for frame in frames]
    return pictures, kept.num_frames or len(pictures)


def _pictures_of_folder(entry: ClipEntry, options: RecordOptions) -> tuple[Sequence[bytes], int]:
    assert entry.num_frames is not None, "a frame list gives the number of frames"
    kept = _Kept(options.frames_per_clip)
    # Decoded even where the file is taken over: a broken one must not get into the records.
    frames = load_frames(entry.path, entry.num_frames, kept, options.template)
    pictures = []
    for index, frame in zip(kept.indices.tolist(), frames, strict=True):
        data = Path(entry.path, options.template.format(index + 1)).read_bytes()
        fits = not 0 < options.short_side < min(frame.shape[:2])
        if not (fits and data.startswith(_JPEG)):
            data = encode_frame(frame, options.short_side, options.quality)
        pictures.append(data)
    return pictures, entry.num_frames
