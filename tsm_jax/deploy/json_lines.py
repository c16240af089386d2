"""JSON lines of a run that can be interrupted and resumed.

While a run is unfinished, `FILE.unfinished` is kept beside its results: the request in one line,
then one line per answered video with the size of the results in bytes and the number of failures so
far. It tells the next run of the same request where to resume; a half-written line is dropped.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, BinaryIO

from tsm_jax.deploy.predictor import Predictor
from tsm_jax.errors import UserError
from tsm_jax.files import read_text, reason, write_lines

UNFINISHED, PICTURE_SUFFIX = ".unfinished", ".png"

_MARK = re.compile(r"\d+ \d+")


def request_of(predictor: Predictor, videos: Sequence[str], **settings: object) -> dict[str, Any]:
    """Returns what the answers depend on, and where pictures go, for `Results`."""
    names = "\0".join(videos).encode("utf-8", "surrogateescape")
    return {
        "model": predictor.fingerprint(),
        "labels": predictor.labels,
        "engine": predictor.engine.name,
        "precision": predictor.engine.precision,
        "protocol": predictor.protocol.name,
        "short_side": predictor.protocol.short_side,
        "crop_size": predictor.protocol.crop_size,
        **settings,
        "videos": hashlib.sha256(names).hexdigest(),
    }


class Results:
    """JSON lines, each written immediately; a context manager, to be entered before writing.

    Args:
        output: a file, `-` for standard output, or None for no output.
        request: what the results answer, see `request_of`.
        inputs: files that must not be overwritten.
        overwrite: replace finished results, or those of another request.

    Attributes:
        done: number of videos that an interrupted run of this request has answered.
        failed: number of videos that could not be read, including that run's.
        continued: whether this run resumes an interrupted one.

    Raises:
        UserError: the file exists and must not be replaced, or cannot be written.
    """

    def __init__(
        self,
        output: str | None,
        request: dict[str, Any],
        *,
        inputs: Iterable[str] = (),
        overwrite: bool = False,
    ):
        self.done = self.failed = self._size = 0
        self.continued = False
        self._output, self._request = output, json_line(request)
        self._file: BinaryIO | None = None
        self._journal: BinaryIO | None = None
        self._marks: list[str] = []
        self._journal_path = f"{output}{UNFINISHED}"
        self._can_continue = False
        if output in (None, "-"):
            return
        if os.path.isfile(output) or not os.path.exists(output):  # no device, pipe or folder
            self._can_continue = True
            if output.lower().endswith(PICTURE_SUFFIX):
                raise UserError(f"{output}: results are JSON lines; use --visualize for pictures")
            refuse_inputs((output, self._journal_path), inputs)
            self._find_start(output, overwrite)

    def write(self, values: dict[str, Any]) -> None:
        """Writes a line.

        Raises:
            UserError: the file cannot be written.
            OSError: standard output cannot be written.
        """
        if self._file is None:
            return
        line = json_line(values).encode() + b"\n"
        with nullcontext() if self._output == "-" else _writing(self._output):
            written = 0
            while written < len(line):  # an unbuffered file may accept only a part
                written += self._file.write(line[written:])
            self._file.flush()
        self._size += len(line)

    def finish_video(self, *, failed: bool) -> None:
        """Records that all lines of a video are written."""
        self.failed += failed
        if self._journal is not None:
            with _writing(self._journal_path):
                self._journal.write(f"{self._size} {self.failed}\n".encode())

    def __enter__(self) -> Results:
        if self._output == "-":
            if sys.stdout is None:
                raise UserError("cannot write to standard output: it is closed")
            sys.stdout.flush()
            self._file = sys.stdout.buffer
        elif self._output is not None:
            with _writing(self._output):
                self._file = self._open(self._output)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._output != "-" and self._file is not None:
            self._file.close()
        if self._journal is not None:
            self._journal.close()
            if kind is None:
                os.unlink(self._journal_path)

    def _open(self, output: str) -> BinaryIO:
        if not self._can_continue:
            # Without O_NONBLOCK, opening a pipe that nobody reads would block forever.
            handle = os.open(output, os.O_WRONLY | os.O_NONBLOCK)
            os.set_blocking(handle, True)
            return open(handle, "wb", buffering=0)
        os.makedirs(os.path.dirname(output) or ".", exist_ok=True)
        file = open(output, "ab", buffering=0)  # noqa: SIM115
        _lock(file, output)
        write_lines(self._journal_path, [self._request, *self._marks])
        self._journal = open(self._journal_path, "ab", buffering=0)  # noqa: SIM115
        file.truncate(self._size)
        return file

    def _find_start(self, output: str, overwrite: bool) -> None:
        if not os.path.exists(output) or not os.path.getsize(output):
            return
        request, *marks = _read_journal(self._journal_path)
        if request == self._request:
            self.continued = True
            size = os.path.getsize(output)
            self._marks = [mark for mark in marks if int(mark.split()[0]) <= size]
            self.done = len(self._marks)
            if self._marks:
                self._size, self.failed = map(int, self._marks[-1].split())
        elif not overwrite:
            raise UserError(
                f"{output} {_describe(request, self._request)}: choose another file, or"
                " --overwrite to replace it"
            )


@contextmanager
def _writing(path: str | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason(error)}") from error


def json_line(values: dict[str, Any]) -> str:
    r"""Returns valid UTF-8; other bytes in names are written as `\udcXX`, as Python does.

    Raises:
        ValueError: a number is not finite.
    """
    line = json.dumps(values, ensure_ascii=False, allow_nan=False)
    try:
        line.encode()
    except UnicodeEncodeError:
        return json.dumps(values, allow_nan=False)
    return line


def _read_journal(path: str) -> list[str]:
    """Returns the request and the complete marks; an empty request without a readable journal."""
    if not os.path.exists(path):
        return [""]
    lines = read_text(path, "the progress in").split("\n")[:-1]
    whole = lines and lines[0][:1] == "{" and all(map(_MARK.fullmatch, lines[1:]))
    return lines if whole else [""]


def _describe(found: str, wanted: str) -> str:
    if not found:
        return "already exists"
    old, new = json.loads(found), json.loads(wanted)
    differing = ", ".join(name for name in new if old.get(name) != new[name])
    return f"is the unfinished output of another request ({differing})"


def _lock(file: BinaryIO, path: str) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{path} is being written by another process: wait for it") from None
    except OSError:  # a file system without locks
        return


def refuse_inputs(outputs: Iterable[str], inputs: Iterable[str]) -> None:
    """Raises a UserError if an output is one of the inputs, under any name."""
    written = {_identity(path): path for path in outputs}
    written.pop(None, None)
    for path in inputs if written else ():
        if (same := written.get(_identity(path))) is not None:
            raise UserError(f"{same} is the input {path}: choose another output")


def check_new(path: str, inputs: Iterable[str], *, overwrite: bool) -> None:
    """Raises a UserError if a file is one of the inputs, or exists and must not be replaced."""
    refuse_inputs([path], inputs)
    if os.path.lexists(path) and not overwrite:
        raise UserError(f"{path} already exists: choose another file, or --overwrite to replace it")


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino
