"""One file over http: attempts, continuation where one broke off, and checks of what arrives.

What has arrived lies in `name.part`; `name.part.json` says which version of the file it is from,
so that a file that changed on the server is never glued together from two.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from tsm_jax.errors import UserError
from tsm_jax.weights.download_address import make_opener

OnProgress = Callable[[int, int | None], object]

ATTEMPTS = 5  # in a row that brought less than ENOUGH_BYTES
ENOUGH_BYTES = 2**20
MAX_ATTEMPTS = 100  # in all: a server could send something new each time
BACKOFF_SECONDS = 1.0  # before the second attempt; doubled for each further one
TIMEOUT_SECONDS = 30.0  # without any byte
_CHUNK = 2**18
_TEMPORARY_STATUS = (408, 425, 429, 500, 502, 503, 504)


class _Version(NamedTuple):
    """What identifies one version of a file on its server."""

    etag: str | None
    modified: str | None
    length: int | None

    @property
    def validator(self) -> str | None:
        """For If-Range: a weak ETag does not promise the same bytes."""
        is_strong = self.etag and not self.etag.startswith("W/")
        return self.etag if is_strong else self.modified


class _CutOff(Exception):
    """The transfer ended early; another attempt may go on."""


class _StartOver(Exception):
    """What was saved does not belong to what the server has now."""


class Transfer:
    """Brings `url` to `path`'s temporary name.

    Args:
        url: an address that `check_address` has passed.
        path: the final name, which is left alone.
        max_bytes: a larger file is refused.
        on_progress: called with the bytes so far and their total, None if the server is silent.
    """

    def __init__(self, url: str, path: Path, max_bytes: int, on_progress: OnProgress):
        self._url = url
        self._part = path.with_name(path.name + ".part")
        self._notes = path.with_name(path.name + ".part.json")
        self._max_bytes = max_bytes
        self._on_progress = on_progress
        self._opener = make_opener(url)

    def run(self) -> Path:
        """The complete file, still under its temporary name.

        Raises:
            UserError: the server refuses, keeps failing, or offers something unusable.
        """
        attempts = failures = 0
        reason: Any = None
        while failures < ATTEMPTS and attempts < MAX_ATTEMPTS:
            if failures:
                time.sleep(BACKOFF_SECONDS * 2 ** (failures - 1))
            before = self._saved_bytes()
            attempts += 1
            try:
                self._attempt()
                return self._part
            except _StartOver:
                self._forget()
                reason = "the file on the server keeps changing"
            except _CutOff as error:
                reason = error
            failures = 1 if self._saved_bytes() - before >= ENOUGH_BYTES else failures + 1
        raise UserError(
            f"{self._url}: download failed after {attempts} attempts: {reason};"
            " try again (it goes on where it stopped) or download the file yourself"
        )

    def _saved_bytes(self) -> int:
        return self._part.stat().st_size if self._part.exists() else 0

    def finish(self, path: Path) -> None:
        """Gives the complete file its final name."""
        os.replace(self._part, path)
        self._notes.unlink(missing_ok=True)

    def _forget(self) -> None:
        self._part.unlink(missing_ok=True)
        self._notes.unlink(missing_ok=True)

    def _attempt(self) -> None:
        version = self._saved_version()
        offset = self._saved_bytes()
        if offset and version and offset == version.length:
            return  # complete, and stopped before it was renamed
        headers = {"User-Agent": "tsm_jax"}
        if offset and version and version.validator:
            headers |= {"Range": f"bytes={offset}-", "If-Range": version.validator}
        with self._open(headers) as response:
            self._receive(response, offset, version)

    def _open(self, headers: dict[str, str]) -> Any:
        try:
            request = urllib.request.Request(self._url, headers=headers)
            return self._opener.open(request, timeout=TIMEOUT_SECONDS)
        except urllib.error.HTTPError as error:
            self._give_up_or_retry(error)
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise UserError(
                    f"{self._url}: the server's certificate is not trusted"
                    f" ({reason}); check the network's proxy"
                ) from None
            raise _CutOff(reason) from None
        except ValueError:
            raise UserError(f"{self._url}: the server leads to a malformed address") from None

    def _give_up_or_retry(self, error: urllib.error.HTTPError) -> NoReturn:
        error.close()
        if error.code == 416:  # the saved part is longer than the file is now
            raise _StartOver
        if error.code in _TEMPORARY_STATUS:
            raise _CutOff(f"the server answers {error.code} {error.reason}")
        raise UserError(
            f"{self._url}: the server answers {error.code} {error.reason}; check the address"
        )

    def _saved_version(self) -> _Version | None:
        try:
            notes = json.loads(self._notes.read_text(encoding="utf-8"))
            version = _Version(notes["etag"], notes["modified"], notes["length"])
            return version if notes["url"] == self._url else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _receive(self, response: Any, offset: int, version: _Version | None) -> None:
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise UserError(f"{self._url}: the server compresses the file; download it yourself")
        if response.status == 206:
            offered = _continued(response, offset, version)
        else:  # the whole file, also from a server that does not know Range
            offset = 0
            offered = _offered(response, _length(response.headers.get("Content-Length")))
            self._forget()
            self._notes.write_text(
                json.dumps({"url": self._url, **offered._asdict()}), encoding="utf-8"
            )
        is_chunked = response.headers.get("Transfer-Encoding", "").lower() == "chunked"
        if offered.length is None and not is_chunked:
            raise UserError(
                f"{self._url}: the server does not tell the file's length, so that a broken"
                " download would go unnoticed; download it yourself"
            )
        self._check_size(offered.length or 0)
        with self._part.open("ab") as file:
            done = self._save(response, file, offset, offered.length)
            file.flush()
            os.fsync(file.fileno())
        if offered.length is not None and done != offered.length:
            raise _CutOff(f"it broke off after {done:,} of {offered.length:,} bytes")

    def _save(self, response: Any, file: Any, done: int, total: int | None) -> int:
        self._on_progress(done, total)
        while chunk := _read(response):
            self._check_size(done + len(chunk))
            file.write(chunk)
            done += len(chunk)
            self._on_progress(done, total)
        return done

    def _check_size(self, length: int) -> None:
        if length > self._max_bytes:
            self._forget()
            raise UserError(
                f"{self._url}: is larger than {self._max_bytes:,} bytes, the limit for weights;"
                " download it yourself if it is meant"
            )


def _read(response: Any) -> bytes:
    try:
        return response.read(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _CutOff(error) from None


def _length(text: str | None) -> int | None:
    return int(text) if text and re.fullmatch(r"[0-9]{1,18}", text) else None


def _offered(response: Any, length: int | None) -> _Version:
    return _Version(response.headers.get("ETag"), response.headers.get("Last-Modified"), length)


def _continued(response: Any, offset: int, version: _Version | None) -> _Version:
    """The version that a partial answer belongs to, if it really continues what was saved."""
    unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
    extent, _, total = rest.partition("/")
    offered = _offered(response, _length(total))
    continues = unit == "bytes" and extent.partition("-")[0] == str(offset)
    if not continues or offered.length is None:
        raise _StartOver
    if version is None or offered.length != version.length or offered.etag != version.etag:
        raise _StartOver
    return offered
