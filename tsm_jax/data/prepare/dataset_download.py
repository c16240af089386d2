"""Downloads and unpacks the official archives of UCF-101 and Kinetics-400; can be continued.

Archives stay in `archives/` below the output until they are unpacked; an archive obtained in
another way can be put there. Archives are unpacked under another name first, so whatever has its
final name is complete and its checksums are verified.
"""

from __future__ import annotations

import filecmp
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tsm_jax import files
from tsm_jax.data.prepare.unpack import find_unrar, unpack
from tsm_jax.download import download
from tsm_jax.errors import UserError
from tsm_jax.terminal import progress_bar

_GB = 10**9


@dataclass(frozen=True)
class DataSet:
    """Where a data set is published.

    Attributes:
        name: Default folder below data/.
        download_bytes, unpacked_bytes: Approximate sizes of all archives and of their content.
        files: Addresses of files that are kept as they are.
        archives: (address, folder for the content); an archive's own top folder is left out.
        link_lists: Addresses of lists of further archives, whose content goes to `videos`.
    """

    name: str
    download_bytes: int
    unpacked_bytes: int
    files: Sequence[str] = ()
    archives: Sequence[tuple[str, str]] = ()
    link_lists: Sequence[str] = ()


_UCF101 = "https://www.crcv.ucf.edu/data/UCF101"
_K400_LISTS = "https://videotag.bj.bcebos.com/PaddleVideo/Data/Kinetic400"
_K400_VIDEOS = "https://ai-rank.bj.bcebos.com/Kinetics400"

# Sizes according to PaddleVideo's pages on data preparation.
DATASETS = {
    "ucf101": DataSet(
        "ucf101",
        7 * _GB,
        7 * _GB,
        archives=(
            (f"{_UCF101}/UCF101TrainTestSplits-RecognitionTask.zip", "ucfTrainTestlist"),
            (f"{_UCF101}/UCF101.rar", "videos"),
        ),
    ),
    "kinetics400": DataSet(
        "k400",
        135 * _GB,
        135 * _GB,
        files=tuple(
            f"{_K400_LISTS}/{name}.list" for name in ("train", "val", "train_frames", "val_frames")
        ),
        link_lists=(f"{_K400_VIDEOS}/train_link.list", f"{_K400_VIDEOS}/val_link.list"),
    ),
}


def download_dataset(name: str, output: str | None = None, *, keep_archives: bool = False) -> None:
    """Calls `fetch_dataset` for one of `DATASETS`, by default into data/."""
    dataset = DATASETS[name]
    fetch_dataset(dataset, output or os.path.join("data", dataset.name), keep_archives)


def fetch_dataset(dataset: DataSet, output: str, keep_archives: bool) -> None:
    """Downloads and unpacks a data set; first prints how much space it takes.

    Raises:
        UserError: There is not enough space or no program to unpack rar, or a download fails.
    """
    try:
        os.makedirs(output, exist_ok=True)
        _check_space(dataset, output)
        if any(_file_name(url).endswith(".rar") for url, _ in dataset.archives):
            find_unrar()  # before hours of downloading
        for url in dataset.files:
            _fetch(url, Path(output, _file_name(url)))
        archives = [*dataset.archives, *_linked_archives(dataset, output)]
        folders = [folder for _, folder in archives]
        for name, (url, folder) in zip(_distinct_names(archives), archives, strict=True):
            if not Path(output, "archives", f"{name}.unpacked").exists():
                archive = _fetch(url, Path(output, "archives", name))
                _unpack(archive, Path(output, folder), is_shared=folders.count(folder) > 1)
                if not keep_archives:
                    archive.unlink()
    except OSError as error:
        raise UserError(f"cannot write {output}: {files.reason(error)}") from error
    print(f"{output}: complete")


def _check_space(dataset: DataSet, output: str) -> None:
    # An archive is deleted as soon as it is unpacked, so both sizes are needed at once only if
    # there is a single one.
    needed = dataset.unpacked_bytes + (0 if dataset.link_lists else dataset.download_bytes)
    used = sum(path.stat().st_size for path in Path(output).rglob("*") if path.is_file())
    free = shutil.disk_usage(output).free
    print(
        f"{output}: about {dataset.download_bytes / _GB:.1f} GB to download,"
        f" {dataset.unpacked_bytes / _GB:.1f} GB unpacked; {used / _GB:.1f} GB already there,"
        f" {free / _GB:.1f} GB free",
        flush=True,
    )
    if needed > used + free:
        raise UserError(
            f"{output}: the data set needs {needed / _GB:.1f} GB, but only {free / _GB:.1f} GB are"
            " free: free some space or choose another --output"
        )


def _file_name(url: str) -> str:
    name = url.rpartition("/")[2]
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}", name):
        raise UserError(f"{url!a}: this address does not end in a file name")
    return name


def _linked_archives(dataset: DataSet, output: str) -> list[tuple[str, str]]:
    archives = []
    for url in dataset.link_lists:
        path = _fetch(url, Path(output, "archives", _file_name(url)))
        links = files.read_text(path, "the list of archives", limit=2**20).split()
        archives += [(link, "videos") for link in links]
    return archives


def _distinct_names(archives: Sequence[tuple[str, str]]) -> list[str]:
    """Returns the archives' file names; repeated ones are prefixed with their folder's name."""
    names: list[str] = []
    for url, _ in archives:
        name = _file_name(url)
        if name in names:
            name = f"{_file_name(url.rpartition('/')[0])}_{name}"
        if name in names:
            raise UserError(f"{url}: this archive is listed twice")
        names.append(name)
    return names


def _fetch(url: str, path: Path) -> Path:
    options = {"what": "the data set", "setting": "--output", "max_bytes": 2**40}
    with progress_bar(path.name, in_bytes=True) as update:
        return download(url, path, **options, on_progress=update)


def _unpack(archive: Path, target: Path, *, is_shared: bool) -> None:
    name = archive.name
    partial = archive.parents[1] / f".unpacking-{name}"
    shutil.rmtree(partial, ignore_errors=True)  # left by a killed run
    partial.mkdir()
    try:
        unpack(archive, partial)
        inside = [path for path in partial.iterdir() if not path.name.startswith(".")]
        content = inside[0] if len(inside) == 1 and inside[0].is_dir() else partial
        if is_shared:
            _merge(content, target, name)
        else:
            shutil.rmtree(target, ignore_errors=True)
            os.rename(content, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    if hasattr(os, "sync"):
        os.sync()  # before deleting the archive, from which the content could be restored
    archive.with_name(f"{name}.unpacked").touch()
    print(f"{target}: {name} unpacked", flush=True)


def _merge(content: Path, target: Path, name: str) -> None:
    for path in sorted(content.rglob("*")):
        if path.is_file():
            place = target / path.relative_to(content)
            place.parent.mkdir(parents=True, exist_ok=True)
            # After a killed run, the same file may be there already.
            if place.exists() and not filecmp.cmp(path, place, shallow=False):
                raise UserError(f"{place} exists and differs from the file of this name in {name}")
            os.replace(path, place)
