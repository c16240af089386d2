"""Errors that a user can fix; the commands print them as one line and exit with code 1."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A user's mistake or a broken file.

    The message is one line that names the culprit (file, line of a list, config key) and says
    what to do about it. Any other exception is a bug in this package and keeps its traceback.
    """


class StopJobsError(UserError):
    """An error that is not specific to one file, such as a full disk: it stops all work."""


class UnreadableClipError(UserError):
    """A video file or a folder of frames that cannot be decoded."""


@contextmanager
def naming(source: str) -> Iterator[None]:
    """Prefixes the message of a UserError with `source`, usually the name of a file."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
