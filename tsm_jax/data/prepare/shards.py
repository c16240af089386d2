"""The shards of a packed folder: written one by one, completed by the metadata.

While a folder is being packed, `.packing/` in it holds a note for every shard that is complete
(which clips it has, which failed). A shard gets its name after its note is written, and
`dataset_info.json` comes last: a folder that has it is complete.

Everything goes through `epath`, so that `gs://` addresses work wherever they do for TensorFlow
Datasets.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import numpy as np
from etils import epath

from tsm_jax.data.lists import ClipEntry
from tsm_jax.data.packed import CLIPS_FILE, DATASET, INFO_FILE, SPLIT, packed_folder
from tsm_jax.data.prepare.entries import list_line
from tsm_jax.data.prepare.jobs import JobFailure
from tsm_jax.data.prepare.record import Record, RecordOptions
from tsm_jax.errors import UserError
from tsm_jax.files import reason

PLAN_FILE = "packing.json"
FAILED_FILE = "failed.txt"
_NOTES = ".packing"
_ERRORS = "surrogateescape"  # names of files need not be UTF-8

Clip = tuple[str, ClipEntry]


@dataclass(frozen=True)
class Shards:
    """A packed folder in the making.

    Attributes:
        directory: where it is; a path, or an address that `epath` knows.
        clips: (name, entry) in the list's order.
        options: of the records.
        clips_per_shard: of the list; a shard has fewer where clips fail.
        labels: class names.
    """

    directory: str
    clips: Sequence[Clip]
    options: RecordOptions
    clips_per_shard: int
    labels: Sequence[str] = field(default=())

    @property
    def count(self) -> int:
        """Number of shards."""
        return -(-len(self.clips) // self.clips_per_shard)

    def clips_of(self, shard: int) -> Sequence[Clip]:
        """The clips of a shard."""
        start = shard * self.clips_per_shard
        return self.clips[start : start + self.clips_per_shard]

    def is_complete(self) -> bool:
        """Whether the whole folder is."""
        return (epath.Path(self.directory) / INFO_FILE).exists()

    def missing(self) -> list[int]:
        """Shards that are still to be written."""
        return [shard for shard in range(self.count) if not self._path(shard).exists()]

    def begin(self) -> None:
        """Makes the folder, or continues in it.

        Raises:
            UserError: it holds another list's clips, was begun with other options, or is out of
                reach.
        """
        plan = packed_folder(self.directory) / PLAN_FILE
        wanted = json.dumps(self._plan(), sort_keys=True, indent=1) + "\n"
        if plan.exists():
            if plan.read_text() != wanted:
                raise UserError(
                    f"{self.directory} was packed from another list or with other options (see"
                    f" {PLAN_FILE} there): use the same, or another --output"
                )
            return
        (epath.Path(self.directory) / _NOTES).mkdir(parents=True, exist_ok=True)
        self._publish_text(PLAN_FILE, wanted)

    def _plan(self) -> dict:
        text = "\n".join(f"{name} {entry.label} {entry.num_frames}" for name, entry in self.clips)
        digest = hashlib.sha256(text.encode(errors=_ERRORS)).hexdigest()
        return {
            **asdict(self.options),
            "clips": len(self.clips),
            "clips_sha256": digest,
            "clips_per_shard": self.clips_per_shard,
        }

    def write(self, shard: int, results: Iterable[Record | JobFailure]) -> None:
        """Writes a shard from what became of its clips, in order."""
        from array_record.python.array_record_module import ArrayRecordWriter

        note = {"clips": [], "failed": [], "bytes": 0}
        partial = self._partial(f"shard-{shard}")
        # One record a group for random access; JPEG files do not get smaller by compression.
        writer = ArrayRecordWriter(partial, "group_size:1,uncompressed")
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
        _publish(partial, self._path(shard))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # of ArrayRecord, when the disk is full
            raise UserError(f"cannot write {self.directory}: {reason(error)}") from error

    def finish(self) -> list[tuple[str, str]]:
        """Writes what describes the shards, when all are there.

        Returns:
            (clip, reason) of those that failed.

        Raises:
            UserError: no clip could be read.
        """
        notes = [self._note(shard) for shard in range(self.count)]
        clips = [clip for note in notes for clip in note["clips"]]
        failed = [(name, reason) for note in notes for name, reason in note["failed"]]
        if not clips:
            raise UserError(f"no clip could be read; the first failure: {failed[0][1]}")
        lines = [list_line(name, label, num_frames) for name, num_frames, label in clips]
        self._publish_text(CLIPS_FILE, "".join(f"{line}\n" for line in lines))
        if failed:
            text = "".join(f"{name}\t{reason}\n" for name, reason in failed)
            self._publish_text(FAILED_FILE, text)
        num_classes = 1 + max(label for _, _, label in clips)
        self._write_metadata(
            [len(note["clips"]) for note in notes],
            sum(note["bytes"] for note in notes),
            num_classes,
        )
        self.tidy()
        return failed

    def tidy(self) -> None:
        """Removes the notes of a folder that is complete."""
        notes = epath.Path(self.directory) / _NOTES
        if notes.exists():
            notes.rmtree()

    def _note(self, shard: int) -> dict:
        return json.loads((epath.Path(self.directory) / _NOTES / f"{shard}.json").read_text())

    def _write_metadata(self, lengths: list[int], num_bytes: int, num_classes: int) -> None:
        import tensorflow_datasets as tfds

        names = list(self.labels)
        classes = (
            tfds.features.ClassLabel(names=names)
            if len(names) >= num_classes
            else tfds.features.ClassLabel(num_classes=num_classes)
        )
        picture = tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")
        features = tfds.features.FeaturesDict(
            {
                "frames": tfds.features.Sequence(picture),
                "label": classes,
                "name": tfds.features.Text(),
                "num_frames": np.int64,
            }
        )
        info = {
            "name": DATASET,
            "version": "1.0.0",
            "fileFormat": "array_record",
            "splits": [
                {
                    "name": SPLIT,
                    "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                    "shardLengths": [str(length) for length in lengths],
                    "numBytes": str(num_bytes),
                }
            ],
        }
        with tempfile.TemporaryDirectory() as folder:
            features.save_config(folder)
            for name in sorted(os.listdir(folder)):
                with open(os.path.join(folder, name), encoding="utf-8") as file:
                    self._publish_text(name, file.read())
        self._publish_text(INFO_FILE, json.dumps(info, indent=2) + "\n")

    def _path(self, shard: int) -> epath.Path:
        name = f"{DATASET}-{SPLIT}.array_record-{shard:05}-of-{self.count:05}"
        return epath.Path(self.directory) / name

    def _partial(self, name: str) -> str:
        """A local file to write first; on the same disk if the folder is local."""
        if _is_remote(self.directory):
            return os.path.join(tempfile.mkdtemp(prefix="tsm-jax-"), name)
        folder = os.path.join(self.directory, _NOTES)
        os.makedirs(folder, exist_ok=True)
        return os.path.join(folder, name)

    def _publish_text(self, name: str, text: str) -> None:
        partial = self._partial(f"{os.path.basename(name)}.partial")
        with open(partial, "w", encoding="utf-8", errors=_ERRORS, newline="") as file:
            file.write(text)
        _publish(partial, epath.Path(self.directory) / name)


def _is_remote(directory: str) -> bool:
    return "://" in directory


def _publish(partial: str, target: epath.Path) -> None:
    """Gives a complete local file its final name."""
    if not _is_remote(os.fspath(target)):
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, target)
        return
    epath.Path(partial).copy(target, overwrite=True)  # objects appear complete or not at all
    shutil.rmtree(os.path.dirname(partial))
