"""Errors that a user can fix; the commands print them as one line and exit with code 1."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A user's mistake or a broken file.

    The message is one line that names the thing (file, list line, config key) and says what
    to do about it. Everything else that is raised is a defect of ours and keeps its traceback.
    """


class StopJobsError(UserError):
    """A mistake that is not that of one file among many, such as a full disk: all work ends."""


class UnreadableClipError(UserError):
    """A video file or a folder of frames that cannot be decoded."""


@contextmanager
def naming(source: str) -> Iterator[None]:
    """Puts the name of a file in front of what a UserError says is wrong with it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
