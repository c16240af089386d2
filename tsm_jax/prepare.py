"""Prepares downloaded data sets for recipes: lists, frames, checks, packed folders.

python -m tsm_jax.prepare lists --help
"""

from __future__ import annotations

import os
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tsm_jax import cli
from tsm_jax.data.lists import FRAME_TEMPLATE, LABELS_FILE
from tsm_jax.errors import UserError
from tsm_jax.files import write_lines
from tsm_jax.terminal import printable

# Numeric options: default, minimum, maximum, metavar, help.
_NUMBERS = {
    "clips_per_shard": (512, 1, 10**6, "N", "clips per shard (512)"),
    "frames_per_clip": (64, 0, 10**6, "N", "evenly spaced frames to keep (64); 0: all"),
    "num_segments": (8, 1, 1024, "T", "frames to read of each clip (8)"),
    "processes": (0, 0, 1024, "N", "processes; 0: one per core"),
    "quality": (95, 1, 100, "1..100", "JPEG quality (95)"),
    "seconds": (300.0, 0.1, 10**6, "S", "seconds that a clip may take (%(default)g)"),
    "short_side": (256, 0, 2**14, "PIXELS", "scale larger frames down to this (256); 0: keep"),
}


def main(arguments: Sequence[str]) -> None:
    cli.choose(
        "prepare",
        {f.__name__: f for f in (download, lists, frames, check, pack)},
        arguments,
        description="Prepares data sets; see `prepare COMMAND --help` and docs/data.md.",
        example="python -m tsm_jax.prepare frames --help",
    )


def download(arguments: Sequence[str]) -> None:
    """Downloads and unpacks official archives."""
    parser = cli.Parser(
        "prepare download",
        description="Downloads and unpacks a data set. Run it again to continue.",
        example="python -m tsm_jax.prepare download ucf101 --output data/ucf101",
    )
    parser.add_argument("dataset", metavar="DATASET", choices=["ucf101", "kinetics400"])
    parser.add_argument("--output", metavar="DIR", help="default: data/ucf101 or data/k400")
    parser.add_argument(
        "--keep_archives", action="store_true", help="do not delete unpacked archives"
    )
    options = parser.parse_args(arguments)
    from tsm_jax.data.prepare.dataset_download import download_dataset

    download_dataset(options.dataset, options.output, keep_archives=options.keep_archives)


def lists(arguments: Sequence[str]) -> None:
    """Writes lists of videos and frames."""
    from tsm_jax.data.prepare.published import DATA_SETS

    parser = cli.Parser(
        "prepare lists",
        description=(
            "Writes lists of clips, and labels.txt beside them. For DATASET"
            f" {', '.join(DATA_SETS)}, the lists are made from the label files in --annotations and"
            " written into the folder --output (see docs/data.md for the commands). For kinetics400"
            " and folders, one list of <class>/<video> is written to the file --output (kinetics400"
            " with --annotations: of the videos that the csv file names, in any subfolder). For"
            " folders with --val_share, or with <split>/<class>/<video> (splits are train, val and"
            " test), train.list, val.list and test.list are written into the folder --output."
        ),
        example=(
            "python -m tsm_jax.prepare lists folders --videos my_videos --val_share 0.2"
            " --output data/own"
        ),
    )
    choices = [*DATA_SETS, "kinetics400", "folders"]
    parser.add_argument("dataset", metavar="DATASET", choices=choices)
    parser.add_argument("--videos", metavar="DIR", help="folder of the videos")
    parser.add_argument("--frames", metavar="DIR", help="folder of the folders of frames")
    parser.add_argument("--output", metavar="PATH", required=True, help="file or folder to write")
    parser.add_argument(
        *("--annotations", "--splits"),
        metavar="PATH",
        help="folder of the label files or splits; for kinetics400, the csv file",
    )
    parser.add_argument("--labels", metavar="FILE", help="class names in label order")
    parser.add_argument(
        "--val_share",
        metavar="SHARE",
        type=float,
        help="folders: share of every class for validation; clips of a recording stay together",
    )
    parser.add_argument(
        "--seed", metavar="N", type=int, help="seed of the split by --val_share (0)"
    )
    parser.add_argument(
        "--layout",
        choices=["auto", "classes", "splits"],
        help="folders: whether folders named train, val and test are classes or splits (auto)",
    )
    options = parser.parse_args(arguments)
    if options.val_share is not None:
        _check_split_options(parser, options)
    elif options.seed is not None:
        parser.error("--seed needs --val_share")
    if not (options.videos or options.frames):
        parser.error("nothing to list: give --videos, --frames, or both")
    if options.layout and (options.dataset != "folders" or options.frames or options.annotations):
        parser.error("--layout is only allowed for folders with --videos")
    if options.dataset in DATA_SETS:
        _published_lists(parser, options)
    elif options.dataset == "folders" and not (options.frames or options.annotations):
        _lists_of_folders(parser, options)
    elif options.videos and options.frames:
        parser.error("only one list at a time: give either --videos or --frames")
    else:
        _print_list(_one_list(parser, options))


def _print_list(made) -> None:
    missing = made.missing and f", {len(made.missing)} missing, such as {made.missing[0]}"
    print(f"{made.path}: {len(made.lines)} clips{printable(missing or '')}")


def _published_lists(parser: cli.Parser, options) -> None:
    from tsm_jax.data.prepare.make_lists import read_names
    from tsm_jax.data.prepare.published import DATA_SETS, published_lists

    if not options.annotations:
        parser.error(f"{options.dataset} needs --annotations, the folder of its label files")
    names, made = published_lists(
        options.dataset,
        options.annotations,
        options.output,
        videos=options.videos,
        frames=options.frames,
        labels=read_names(options.labels) if options.labels else None,
    )
    for written in made:
        _print_list(written)
    if template := next((w.template for w in made if w.template not in ("", FRAME_TEMPLATE)), ""):
        print(
            f"frames are named {template}: set config.data.frame_template, and --template of check"
        )
    print(f"{len(names)} classes: {_some(names)}")
    published = DATA_SETS[options.dataset].num_classes
    if len(names) != published:
        print(f"warning: {options.dataset} was published with {published} classes")


def _check_split_options(parser: cli.Parser, options) -> None:
    for name in ("frames", "annotations", "labels"):
        if getattr(options, name) is not None:
            parser.error(f"--val_share cannot be used with --{name}")
    if options.dataset != "folders" or options.videos is None:
        parser.error("--val_share is only allowed for folders with --videos")
    if not 0 < options.val_share < 1:
        raise UserError(f"--val_share is {options.val_share}: it must be between 0 and 1")


def _lists_of_folders(parser: cli.Parser, options) -> None:
    from tsm_jax.data.prepare.entries import survey
    from tsm_jax.data.prepare.split_lists import understand

    found = survey(options.videos)
    splits, left_out = understand(options.videos, found, options.layout or "auto")
    if splits or options.val_share is not None:
        _split_folder(parser, options, found, splits)
    else:
        made = _one_list(parser, options)
        clips = Counter(video.split(os.sep)[0] for video in found.videos)
        print(f"{made.path}: {_sizes(clips)}")
    empty = found.without_videos(2 if splits else 1)
    _print_some("folders without videos, left out", empty)
    _print_some("folders beside the splits, left out", left_out)
    _print_some("other files, hidden files, or broken or circular links, left out", found.others)


def _sizes(clips: Counter[str]) -> str:
    """Describes how many clips the classes have."""
    most, fewest = max(clips, key=clips.__getitem__), min(clips, key=clips.__getitem__)
    of_each = f"{clips[most]} each"
    if clips[fewest] < clips[most]:
        of_each = f"from {clips[fewest]} ({printable(fewest)}) to {clips[most]} ({printable(most)})"
    return f"{clips.total()} clips of {len(clips)} classes, {of_each}"


def _print_some(what: str, names: Sequence[str]) -> None:
    if names:
        print(f"{len(names)} {what}: {_some(names)}")


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(printable, names[:5])) + ", ..." * (len(names) > 5)


def _split_folder(parser: cli.Parser, options, found, splits: dict[str, str]) -> None:
    from tsm_jax.data.prepare.split_lists import split_folder

    if options.labels:
        parser.error("--labels cannot be used with splits: list the splits one by one")
    root, output, share = options.videos, options.output, options.val_share
    if os.path.splitext(output)[1] or os.path.isfile(output):
        raise UserError(
            f"--output {output} names a file, but several lists are written: give a folder"
        )
    counts, recordings = split_folder(
        root, output, found, splits, val_share=share, seed=options.seed or 0
    )
    classes = sorted(counts["train"])
    clips = sum(of_classes.total() for of_classes in counts.values())
    how = ""
    if splits:
        folders = [f"{folder} ({name})" for name, folder in splits.items()]
        how = f", split by its folders {printable(', '.join(folders))}"
    elif recordings < clips:
        how = f", from {recordings} recordings, whose clips stay together"
    print(f"{root}: {clips} videos of {len(classes)} classes{how}")
    paths = {name: os.path.join(output, f"{name}.list") for name in counts}
    for name, path in paths.items():
        print(f"{path}: {_sizes(counts[name])}")
    print(f"{os.path.join(output, LABELS_FILE)}: {_some(classes)}")
    if "val" in splits and share is not None:
        print("--val_share is ignored: there is already a validation folder")
    if "val" not in paths:
        print("there is no validation set: add --val_share 0.2 to split one off the training set")
        return
    absent = [name for name in classes if not counts["val"][name]]
    why = "" if "val" in splits else "only one recording, so "
    _print_some(f"classes, {why}not in validation", absent)
    overrides = ""
    if paths["train"] != "data/own/train.list":
        train, val = shlex.quote(paths["train"]), shlex.quote(paths["val"])
        overrides = f" --config.data.train_list={train} --config.data.val_list={val}"
    print(f"next: {cli.typed('train')} own_videos_mobilenet{overrides}")


def _one_list(parser: cli.Parser, options):
    from tsm_jax.data.prepare import make_lists
    from tsm_jax.weights.labels import labels_for

    if os.path.isdir(options.output):
        parser.error(
            f"--output {options.output} is a folder: name a file in it, or add --val_share 0.2"
            " (with folders) to write a training and a validation list"
        )
    labels = None
    if options.labels:
        labels = make_lists.read_names(options.labels)
    elif options.dataset == "kinetics400":
        labels = labels_for(400)
    root, frames = options.videos or options.frames, not options.videos
    if options.annotations:
        if labels is None:
            raise UserError("--annotations needs --labels, or the data set kinetics400")
        return make_lists.annotated_list(
            options.annotations, root, options.output, labels=labels, frames=frames
        )
    return make_lists.folder_list(root, options.output, labels=labels, frames=frames)


def frames(arguments: Sequence[str]) -> None:
    """Extracts videos to folders of JPEG files."""
    parser = cli.Parser(
        "prepare frames",
        description=(
            "Extracts videos to folders of img_00001.jpg and so on. Run it again to continue."
            " failed.txt in --output names the videos that failed."
        ),
        example=(
            "python -m tsm_jax.prepare frames --videos data/ucf101/videos"
            " --output data/ucf101/rawframes"
        ),
    )
    parser.add_argument(
        "--videos", metavar="DIR", help="extract every video file below this folder"
    )
    _add_list(parser, required=False)
    parser.add_argument(
        "--output", metavar="DIR", required=True, help="where to create the folders"
    )
    parser.add_argument("--write_list", metavar="FILE", help="with --list: list of frames to write")
    parser.add_argument(
        "--keep_extension",
        action="store_true",
        help="name folders like name.mp4, as in PaddleVideo's Kinetics-400 lists",
    )
    options = _parse(parser, arguments, "short_side", "quality")
    if (options.videos is None) == (options.list is None):
        parser.error("give either --videos or --list")
    if options.write_list and not options.list:
        parser.error("--write_list needs --list, which has the labels")
    from tsm_jax.data.prepare.entries import find_videos, list_line, short_names
    from tsm_jax.data.prepare.extract import extract

    root, output = options.videos or options.prefix, options.output
    if root and os.path.realpath(output) == os.path.realpath(root):
        raise UserError(f"--output {output} is the folder of the videos: choose another one")
    if options.videos:
        entries, names = [], find_videos(root)
        videos = [os.path.join(root, name) for name in names]
    else:
        entries = _entries(options, "videos")
        names, videos = short_names(entries, root), [entry.path for entry in entries]
    folders = [name if options.keep_extension else os.path.splitext(name)[0] for name in names]
    first: dict[str, str] = {}
    for folder, name in zip(folders, names, strict=True):
        if first.setdefault(folder, name) != name:
            raise UserError(
                f"{first[folder]} and {name} would share the folder {folder}: add --keep_extension"
            )
    pixels = {"short_side": options.short_side, "quality": options.quality}
    num_frames, failures = extract(videos, folders, output, **pixels, **_jobs(options))
    if options.write_list:
        lines = [
            list_line(folder, entry.label, count)
            for entry, folder, count in zip(entries, folders, num_frames, strict=True)
            if count
        ]
        write_lines(options.write_list, lines)
        print(f"{options.write_list}: {len(lines)} clips")
    done = len(videos) - len(failures)
    if not done:
        raise UserError(f"no video could be extracted; the first failure: {failures[0][1]}")
    print(f"{output}: {done} of {len(videos)} videos extracted")
    _print_failures(failures, output)


def check(arguments: Sequence[str]) -> None:
    """Checks every clip of a list."""
    parser = cli.Parser(
        "prepare check",
        description=(
            "Reads every clip of a list as training would and reports which are broken, missing or"
            " short. The exit code is 1 if any cannot be read and --write_clean is not given."
        ),
        example=(
            "python -m tsm_jax.prepare check --source videos --list data/k400/train.list"
            " --prefix data/k400/videos --write_clean data/k400/train_clean.list"
        ),
    )
    _add_list(parser, source=True)
    parser.add_argument("--report", metavar="FILE", help="default: LIST.check.txt")
    parser.add_argument(
        "--write_clean", metavar="FILE", help="write the list without unreadable clips"
    )
    options = _parse(parser, arguments, "num_segments", seconds=60.0)
    from tsm_jax.data.prepare.check import VERDICTS, check_entries
    from tsm_jax.data.prepare.entries import clean_lines

    verdicts = check_entries(
        _entries(options, options.source),
        options.source,
        num_segments=options.num_segments,
        template=options.template,
        **_jobs(options),
    )
    report = options.report or f"{options.list}.check.txt"
    lines = [f"{v.kind}\t{v.path}\t{v.detail}" for v in verdicts if v.detail]
    write_lines(report, lines)
    if sys.stdout.isatty() or len(lines) <= 20:
        for line in lines:
            print("  ".join(map(printable, line.split("\t"))))
    counts = {kind: sum(v.kind == kind for v in verdicts) for kind in VERDICTS}
    print(f"{options.list}: {', '.join(f'{n} {kind}' for kind, n in counts.items())}; see {report}")
    usable = [v.is_usable for v in verdicts]
    if options.write_clean:
        write_lines(options.write_clean, clean_lines(options.list, usable))
        print(f"{options.write_clean}: {sum(usable)} clips")
    elif not all(usable):
        raise UserError(
            f"{usable.count(False)} of {len(verdicts)} clips cannot be read (see {report}): fix"
            " them, or add --write_clean FILE to write a list without them"
        )


def pack(arguments: Sequence[str]) -> None:
    """Packs a list into ArrayRecord shards."""
    parser = cli.Parser(
        "prepare pack",
        description=(
            "Packs the clips of a list into ArrayRecord shards, which training reads with"
            " config.data.source=packed and TensorFlow Datasets with builder_from_directory."
            " Run it again to continue."
        ),
        example=(
            "python -m tsm_jax.prepare pack --source videos --list data/k400/train.list"
            " --prefix data/k400/videos --output data/k400/packed_train"
        ),
    )
    _add_list(parser, source=True)
    parser.add_argument("--output", metavar="DIR", required=True, help="folder or gs:// address")
    parser.add_argument(
        "--labels", metavar="FILE", help="class names (default: labels.txt beside the list)"
    )
    of_records = ("frames_per_clip", "short_side", "quality")
    options = _parse(parser, arguments, "clips_per_shard", *of_records)
    from tsm_jax.data.prepare.entries import short_names
    from tsm_jax.data.prepare.make_lists import read_names
    from tsm_jax.data.prepare.pack import RecordOptions, Shards
    from tsm_jax.data.prepare.pack import pack as pack_shards

    entries = _entries(options, options.source)
    names = short_names(entries, options.prefix)
    beside = os.path.join(os.path.dirname(options.list), LABELS_FILE)
    labels = options.labels or (beside if os.path.isfile(beside) else None)
    kept = {name: getattr(options, name) for name in ("source", "template", *of_records)}
    shards = Shards(
        options.output,
        list(zip(names, entries, strict=True)),
        RecordOptions(**kept),
        options.clips_per_shard,
        read_names(labels) if labels else (),
    )
    failures = pack_shards(shards, **_jobs(options))
    print(f"{options.output}: {len(shards.clips)} clips in {shards.count} shards")
    _print_failures(failures, options.output)


def _add_list(parser: cli.Parser, *, required: bool = True, source: bool = False) -> None:
    parser.add_argument("--list", metavar="FILE", required=required, help="list of clips")
    parser.add_argument("--prefix", default="", help="folder that its paths are relative to")
    parser.add_argument("--suffix", default="", help="suffix to append to its paths, such as .avi")
    if source:
        kinds = ["videos", "frames"]
        parser.add_argument("--source", choices=kinds, required=True, help="kind of list")
        parser.add_argument(
            "--template", default=FRAME_TEMPLATE, help="name of a frame (with --source frames)"
        )


def _parse(parser: cli.Parser, arguments: Sequence[str], *numbers: str, **defaults: float):
    """Parses the options, including these numbers and those of `run_jobs`; checks their ranges."""
    numbers = (*numbers, "processes", "seconds")
    for name in numbers:
        default, _, _, metavar, text = _NUMBERS[name]
        kind = type(default)
        parser.add_argument(f"--{name}", metavar=metavar, type=kind, default=default, help=text)
    parser.set_defaults(**defaults)
    parser.add_ray()
    options = parser.parse_args(arguments)
    for name in numbers:
        value, (_, low, high, *_) = getattr(options, name), _NUMBERS[name]
        if not low <= value <= high:
            raise UserError(f"--{name} is {value}: it must be at least {low} and at most {high}")
    return options


def _entries(options, source: str):
    from tsm_jax.data.prepare.entries import read_entries

    return read_entries(source, options.list, prefix=options.prefix, suffix=options.suffix)


def _jobs(options) -> dict[str, Any]:
    """Returns the arguments for `run_jobs`."""
    return {"processes": options.processes, "seconds": options.seconds, "ray": options.ray}


def _print_failures(failures, output: str) -> None:
    from tsm_jax.data.prepare.extract import FAILED_FILE

    if failures:
        first, report = printable(failures[0][1]), os.path.join(output, FAILED_FILE)
        print(f"{len(failures)} failed and were left out (see {report}); the first: {first}")


if __name__ == "__main__":
    cli.run(main)
