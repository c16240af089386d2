"""Packs a list of clips into a folder, on this machine's cores or those of a Ray cluster.

While a folder is being packed, its subfolder `.packing/` holds a note for every complete shard (its
clips, and those that failed). A shard gets its final name after its note is written, and
`dataset_info.json` is written last: a folder that has it is complete.

All access goes through `epath`, so `gs://` addresses work wherever they do for TensorFlow Datasets.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from tsm_jax.data.decode import decode_frames, every_frame
from tsm_jax.data.frames import load_frames
from tsm_jax.data.lists import ClipEntry, local_copy
from tsm_jax.data.packed import CLIPS_FILE, DATASET, INFO_FILE, SPLIT, packed_folder
from tsm_jax.data.prepare.entries import list_line
from tsm_jax.data.prepare.extract import FAILED_FILE, encode_frame
from tsm_jax.data.prepare.jobs import JobFailure, run_jobs
from tsm_jax.data.sampling import spread_frames
from tsm_jax.errors import UserError
from tsm_jax.files import reason
from tsm_jax.terminal import progress

PLAN_FILE = "packing.json"
_NOTES = ".packing"
_JPEG = b"\xff\xd8\xff"
_ERRORS = "surrogateescape"  # file names need not be UTF-8

Clip = tuple[str, ClipEntry]


@dataclass(frozen=True)
class RecordOptions:
    """What a record keeps of a clip.

    Frames that are JPEG files of a suitable size are copied byte by byte.

    Attributes:
        source: Source of the list, `videos` or `frames`.
        template: Template of the names of frames.
        frames_per_clip: Number of evenly spaced frames to keep; 0 for all.
        short_side: In pixels; larger frames are scaled down to it. 0 keeps all sizes.
        quality: JPEG quality, 1 to 100.
    """

    source: str
    template: str
    frames_per_clip: int
    short_side: int
    quality: int


@dataclass(frozen=True)
class Record:
    """A serialized `tf.train.Example`, and the number of frames of the original clip."""

    data: bytes
    num_frames: int


def pack(shards: Shards, **jobs: Any) -> list[tuple[str, str]]:
    """Writes the missing shards, and then the files that describe them.

    Args:
        jobs: Arguments `processes`, `seconds` and `ray` of `run_jobs`. This machine writes the
            records, wherever they are made.

    Returns:
        (clip, reason) of the failed clips, which are left out.

    Raises:
        UserError: The folder belongs to another list or cannot be written, or no clip can be read.
    """
    try:
        if not shards.begin():
            return []
        missing = shards.missing()
        clips = [clip for shard in missing for clip in shards.clips_of(shard)]
        make = partial(make_record, options=shards.options)
        with closing(run_jobs(make, clips, path_of=lambda clip: clip[1].path, **jobs)) as pairs:
            results = progress((result for _, result in pairs), "pack", len(clips))
            for shard in missing:
                shards.write(shard, islice(results, len(shards.clips_of(shard))))
        return shards.finish()
    except OSError as error:
        raise UserError(f"cannot write {shards.directory}: {reason(error)}") from error


def make_record(clip: Clip, options: RecordOptions) -> Record:
    """Makes the record of (name, entry); always the same bytes."""
    from tensorflow_datasets.proto import tf_example_pb2  # takes a second to import

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


def _kept(num_frames: int, options: RecordOptions) -> np.ndarray:
    return spread_frames(num_frames, min(options.frames_per_clip or num_frames, num_frames))


def _pictures_of_video(entry: ClipEntry, options: RecordOptions) -> tuple[Sequence[bytes], int]:
    length = 0

    def choose(num_frames: int) -> np.ndarray:
        nonlocal length
        length = num_frames
        return _kept(num_frames, options)

    with local_copy(entry.path) as path:
        # All frames of a long video at once would not fit into memory.
        frames = decode_frames(path, choose) if options.frames_per_clip else every_frame(path)
        pictures = [encode_frame(frame, options.short_side, options.quality) for frame in frames]
    return pictures, length or len(pictures)


def _pictures_of_folder(entry: ClipEntry, options: RecordOptions) -> tuple[Sequence[bytes], int]:
    assert entry.num_frames is not None, "a frame list gives the number of frames"
    indices = _kept(entry.num_frames, options)
    # Decoded even if the file is copied: a broken one must not get into the records.
    frames = load_frames(entry.path, entry.num_frames, lambda _: indices, options.template)
    pictures = []
    for index, frame in zip(indices.tolist(), frames, strict=True):
        data = Path(entry.path, options.template.format(index + 1)).read_bytes()
        fits = not 0 < options.short_side < min(frame.shape[:2])
        if not (fits and data.startswith(_JPEG)):
            data = encode_frame(frame, options.short_side, options.quality)
        pictures.append(data)
    return pictures, entry.num_frames


@dataclass(frozen=True)
class Shards:
    """A packed folder that is being written.

    Attributes:
        directory: A path, or an address that `epath` supports.
        clips: (name, entry) in the list's order.
        clips_per_shard: Clips of the list per shard; a shard has fewer if clips fail.
        labels: Class names in label order; empty if unknown.
    """

    directory: str
    clips: Sequence[Clip]
    options: RecordOptions
    clips_per_shard: int
    labels: Sequence[str] = ()

    @property
    def count(self) -> int:
        return -(-len(self.clips) // self.clips_per_shard)

    def clips_of(self, shard: int) -> Sequence[Clip]:
        start = shard * self.clips_per_shard
        return self.clips[start : start + self.clips_per_shard]

    def missing(self) -> list[int]:
        """Returns the shards that have not been written yet."""
        return [i for i in range(self.count) if not self._path(self._shard_name(i)).exists()]

    def begin(self) -> bool:
        """Creates the folder or continues in it; returns whether anything is left to do.

        Raises:
            UserError: It holds another list's clips, was begun with other options, or cannot be
                reached.
        """
        plan = packed_folder(self.directory) / PLAN_FILE
        text = "\n".join(f"{name} {entry.label} {entry.num_frames}" for name, entry in self.clips)
        values = {
            **asdict(self.options),
            "clips": len(self.clips),
            "clips_sha256": hashlib.sha256(text.encode(errors=_ERRORS)).hexdigest(),
            "clips_per_shard": self.clips_per_shard,
        }
        wanted = json.dumps(values, sort_keys=True, indent=1) + "\n"
        if not plan.exists():
            self._path(_NOTES).mkdir(parents=True, exist_ok=True)
            self._publish_text(PLAN_FILE, wanted)
        elif plan.read_text() != wanted:
            raise UserError(
                f"{self.directory} was packed from another list or with other options (see"
                f" {PLAN_FILE} there): use the same list and options, or another --output"
            )
        is_complete = self._path(INFO_FILE).exists()
        if is_complete:
            self._remove_notes()
        return not is_complete

    def write(self, shard: int, results: Iterable[Record | JobFailure]) -> None:
        """Writes a shard from the results for its clips, in order."""
        from array_record.python.array_record_module import ArrayRecordWriter

        note = {"clips": [], "failed": [], "bytes": 0}
        with self._publishing(self._shard_name(shard)) as path:
            # One record per group for random access; compression does not make JPEG files smaller.
            writer = ArrayRecordWriter(path, "group_size:1,uncompressed")
            for (name, entry), result in zip(self.clips_of(shard), results, strict=True):
                if isinstance(result, JobFailure):
                    note["failed"].append([name, result.reason])
                    continue
                with self._writing():
                    writer.write(result.data)
                note["clips"].append([name, result.num_frames, entry.label])
                note["bytes"] += len(result.data)
            with self._writing():
                writer.close()
            self._publish_text(f"{_NOTES}/{shard}.json", json.dumps(note))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # raised by ArrayRecord when the disk is full
            raise UserError(f"cannot write {self.directory}: {reason(error)}") from error

    def finish(self) -> list[tuple[str, str]]:
        """Writes what describes the shards, once all exist; returns (clip, reason) of failures."""
        notes = [
            json.loads(self._path(f"{_NOTES}/{i}.json").read_text()) for i in range(self.count)
        ]
        clips = [clip for note in notes for clip in note["clips"]]
        failed = [(name, reason) for note in notes for name, reason in note["failed"]]
        if not clips:
            raise UserError(f"no clip could be read; the first failure: {failed[0][1]}")
        lines = [list_line(name, label, num_frames) for name, num_frames, label in clips]
        self._publish_text(CLIPS_FILE, "".join(f"{line}\n" for line in lines))
        if failed:
            text = "".join(f"{name}\t{reason}\n" for name, reason in failed)
            self._publish_text(FAILED_FILE, text)
        self._write_metadata(notes, num_classes=1 + max(label for _, _, label in clips))
        self._remove_notes()
        return failed

    def _write_metadata(self, notes: list[dict], num_classes: int) -> None:
        import tensorflow_datasets as tfds

        names = list(self.labels)
        classes = {"names": names} if len(names) >= num_classes else {"num_classes": num_classes}
        picture = tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")
        features = tfds.features.FeaturesDict(
            {
                "frames": tfds.features.Sequence(picture),
                "label": tfds.features.ClassLabel(**classes),
                "name": tfds.features.Text(),
                "num_frames": np.int64,
            }
        )
        split = {
            "name": SPLIT,
            "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            "shardLengths": [str(len(note["clips"])) for note in notes],
            "numBytes": str(sum(note["bytes"] for note in notes)),
        }
        info = {
            "name": DATASET,
            "version": "1.0.0",
            "fileFormat": "array_record",
            "splits": [split],
        }
        with tempfile.TemporaryDirectory() as folder:
            features.save_config(folder)
            for path in sorted(Path(folder).iterdir()):
                self._publish_text(path.name, path.read_text(encoding="utf-8"))
        self._publish_text(INFO_FILE, json.dumps(info, indent=2) + "\n")

    def _remove_notes(self) -> None:
        if self._path(_NOTES).exists():
            self._path(_NOTES).rmtree()

    def _shard_name(self, shard: int) -> str:
        return f"{DATASET}-{SPLIT}.array_record-{shard:05}-of-{self.count:05}"

    def _path(self, name: str) -> epath.Path:
        return epath.Path(self.directory) / name

    def _publish_text(self, name: str, text: str) -> None:
        with (
            self._publishing(name) as path,
            open(path, "w", encoding="utf-8", errors=_ERRORS, newline="") as file,
        ):
            file.write(text)

    @contextmanager
    def _publishing(self, name: str) -> Iterator[str]:
        """Yields the name of a local file to write, which then becomes `name` in the folder."""
        is_remote = "://" in self.directory
        notes = os.path.join(self.directory, _NOTES)
        with tempfile.TemporaryDirectory() if is_remote else nullcontext(notes) as folder:
            os.makedirs(folder, exist_ok=True)
            partial = os.path.join(folder, f"{os.path.basename(name)}.partial")
            yield partial
            if is_remote:  # objects appear complete or not at all
                epath.Path(partial).copy(self._path(name), overwrite=True)
                return
            with open(partial, "rb") as file:
                os.fsync(file.fileno())
            os.replace(partial, self._path(name))
