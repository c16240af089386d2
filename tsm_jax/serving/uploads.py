"""Writes request bodies to temporary files, checking the limits as they arrive."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from tsm_jax.files import reason
from tsm_jax.serving.limits import Limits, Refused

_PREFIX = "tsm_jax-serve-"
_LOCK = "lock"
_NAME_LENGTH = 255
_HEADER_BYTES = 4096


class Uploads:
    """The folder of a service's temporary files; deletes those left by killed services.

    Raises:
        OSError: temporary files cannot be created.
    """

    def __init__(self, limits: Limits):
        self.limits = limits
        self.stored = 0  # bytes
        _remove_abandoned()
        self.folder = tempfile.mkdtemp(prefix=_PREFIX)
        self._lock = _lock(self.folder)

    @asynccontextmanager
    async def receive(self, request: Request) -> AsyncGenerator[Upload, None]:
        """Yields the complete video of the body, in a file that is deleted afterwards.

        Raises:
            Refused: the body is too large, too slow, empty, or a form without exactly one file.
            ClientDisconnect: the client is gone.
        """
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > self.limits.upload_bytes:
            raise self._too_large()
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise Refused("unsupported_encoding", "send the video without a Content-Encoding")
        upload = Upload(self)
        try:
            await self._read(request, upload)
            upload.finish()
            if not upload.size:
                raise Refused("unreadable_video", "the body is empty: send a video")
            yield upload
        finally:
            upload.remove()

    async def _read(self, request: Request, upload: Upload) -> None:
        form = _form(request, upload)
        if form is None:
            upload.open()
        start, received = time.monotonic(), 0
        try:
            while True:
                allowed = self.limits.idle_seconds + received / self.limits.upload_rate
                async with asyncio.timeout(max(start + allowed - time.monotonic(), 0)):
                    message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                data = message.get("body", b"")
                received += len(data)
                if received > self.limits.upload_bytes:
                    raise self._too_large()
                (form or upload).write(data)
                if not message.get("more_body", False):
                    if form is not None:
                        form.end()
                    return
        except TimeoutError:
            raise Refused(
                "upload_too_slow",
                f"{received} bytes arrived in {time.monotonic() - start:.0f} s: send at least"
                f" {self.limits.upload_rate} per second",
            ) from None

    def _too_large(self) -> Refused:
        limit = self.limits.upload_bytes
        return Refused(
            "upload_too_large", f"the body is too large: at most {limit} bytes are allowed"
        )

    def close(self) -> None:
        """Deletes the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)


class Upload:
    """An uploaded video in a temporary file.

    Attributes:
        name: the sender's file name, without folders.
        size: in bytes.
    """

    def __init__(self, uploads: Uploads):
        self._uploads, self._handle = uploads, -1
        self.path, self.name, self.size = "", "upload", 0

    def open(self, name: str = "") -> None:
        self.name = name or self.name
        # FFmpeg recognizes some formats only by their file names.
        suffix = re.search(r"\.[A-Za-z0-9]{1,10}$", name)
        try:
            self._handle, self.path = tempfile.mkstemp(
                suffix[0] if suffix else "", dir=self._uploads.folder
            )
        except OSError as error:
            raise _no_space(error) from error

    def write(self, data: bytes) -> None:
        """Appends to the file.

        Raises:
            Refused: the disk is full, or the service's share of it.
        """
        if self._uploads.stored + len(data) > self._uploads.limits.storage_bytes:
            raise Refused("busy", "too many bytes are being uploaded at once")
        self.size += len(data)
        self._uploads.stored += len(data)
        view = memoryview(data)
        try:
            while view:  # the system may write only a part
                view = view[os.write(self._handle, view) :]
        except OSError as error:
            raise _no_space(error) from error

    def finish(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def remove(self) -> None:
        self.finish()
        self._uploads.stored -= self.size
        if self.path:
            with suppress(FileNotFoundError):
                os.unlink(self.path)


class _Form:
    """Parser of a form with one field, `file`."""

    def __init__(self, upload: Upload, boundary: bytes):
        self._upload, self._files, self._whole = upload, 0, False
        self._header: list[bytes] = [b"", b""]
        self._disposition = b""
        with _readable():
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_field": lambda data, start, end: self._add(0, data[start:end]),
                    "on_header_value": lambda data, start, end: self._add(1, data[start:end]),
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._open,
                    "on_part_data": lambda data, start, end: upload.write(data[start:end]),
                    "on_end": self._end_form,
                },
                max_header_size=_HEADER_BYTES,
            )

    def write(self, data: bytes) -> None:
        with _readable():
            self._parser.write(data)

    def end(self) -> None:
        if not self._whole:
            raise Refused("bad_request", "the form ends before its last boundary")
        if not self._files:
            raise _wrong_fields()

    def _begin(self) -> None:
        self._disposition = b""

    def _add(self, part: int, data: bytes) -> None:
        self._header[part] += data

    def _end_header(self) -> None:
        name, value = self._header
        if name.lower() == b"content-disposition":
            self._disposition = value
        self._header = [b"", b""]

    def _open(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._files += 1
        if options.get(b"name") != b"file" or self._files > 1:
            raise _wrong_fields()
        name = options.get(b"filename", b"").decode("utf-8", "replace")
        self._upload.open(re.split(r"[/\\]", name)[-1][-_NAME_LENGTH:])

    def _end_form(self) -> None:
        self._whole = True


def _form(request: Request, upload: Upload) -> _Form | None:
    """Returns the parser of a form, or None if the body is the video itself."""
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data":
        return None
    if not options.get(b"boundary"):
        raise Refused("bad_request", "the Content-Type of the form has no boundary")
    return _Form(upload, options[b"boundary"])


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except FormParserError as error:
        raise Refused("bad_request", f"cannot parse the form: {reason(error)}") from error


def _wrong_fields() -> Refused:
    return Refused(
        "bad_request", "the form must have one field, `file`; options belong in the URL: ?top_k=3"
    )


def _no_space(error: OSError) -> Refused:
    return Refused("busy", f"no space for uploads: {reason(error)}")


def _lock(folder: str) -> int:
    """Locks a folder until this process ends, however it ends; returns the lock's handle.

    Raises:
        OSError: another process holds the lock, or it cannot be created.
    """
    handle = os.open(os.path.join(folder, _LOCK), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise
    return handle


def _remove_abandoned() -> None:
    for folder in Path(tempfile.gettempdir()).glob(_PREFIX + "*"):
        with suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            os.close(_lock(str(folder)))
            shutil.rmtree(folder, ignore_errors=True)
