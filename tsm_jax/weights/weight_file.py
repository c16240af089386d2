"""Opening a file of weights that somebody else wrote; every error is one line that names it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader

from tsm_jax.errors import UserError
from tsm_jax.files import check_regular, reason
from tsm_jax.terminal import printable
from tsm_jax.weights.pickle_values import Refused

# How a PyTorch file of before 1.6 begins: the pickle of its magic number.
TORCH_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."


@contextmanager
def open_weights(path: str | os.PathLike[str], kind: str) -> Iterator[tuple[BufferedReader, int]]:
    """Gives the file and its size; within, `Refused` and errors of reading become UserErrors.

    Raises:
        UserError: it is missing, not a regular file, unreadable, refused, or too large.
    """
    check_regular(path, f"the {kind}")
    name = printable(path)
    try:
        with open(path, "rb") as file:
            _refuse_other_kinds(file.read(64))
            file.seek(0)
            yield file, os.fstat(file.fileno()).st_size
    except Refused as refusal:
        raise UserError(f"{name}: not a usable {kind}: {refusal}") from None
    except OSError as error:
        raise UserError(f"{name}: cannot be read: {reason(error)}") from None
    except MemoryError:
        raise UserError(f"{name}: its tensors do not fit into this machine's memory") from None


def _refuse_other_kinds(head: bytes) -> None:
    text = head.lstrip().lower()
    if not head:
        raise Refused("it is empty; download it again")
    if head.startswith(b"\x1f\x8b"):
        raise Refused("it is compressed with gzip; unpack it first")
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise Refused("it is a web page, not weights; download the file itself")
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        raise Refused("it is a text file, not weights; download the file itself")
