"""Unpacks archives into folders: completely and with verified checksums, or with an error.

Only files and folders below the target are accepted. The size to which an archive may grow is
limited.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import shutil
import stat
import struct
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from tsm_jax import files
from tsm_jax.errors import UserError
from tsm_jax.terminal import printable

# Videos hardly shrink and text rarely by a factor of ten, but a bomb of zeros by a thousand.
MAX_RATIO = 100
SMALL = 100 * 10**6  # bytes that are accepted whatever the ratio
MAX_MEMBERS = 10**6

# Programs that unpack rar, and their arguments. The one that certainly notices wrong checksums is
# the first: `unrar` may be the free one, which, like bsdtar, misses some.
UNRAR = {
    "unar": ["-quiet", "-force-overwrite", "-no-directory", "-o", "{folder}", "{archive}"],
    "unrar": ["x", "-idq", "-y", "-p-", "{archive}", "{folder}/"],
    "7z": ["x", "-y", "-bd", "-bso0", "-o{folder}", "{archive}"],
    "7zz": ["x", "-y", "-bd", "-bso0", "-o{folder}", "{archive}"],
    "bsdtar": ["-x", "-f", "{archive}", "-C", "{folder}"],
}
_COMPRESSED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
_CHUNK = 2**20


class _Damaged(Exception):
    """Something is wrong with an archive; the message says what."""


# What the standard library raises for damaged archives, including an `OSError` without a number.
_FAULTS = (
    *(_Damaged, zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error),
    *(EOFError, NotImplementedError, ValueError, OSError),
)


class _Member(NamedTuple):
    """A file, or a folder (without content), in an archive."""

    name: str
    size: int
    content: IO[bytes] | None


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks a zip, tar or rar file into an empty folder.

    Raises:
        UserError: It is damaged, encrypted or suspicious, there is no space, or no program for rar
            is installed. What was unpacked until then stays in `folder`.
    """
    try:
        limit = _Limit(archive, folder)
        if archive.suffix.lower() == ".rar":
            _unpack_rar(archive, folder, limit)
        else:
            members = _zip_members if archive.suffix.lower() == ".zip" else _tar_members
            total = 0
            for count, member in enumerate(members(archive), start=1):
                total += member.size
                limit.check(total, count)
                _write(member, _inside(folder, member.name))
        if not any(folder.iterdir()):
            raise _Damaged("it is empty")
    except _FAULTS as error:
        if isinstance(error, OSError) and error.errno:
            raise UserError(f"cannot unpack {archive} to {folder}: {files.reason(error)}") from None
        raise UserError(
            f"{archive} cannot be unpacked: {printable(files.reason(error))}; delete it and run the"
            " command again"
        ) from error


class _Limit:
    """Limits what may come out of an archive."""

    def __init__(self, archive: Path, folder: Path):
        size = archive.stat().st_size
        self._folder = folder
        self._free = shutil.disk_usage(folder).free
        self._ratio_bytes = MAX_RATIO * size + SMALL

    def check_written(self) -> None:
        """Checks how much a program has written so far."""
        self.check(max(0, self._free - shutil.disk_usage(self._folder).free), 0)

    def check(self, num_bytes: int, members: int) -> None:
        if members > MAX_MEMBERS:
            raise _Damaged(f"it has more than {MAX_MEMBERS:,} members")
        if num_bytes > self._ratio_bytes:
            raise _Damaged(f"it grows to more than {MAX_RATIO} times its size")
        if num_bytes >= self._free:
            raise UserError(f"cannot unpack to {self._folder}: no space left on the disk")


def _inside(folder: Path, name: str) -> str:
    path = os.path.abspath(folder / name)
    if not Path(path).is_relative_to(os.path.abspath(folder)):
        raise _Damaged(f"{name!r} lies outside the target folder")
    return path


def _write(member: _Member, path: str) -> None:
    if member.content is None:
        os.makedirs(path, exist_ok=True)
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with member.content as content, open(path, "wb") as file:
        shutil.copyfileobj(content, file, _CHUNK)
        if file.tell() != member.size:
            raise _Damaged(f"{member.name!r} is truncated")


class _StrictHeader(tarfile.TarInfo):
    """A tar header that must be intact; `tarfile` takes damaged ones for the archive's end."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # a block of zeros: the end
            raise
        except tarfile.HeaderError as error:
            raise _Damaged(f"a header is damaged or missing ({error})") from None


def _tar_members(archive: Path) -> Iterator[_Member]:
    with (
        _decompressed(archive) as stream,
        tarfile.open(fileobj=stream, mode="r|", tarinfo=_StrictHeader) as tar,
    ):
        for member in tar:
            if not (member.isfile() or member.isdir()):
                raise _Damaged(f"{member.name!r} is neither a file nor a folder")
            yield _Member(member.name, member.size, tar.extractfile(member))
        # The checksum of the compressed stream comes after everything else.
        while block := tar.fileobj.read(_CHUNK):  # type: ignore[union-attr]
            if block.strip(b"\0"):
                raise _Damaged("there is data after the end of the archive")


@contextmanager
def _decompressed(archive: Path) -> Iterator[IO[bytes]]:
    with open(archive, "rb") as file:
        start = file.read(6)
        file.seek(0)
        opened = next((o for magic, o in _COMPRESSED.items() if start.startswith(magic)), None)
        if opened is None:
            yield file
            return
        with opened(file) as stream:
            yield stream  # type: ignore[misc]


def _zip_members(archive: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(archive) as zipped:
        for info in zipped.infolist():
            mode = info.external_attr >> 16
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _Damaged(f"{info.filename!r} is neither a file nor a folder")
            if info.flag_bits & 1:
                raise _Damaged(f"{info.filename!r} is encrypted")
            content = None if info.is_dir() else zipped.open(info)
            yield _Member(info.filename, info.file_size, content)


def find_unrar() -> str:
    """Returns the name of an installed program that unpacks rar; a UserError if there is none."""
    for program in filter(shutil.which, UNRAR):
        # Debian's 7-Zip lacks support for rar.
        if program not in ("7z", "7zz"):
            return program
        formats = subprocess.run([program, "i"], capture_output=True, text=True, errors="replace")
        if " rar " in formats.stdout.lower():
            return program
    raise UserError(
        f"UCF101.rar needs one of the programs {', '.join(UNRAR)}: install one, for example with"
        " apt install unar, brew install unar or conda install libarchive"
    )


def _unpack_rar(archive: Path, folder: Path, limit: _Limit) -> None:
    program = find_unrar()
    words = [word.format(archive=archive, folder=folder) for word in UNRAR[program]]
    with subprocess.Popen(
        [program, *words],
        stdin=subprocess.DEVNULL,  # otherwise it would ask for a password
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        try:
            output = _watched(process, limit)
        finally:
            process.kill()
    if process.returncode:
        raise _Damaged(f"{program} says: {' '.join(output.split())[:300]}")
    for count, path in enumerate(folder.rglob("*"), start=1):
        limit.check(0, count)
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise _Damaged(f"{path.name!r} is neither a file nor a folder")


def _watched(process: subprocess.Popen[str], limit: _Limit) -> str:
    """Returns a program's output once it ends; raises if it has written too much."""
    while True:
        try:
            return process.communicate(timeout=1)[0]
        except subprocess.TimeoutExpired:
            limit.check_written()
