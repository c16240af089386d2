"""Reads clips from ArrayRecord shards of JPEG frames, which TensorFlow Datasets opens, too.

A packed folder holds the clips of one list in the list's order:

    dataset_info.json, features.json     what `tfds.builder_from_directory` reads
    tsm-clips.array_record-*             the records, which form the split `clips`
    clips.list                           `name num_frames label` of every record
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from tsm_jax.data.frames import decode_picture
from tsm_jax.data.lists import ListSource, read_frame_list
from tsm_jax.data.sampling import spread_frames
from tsm_jax.errors import UnreadableClipError, UserError
from tsm_jax.terminal import typed

if TYPE_CHECKING:
    from etils import epath

DATASET, SPLIT = "tsm", "clips"
CLIPS_FILE = "clips.list"
INFO_FILE = "dataset_info.json"


@dataclass(frozen=True)
class PackedSource(ListSource):
    """Clips of a packed folder.

    If a clip was packed with fewer frames than it had, the nearest packed frame replaces the
    requested one, so that frames are drawn as for the other sources.

    Attributes:
        entries: Names, labels and original numbers of frames.
        records: Raw records by index, readable from several threads.
    """

    directory: str
    records: Any

    def name(self, index: int) -> str:
        return f"{self.directory}: {self.entries[index].path}"

    def read(self, index: int, choose: Any) -> Sequence[np.ndarray]:
        num_frames = self.entries[index].num_frames
        assert num_frames is not None, "clips.list gives the number of frames"
        pictures = _pictures(self.records[index], self.name(index))
        wanted = nearest_kept(choose(num_frames), num_frames, len(pictures))
        decode = cache(lambda i: decode_picture(pictures[i], f"frame {i} of {self.name(index)}"))
        return [decode(i) for i in wanted.tolist()]


def nearest_kept(indices: np.ndarray, num_frames: int, num_kept: int) -> np.ndarray:
    """Returns int64[T]: positions in `spread_frames(num_frames, num_kept)` nearest to `indices`."""
    kept = spread_frames(num_frames, num_kept)
    right = np.searchsorted(kept, indices).clip(0, num_kept - 1)
    left = (right - 1).clip(0)
    return np.where(np.abs(kept[left] - indices) <= np.abs(kept[right] - indices), left, right)


def _pictures(record: bytes, name: str) -> Sequence[bytes]:
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_pb2  # takes a second to import

    try:
        example = tf_example_pb2.Example.FromString(record)  # pyright: ignore
    except DecodeError as error:
        raise UnreadableClipError(f"{name}: the record is broken; pack the list again") from error
    pictures = example.features.feature["frames"].bytes_list.value
    if not pictures:
        raise UnreadableClipError(f"{name}: the record has no frames; pack the list again")
    return pictures


def packed_folder(directory: str) -> epath.Path:
    """Returns the path of a folder, which may be an address such as `gs://bucket/folder`.

    Raises:
        UserError: A package that the address needs is not installed.
    """
    from etils import epath

    path = epath.Path(directory)
    try:
        path.exists()
    except ImportError as error:
        raise UserError(
            f"{directory} cannot be reached: {error} (for gs://, pip install gcsfs)"
        ) from error
    return path


def open_packed(directory: str, num_classes: int) -> PackedSource:
    """Opens the clips that `prepare pack` wrote to a folder or a `gs://` address.

    Raises:
        UserError: It is not a packed folder, or it is incomplete.
    """
    import tensorflow_datasets as tfds  # takes a second to import

    path = packed_folder(directory)
    if not (path / INFO_FILE).exists():
        raise UserError(
            f"{directory} is not a packed folder, or is incomplete: run"
            f" {typed('prepare pack')} (again)"
        )
    with tempfile.TemporaryDirectory() as folder:  # lists are read from a local disk
        clips = (path / CLIPS_FILE).copy(os.path.join(folder, CLIPS_FILE))
        entries = read_frame_list(os.fspath(clips), num_classes=num_classes)
    builder: Any = tfds.builder_from_directory(os.fspath(path))
    method = tfds.decode.DeserializeMethod.RAW_BYTES
    records = builder.as_data_source(split=SPLIT, deserialize_method=method).data_source
    if len(records) != len(entries):
        raise UserError(
            f"{directory} has {len(records)} records but its {CLIPS_FILE} has {len(entries)} lines:"
            " delete the folder and pack the list again"
        )
    return PackedSource(entries, directory, records)
