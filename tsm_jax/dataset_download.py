"""The official archives of UCF-101 and Kinetics-400: downloaded, unpacked, continued if stopped.

Archives lie in `archives/` below the output until they are unpacked; an archive that was fetched in
another way can be put there. Unpacking goes to another name first, so that what has its final name
is complete.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tsm_jax.errors import UserError
from tsm_jax.weights.download import download
from tsm_jax.weights.download_progress import progress_bar

_MAX_BYTES = 2**40
_GB = 10**9

# Programs that unpack rar, and how they are told what and where to. First the one that certainly
# notices a wrong checksum: `unrar` may be the free one, which like bsdtar lets some pass.
_UNRAR = {
    "unar": ["-quiet", "-force-overwrite", "-no-directory", "-o", "{folder}", "{archive}"],
    "unrar": ["x", "-idq", "-y", "{archive}", "{folder}/"],
    "7z": ["x", "-y", "-bd", "-bso0", "-o{folder}", "{archive}"],
    "7zz": ["x", "-y", "-bd", "-bso0", "-o{folder}", "{archive}"],
    "bsdtar": ["-x", "-f", "{archive}", "-C", "{folder}"],
}


@dataclass(frozen=True)
class DataSet:
    """Where a data set is published.

    Attributes:
        name: of the folder in data/.
        download_bytes: of all archives, roughly.
        unpacked_bytes: of what is in them, roughly.
        files: addresses of files that stay as they are.
        archives: (address, folder for its content); its own top folder is left out.
        link_lists: addresses of lists of further archives, whose content goes to `videos`.
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

# Sizes as PaddleVideo's pages on data preparation give them.
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
    """Downloads and unpacks one of `DATASETS`; tells first how much space it takes.

    Raises:
        UserError: there is not enough space, no program to unpack with, or a download fails.
    """
    dataset = DATASETS[name]
    fetch_dataset(dataset, output or os.path.join("data", dataset.name), keep_archives)


def fetch_dataset(dataset: DataSet, output: str, keep_archives: bool) -> None:
    """`download_dataset` of any `DataSet`."""
    os.makedirs(output, exist_ok=True)
    _check_space(dataset, output)
    if any(_file_name(url).endswith(".rar") for url, _ in dataset.archives):
        find_unrar()  # before hours of downloading
    for url in dataset.files:
        _fetch(url, Path(output, _file_name(url)))
    archives = list(dataset.archives)
    for url in dataset.link_lists:
        links = _fetch(url, Path(output, "archives", _file_name(url)))
        lines = links.read_text(encoding="utf-8").split()
        archives += [(link, "videos") for link in lines]
    shared = {folder for _, folder in archives if sum(f == folder for _, f in archives) > 1}
    for url, folder in archives:
        _fetch_and_unpack(url, output, folder, keep_archives, is_shared=folder in shared)
    print(f"{output}: complete")


def _check_space(dataset: DataSet, output: str) -> None:
    # An archive is deleted as soon as it is unpacked, so both sizes are needed at once only where
    # there is a single one.
    needed = dataset.unpacked_bytes + (0 if dataset.link_lists else dataset.download_bytes)
    used = sum(path.stat().st_size for path in Path(output).rglob("*") if path.is_file())
    free = shutil.disk_usage(output).free
    print(
        f"{output}: about {dataset.download_bytes / _GB:.1f} GB to download,"
        f" {dataset.unpacked_bytes / _GB:.1f} GB unpacked; {used / _GB:.1f} GB are there,"
        f" {free / _GB:.1f} GB are free",
        flush=True,
    )
    if needed > used + free:
        raise UserError(
            f"{output}: it takes {needed / _GB:.1f} GB and {free / _GB:.1f} GB are free: make room"
            " or choose another --output"
        )


def _file_name(url: str) -> str:
    return url.rpartition("/")[2]


def _fetch(url: str, path: Path) -> Path:
    with progress_bar(path.name) as update:
        return download(url, path, max_bytes=_MAX_BYTES, on_progress=update)


def _fetch_and_unpack(
    url: str, output: str, folder: str, keep_archives: bool, *, is_shared: bool
) -> None:
    name = _file_name(url)
    marker = Path(output, "archives", f"{name}.unpacked")
    if marker.exists():
        return
    archive = _fetch(url, Path(output, "archives", name))
    partial = Path(output, f".unpacking-{name}")
    shutil.rmtree(partial, ignore_errors=True)  # of a killed run
    partial.mkdir()
    unpack(archive, partial)
    content = _without_top_folder(partial)
    target = Path(output, folder)
    if is_shared:
        _merge(content, target)
    else:
        shutil.rmtree(target, ignore_errors=True)
        os.rename(content, target)
    shutil.rmtree(partial, ignore_errors=True)
    marker.touch()
    if not keep_archives:
        archive.unlink()
    print(f"{target}: {name} unpacked", flush=True)


def _without_top_folder(folder: Path) -> Path:
    inside = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else folder


def _merge(content: Path, target: Path) -> None:
    for path in sorted(content.rglob("*")):
        if path.is_file():
            place = target / path.relative_to(content)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, place)


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks a zip, tar or rar file into a folder that exists.

    Raises:
        UserError: it is broken, or no program for rar is installed.
    """
    try:
        if archive.suffix == ".rar":
            _unpack_rar(archive, folder)
        elif archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as zipped:
                zipped.extractall(folder)
        else:
            _unpack_tar(archive, folder)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError) as error:
        raise UserError(
            f"{archive} cannot be unpacked: {error}; delete it and run the command again"
        ) from error


def find_unrar() -> str:
    """The name of an installed program that unpacks rar. Raises `UserError` if there is none."""
    for program in _UNRAR:
        if shutil.which(program) and _knows_rar(program):
            return program
    raise UserError(
        f"UCF101.rar needs one of the programs {', '.join(_UNRAR)}: install it, for example with"
        " apt install unar, brew install unar or conda install libarchive"
    )


def _knows_rar(program: str) -> bool:
    # Debian's 7-Zip comes without its part for rar.
    if program not in ("7z", "7zz"):
        return True
    formats = subprocess.run([program, "i"], capture_output=True, text=True, errors="replace")
    return " rar " in formats.stdout.lower()


def _unpack_tar(archive: Path, folder: Path) -> None:
    """Files and folders below `folder`, and nothing else."""
    with tarfile.open(archive) as tar:
        if hasattr(tarfile, "data_filter"):
            tar.extractall(folder, filter="data")
            return
        for member in tar.getmembers():  # Python before 3.11.4
            path = PurePosixPath(member.name)
            inside = not path.is_absolute() and ".." not in path.parts
            if not (inside and (member.isfile() or member.isdir())):
                raise tarfile.TarError(f"{member.name} is no file or folder below it")
        tar.extractall(folder)


def _unpack_rar(archive: Path, folder: Path) -> None:
    program = find_unrar()
    words = [word.format(archive=archive, folder=folder) for word in _UNRAR[program]]
    done = subprocess.run([program, *words], capture_output=True, text=True, errors="replace")
    if done.returncode:
        reason = " ".join((done.stderr or done.stdout).split())[:300]
        raise UserError(
            f"{archive} cannot be unpacked: {program} says: {reason}; delete it and"
            " run the command again"
        )
