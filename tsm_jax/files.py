"""Reads untrusted files, and writes files atomically.

Dataclasses that are stored as JSON declare the allowed values of their fields as metadata:
`field(metadata=one_of((1, 2)))`.
"""

from __future__ import annotations

import hashlib
import json
import os
import reprlib
import shutil
import stat
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, TypeVar

from tsm_jax.errors import UserError
from tsm_jax.terminal import printable

_Stored = TypeVar("_Stored")

# In bytes: far above any list, recipe or description, far below the memory of a small machine.
TEXT_LIMIT = 1 << 30
JSON_LIMIT = 64 << 20


def check_regular(path: str | os.PathLike[str], what: str) -> None:
    """Raises a UserError unless `path` is a regular file.

    Reading from a pipe could block forever, and a device such as /dev/zero would fill the memory.

    Args:
        what: what the file is, for messages: "the list".
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {what} {path}: {reason(error)}") from error
    if stat.S_ISDIR(mode):
        raise UserError(f"cannot read {what} {path}: it is a folder")
    if not stat.S_ISREG(mode):
        raise UserError(f"cannot read {what} {path}: it is not a regular file")


def read_text(
    path: str | os.PathLike[str], what: str, *, limit: int = TEXT_LIMIT, errors: str = "strict"
) -> str:
    """Returns the text of a UTF-8 file, without a byte order mark.

    Args:
        what: what the file is, for messages.
        limit: in bytes; larger files are refused before they are read.
        errors: as for `bytes.decode`; "surrogateescape" keeps file names that are not UTF-8.

    Raises:
        UserError: the file is missing, not a regular file, too large or not UTF-8.
    """
    check_regular(path, what)
    try:
        size = os.path.getsize(path)
        if size > limit:
            raise UserError(f"cannot read {what} {path}: {size} bytes exceed the limit of {limit}")
        with open(path, encoding="utf-8-sig", errors=errors, newline="") as file:
            return file.read()
    except UnicodeDecodeError:
        raise UserError(f"cannot read {what} {path}: it is not UTF-8 text") from None
    except OSError as error:
        raise UserError(f"cannot read {what} {path}: {reason(error)}") from error


def read_json(path: str | os.PathLike[str], what: str, *, limit: int = JSON_LIMIT) -> Any:
    """Returns the content of a JSON file; `NaN` and `Infinity`, which are not JSON, are refused.

    Raises:
        UserError: as for `read_text`, or the text is not JSON.
    """
    text = read_text(path, what, limit=limit)
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise UserError(f"cannot read {what} {path}: it is nested too deeply") from None
    except ValueError as error:
        raise UserError(f"cannot read {what} {path}: it is not valid JSON: {error}") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[str]:
    """Yields the name of a temporary file to write, which replaces `path` on success.

    The file is flushed to disk first. After an error `path` is unchanged and no temporary file is
    left.

    Raises:
        UserError: the system refuses (no permission, no space).
    """
    path = os.fspath(path)
    if os.path.exists(path) and not os.path.isfile(path):  # root could overwrite /dev/null
        raise UserError(f"cannot write {path}: it is not a regular file")
    folder, name = os.path.split(os.path.abspath(path))
    partial = ""
    try:
        os.makedirs(folder, exist_ok=True)
        handle, partial = tempfile.mkstemp(prefix=".partial-", dir=folder)
        os.close(handle)
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(partial, 0o666 & ~_umask())
        os.replace(partial, os.path.join(folder, name))
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason(error)}") from error
    finally:
        if partial and os.path.lexists(partial):
            os.unlink(partial)


@contextmanager
def new_folder(path: str | os.PathLike[str], *, replace: bool = False) -> Iterator[str]:
    """Yields the name of a temporary folder to fill, which is renamed to `path` on success.

    After an error `path` is unchanged and no temporary folder is left.

    Args:
        replace: replace and delete an existing folder; the caller must have checked its content.

    Raises:
        UserError: `path` already exists, or the system refuses (no permission, no space).
    """
    path = os.fspath(path)
    if os.path.lexists(path) and not replace:
        raise UserError(f"{path} already exists: delete it or choose another path")
    parent = os.path.dirname(os.path.abspath(path))
    staging = earlier = ""
    try:
        os.makedirs(parent, exist_ok=True)
        staging = tempfile.mkdtemp(prefix=".partial-", dir=parent)
        os.chmod(staging, 0o777 & ~_umask())
        yield staging
        if os.path.isdir(path) and replace:
            earlier = tempfile.mkdtemp(prefix=".earlier-", dir=parent)
            os.rename(path, earlier)
        os.rename(staging, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason(error)}") from error
    finally:
        if earlier and not os.path.lexists(path):
            os.rename(earlier, path)
        for folder in filter(os.path.isdir, (staging, earlier)):
            shutil.rmtree(folder, ignore_errors=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes or replaces a UTF-8 file; surrogate escapes (undecodable file names) become bytes."""
    with (
        replacing(path) as partial,
        open(partial, "w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        file.write(text)


def write_lines(path: str | os.PathLike[str], lines: Iterable[str]) -> None:
    """Writes or replaces a UTF-8 file with one item per line."""
    write_text(path, "".join(f"{line}\n" for line in lines))


def write_json(path: str | os.PathLike[str], values: Any, *, indent: int | None = 2) -> None:
    """Writes or replaces a JSON file.

    Raises:
        ValueError: a number is not finite.
        UserError: the file cannot be written.
    """
    write_text(path, json.dumps(values, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def sha256(path: str | os.PathLike[str]) -> str:
    """Returns the SHA-256 of a file in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def reason(error: BaseException) -> str:
    """Returns the reason of an error in a few words, on one line."""
    words = getattr(error, "strerror", None) or " ".join(str(error).split())
    return words or type(error).__name__


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def one_of(choices: Collection[Any]) -> dict[str, Any]:
    """Returns metadata for a field with a fixed set of values."""
    return {"choices": choices}


def between(low: int, high: int) -> dict[str, Any]:
    """Returns metadata for an integer field from `low` to `high`, both included."""
    return {"range": (low, high)}


def check_fields(values: Any) -> None:
    """Raises a UserError unless every field of a dataclass conforms to its metadata.

    `True` and `8.0` do not count as integers.
    """
    for item in fields(values):
        value = getattr(values, item.name)
        wanted = _wanted(value, **item.metadata)
        if wanted:
            name = f"{type(values).__name__.lower()}.{item.name}"
            raise UserError(f"{name} is {shown(value)}: it must be {wanted}")


def from_json(kind: type[_Stored], values: Any) -> _Stored:
    """Creates a dataclass from a JSON object, which must have exactly its fields.

    Raises:
        UserError: a key is missing or unknown, or has an invalid value.
    """
    part = kind.__name__.lower()
    if not isinstance(values, dict):
        raise UserError(f"{part} is {shown(values)}: it must be an object")
    names = {item.name for item in fields(kind)}  # pyright: ignore[reportArgumentType]
    for problem, keys in (("missing", names - values.keys()), ("unknown", values.keys() - names)):
        if keys:
            raise UserError(f"{part}.{printable(min(keys))} is {problem}")
    return kind(**values)


def upgraded(
    values: dict[str, Any], version: Any, upgrades: Sequence[Callable[[Any], Any]], what: str
) -> dict[str, Any]:
    """Upgrades stored values to the newest version.

    Args:
        version: the version number that was stored with the values, from 1.
        upgrades: functions from version 1 to 2, from 2 to 3 and so on; each takes a dictionary and
            returns a new one. They spell out the values of their version, because defaults may
            change later.
        what: what is upgraded, for messages: "the saved recipe".

    Raises:
        UserError: `version` is not a version number, or was written by a newer tsm_jax.
    """
    newest = len(upgrades) + 1
    if type(version) is not int or version < 1:
        raise UserError(f"{what} has version {shown(version)}, which is not a version number")
    if version > newest:
        raise UserError(
            f"{what} has version {version}, but this tsm_jax reads only up to version {newest}:"
            " use a newer tsm_jax"
        )
    for upgrade in upgrades[version - 1 :]:
        values = upgrade(values)
    return values


def shown(value: Any) -> str:
    """Returns a short one-line representation of a value for messages."""
    return printable(reprlib.repr(value))


def _wanted(
    value: Any, *, choices: Collection[Any] = (), range: tuple[int, int] | None = None
) -> str:
    """Returns what a value should have been, or an empty string if it is valid."""
    if choices and not any(type(value) is type(choice) and value == choice for choice in choices):
        return f"one of {', '.join(map(str, choices))}"
    if range and not (type(value) is int and range[0] <= value <= range[1]):
        return f"an integer from {range[0]} to {range[1]}"
    return ""
