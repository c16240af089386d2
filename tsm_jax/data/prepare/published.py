"""Makes the lists of published data sets from their label files, as downloaded.

Each data set is a row of `DATA_SETS`. Classes are identified by name, never by number: both
versions of Something-Something have 174, and repositories number those of the first differently.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tsm_jax.data.lists import FRAME_TEMPLATE
from tsm_jax.data.prepare.make_lists import (
    ClipList,
    clip_list,
    numbered_lines,
    read_names,
    write_lists,
)
from tsm_jax.errors import UserError
from tsm_jax.files import read_json
from tsm_jax.terminal import printable

# Names of frames: those of this project, mmaction2 and PaddleVideo; those of Something-Something V1
# and Jester as downloaded; and MIT's for Something-Something V2.
TEMPLATES = (FRAME_TEMPLATE, "{:05}.jpg", "{:06}.jpg")


# Path without suffix, class, and where it was read, for messages.
_Clip = tuple[str, str, str]
_Parts = dict[str, list[_Clip]]  # clips by the name of their list
_Annotations = tuple[list[str], _Parts]  # classes in label order, and parts


@dataclass(frozen=True)
class DataSet:
    """The layout of a data set as downloaded.

    Attributes:
        num_classes: Published number of classes.
        read: Reads the label files of a folder.
        suffixes: Suffixes of its videos, tried in this order; empty if it comes as frames.
        folders: Optional subfolder for each part's clips.
        lists: Templates of the names of a part's lists, of videos and of frames.
        paddle: Whether paths are absolute and without suffix, as in PaddleVideo's UCF-101 lists.
    """

    num_classes: int
    read: Callable[[str], _Annotations]
    suffixes: tuple[str, ...]
    folders: Mapping[str, str] = field(default_factory=dict)
    lists: tuple[str, str] = ("{}.list", "{}_frames.list")
    paddle: bool = False

    def find(self, root: str, part: str, template: str) -> Callable[[str], str | None]:
        """Returns a function that finds the clips of a part below `root`."""
        folders = [f"{self.folders[part]}/", ""] if part in self.folders else [""]
        endings = ("",) if template else self.suffixes
        exists = os.path.isdir if template else os.path.isfile

        def find(clip: str) -> str | None:
            for path in (folder + clip for folder in folders):
                for ending in endings:
                    if exists(os.path.join(root, path + ending)):
                        return path if self.paddle else path + ending
            return None

        return find


def published_lists(
    name: str,
    annotations: str,
    output: str,
    *,
    videos: str | None = None,
    frames: str | None = None,
    labels: Sequence[str] | None = None,
) -> tuple[list[str], list[ClipList]]:
    """Writes the lists of a data set into the folder `output`, and `labels.txt` beside them.

    Args:
        videos: Folder of the videos; None for no lists of videos.
        frames: Folder of the folders of frames; None for no lists of frames.
        labels: Class names in an order that differs from the data set's.

    Returns:
        The class names in label order, and the lists.

    Raises:
        UserError: A label file is missing or malformed, a clip has an unknown class, or none of the
            clips of a list exists.
    """
    data_set = DATA_SETS[name]
    if videos and not data_set.suffixes:
        raise UserError(f"{name} comes as folders of frames, not as videos: give --frames")
    names, parts = data_set.read(annotations)
    names = names if labels is None else list(labels)
    numbers = {name: number for number, name in enumerate(names)}
    if len(numbers) < len(names):
        raise UserError(f"{annotations} names a class twice: every class needs a unique name")
    lists = []
    for part, clips in parts.items():
        for _, label, where in clips:
            if label not in numbers:
                what = f"'{printable(label)}' is not one of the {len(numbers)} classes"
                raise UserError(f"{where}: {what}")
        for root, list_name in zip((videos, frames), data_set.lists, strict=True):
            if root is None:
                continue
            if not os.path.isdir(root):
                raise UserError(f"the folder {root} does not exist: give the folder of the clips")
            template = ""
            if root is frames:
                find = data_set.find(root, part, FRAME_TEMPLATE)
                template = _template(root, (find(clip) for clip, _, _ in clips))
            find = data_set.find(root, part, template)
            labelled = ((clip, numbers[label], find(clip)) for clip, label, _ in clips)
            path = os.path.join(output, list_name.format(part))
            lists.append(clip_list(path, root, labelled, template, absolute=data_set.paddle))
    write_lists(lists, names)
    return names, lists


def _template(root: str, folders: Iterable[str | None]) -> str:
    """Returns the template of the names of frames, from the first folder that has any."""
    for folder in folders:
        for template in TEMPLATES if folder else ():
            if os.path.isfile(os.path.join(root, folder or "", template.format(1))):
                return template
    return FRAME_TEMPLATE


def _names_in(folder: str) -> list[str]:
    if not os.path.isdir(folder):
        raise UserError(f"the folder {folder} does not exist: give the folder of the label files")
    return sorted(os.listdir(folder))


def _file(folder: str, *endings: str) -> str:
    """Finds the file named as one of `endings`, possibly after a prefix that ends in `-` or `_`."""
    wanted = re.compile(rf"(.*[-_])?({'|'.join(map(re.escape, endings))})", re.IGNORECASE)
    found = [name for name in _names_in(folder) if wanted.fullmatch(name)]
    if len(found) != 1:
        what = f"several: {', '.join(found)}" if found else "none"
        raise UserError(
            f"{folder}: expected one file {' or '.join(endings)} (or ...-{endings[0]}), found"
            f" {printable(what)}: give the folder of this data set's label files"
        )
    return os.path.join(folder, found[0])


def _ucf101(folder: str) -> _Annotations:
    """Reads UCF-101's label files.

    `classInd.txt` has lines such as `1 ApplyEyeMakeup` (for label 0). The lists have lines
    `Class/v_....avi`, followed by a number in training lists. The second and third split may be
    missing.
    """
    path = _file(folder, "classInd.txt")
    rows = [line.split() for _, line in numbered_lines(path)]
    if not rows or any(len(row) != 2 or row[0] != str(i) for i, row in enumerate(rows, start=1)):
        raise UserError(f"{path}: expected lines '1 ClassName', numbered from 1")
    parts: _Parts = {}
    for split in (1, 2, 3):
        for part, stem in {"train": "trainlist", "val": "testlist"}.items():
            file = os.path.join(folder, f"{stem}{split:02}.txt")
            if split == 1 or os.path.exists(file):
                parts[f"ucf101_{part}_split_{split}"] = [
                    (os.path.splitext(line.split()[0])[0], line.partition("/")[0], where)
                    for where, line in numbered_lines(file)
                ]
    return [name for _, name in rows], parts


def _hmdb51(folder: str) -> _Annotations:
    """Reads HMDB51's label files.

    `<class>_test_split<1..3>.txt` has lines `name.avi 1` for training, 2 for testing, 0 for unused.
    """
    pattern = re.compile(r"(.+)_test_split([123])\.txt")
    files = [match for name in _names_in(folder) if (match := pattern.fullmatch(name))]
    parts: _Parts = {}
    for file in files:
        for where, line in numbered_lines(os.path.join(folder, file[0])):
            *clip, mark = line.rsplit(None, 1)
            if not clip or mark not in ("0", "1", "2"):
                raise UserError(f"{where}: expected 'name.avi' and 0, 1 or 2")
            if mark != "0":
                part = f"{'train' if mark == '1' else 'val'}_split_{file[2]}"
                path = f"{file[1]}/{os.path.splitext(clip[0])[0]}"
                parts.setdefault(part, []).append((path, file[1], where))
    if not parts:
        raise UserError(f"{folder} contains no files CLASS_test_split1.txt: unpack HMDB51's splits")
    return sorted({file[1] for file in files}), parts


def _semicolons(folder: str) -> _Annotations:
    """Reads Something-Something V1 or Jester.

    `labels.csv` has one name per line, the other files have lines `id;name`. Labels are sorted,
    like MIT's; mmaction2's follow `labels.csv`, which can be passed as --labels.
    """
    parts: _Parts = {part: [] for part in ("train", "val")}
    for part, endings in _parts("csv").items():
        for where, line in numbered_lines(_file(folder, *endings)):
            clip, semicolon, name = (word.strip() for word in line.partition(";"))
            if not clip or not semicolon:
                raise UserError(f"{where}: expected 'id;class', found '{printable(line[:80])}'")
            parts[part].append((clip, name, where))
    return sorted(read_names(_file(folder, "labels.csv"))), parts


def _parts(suffix: str) -> dict[str, list[str]]:
    return {"train": [f"train.{suffix}"], "val": [f"validation.{suffix}", f"val.{suffix}"]}


def _something_v2(folder: str) -> _Annotations:
    """Reads Something-Something V2.

    `labels.json` numbers the templates without brackets; the other files have items with `id` and
    `template`, which has brackets.
    """
    path = _file(folder, "labels.json")
    numbers = read_json(path, "the labels")
    if not isinstance(numbers, dict):
        raise UserError(f'{path}: expected {{"class": "number", ...}}')
    parts: _Parts = {}
    for part, endings in _parts("json").items():
        items = _items(_file(folder, *endings), id=(str, int), template=(str,))
        parts[part] = [(str(i["id"]), re.sub(r"[\[\]]", "", i["template"]), w) for w, i in items]
    return _in_order(list(numbers.items()), path), parts


def _diving48(folder: str) -> _Annotations:
    """Reads Diving48: items with `vid_name` and `label`.

    `Diving48_vocab.json`, which may be missing, has four words for each class.
    """
    items = {
        part: _items(_file(folder, ending), vid_name=(str,), label=(int,))
        for part, ending in {"train": "train.json", "val": "test.json"}.items()
    }
    labels = [item["label"] for placed in items.values() for _, item in placed]
    names = [f"class {number}" for number in range(max(labels, default=0) + 1)]
    if any(name.lower().endswith("vocab.json") for name in _names_in(folder)):
        path = _file(folder, "vocab.json")
        words = read_json(path, "the vocabulary")
        if not isinstance(words, list) or not all(isinstance(some, list) for some in words):
            raise UserError(f"{path}: expected a list of lists of words")
        names = ["+".join(map(str, some)) for some in words]
    parts: _Parts = {part: [] for part in items}
    for part, placed in items.items():
        for where, item in placed:
            if not 0 <= item["label"] < len(names):
                raise UserError(f"{where}: the label {item['label']} is not in 0..{len(names) - 1}")
            parts[part].append((item["vid_name"], names[item["label"]], where))
    return names, parts


def _moments(folder: str) -> _Annotations:
    """Reads Moments in Time.

    `moments_categories.txt` has lines `name,number`; lines of the csv files start with
    `class/name.mp4`.
    """
    path = _file(folder, "moments_categories.txt")
    words = [line.rpartition(",") for _, line in numbered_lines(path)]
    parts: _Parts = {"train": [], "val": []}
    for clips, ending in zip(parts.values(), ("trainingSet.csv", "validationSet.csv"), strict=True):
        for where, line in numbered_lines(_file(folder, ending)):
            path = line.partition(",")[0].strip('" ')
            name, slash, _ = path.partition("/")
            if not slash:
                raise UserError(f"{where}: expected 'class/name.mp4', found '{printable(path)}'")
            clips.append((os.path.splitext(path)[0], name, where))
    return _in_order([(name, number) for name, _, number in words], path), parts


def _items(path: str, **types: tuple[type, ...]) -> list[tuple[str, dict[str, Any]]]:
    """Reads a JSON list of objects with values of these types; returns each with its place."""
    items = read_json(path, "the annotations")
    if not isinstance(items, list):
        raise UserError(f"{path}: expected a list of objects with {' and '.join(types)}")
    placed = [(f"{path}, item {number}", item) for number, item in enumerate(items, start=1)]
    for where, item in placed:
        for key, kinds in types.items():
            if not isinstance(item, dict) or type(item.get(key)) not in kinds:
                raise UserError(f"{where}: expected an object with {' and '.join(types)}")
    return placed


def _in_order(pairs: Sequence[tuple[str, Any]], path: str) -> list[str]:
    """Returns names in the order of their numbers: 0, 1, 2 and so on, as numbers or text."""
    names = {str(number).strip(): name.strip() for name, number in pairs}
    wanted = [str(number) for number in range(len(pairs))]
    if not pairs or names.keys() != set(wanted) or len(set(names.values())) < len(pairs):
        raise UserError(f"{path}: expected different classes, numbered from 0 without gaps")
    return [names[number] for number in wanted]


DATA_SETS = {
    "ucf101": DataSet(
        101, _ucf101, (".avi",), lists=("{}_videos.txt", "{}_rawframes.txt"), paddle=True
    ),
    "hmdb51": DataSet(51, _hmdb51, (".avi", ".mp4")),
    "sthv1": DataSet(174, _semicolons, ()),
    "sthv2": DataSet(174, _something_v2, (".webm", ".mp4")),
    "jester": DataSet(27, _semicolons, ()),
    "diving48": DataSet(48, _diving48, (".mp4",)),
    "moments": DataSet(339, _moments, (".mp4",), {"train": "training", "val": "validation"}),
}
