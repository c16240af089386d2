"""Downloads a file once and keeps it: checked, continued where it broke off, locked.

Beside the file `name` lie `name.sha256` (of what was downloaded, as `sha256sum` writes it) and
`name.lock`. Until it is complete, what has arrived lies in `name.part`; `name.part.json` says which
version of the file it is from, so that a file that changed on the server is never glued together
from two.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from tsm_jax import files
from tsm_jax.errors import UserError
from tsm_jax.terminal import printable

try:
    import fcntl
except ImportError:  # Windows: two processes may then spoil each other's part, and start over
    fcntl = None

OnProgress = Callable[[int, int | None], object]

ATTEMPTS = 5  # in a row that brought less than ENOUGH_BYTES
ENOUGH_BYTES = 2**20
MAX_ATTEMPTS = 100  # in all: a server could send something new each time
BACKOFF_SECONDS = 1.0  # before the second attempt; doubled for each further one
TIMEOUT_SECONDS = 30.0  # without any byte
WINDOW_SECONDS = 60.0  # within which MIN_RATE counts
MIN_RATE = 5000  # bytes per second; an attempt that is slower has failed
_CHUNK = 2**18
_TEMPORARY_STATUS = (408, 425, 429, 500, 502, 503, 504)
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_WEB_PAGE = (b"<!doctype html", b"<html")


def download(
    url: str,
    path: Path,
    *,
    what: str,
    setting: str,
    max_bytes: int,
    sha256: str = "",
    on_progress: OnProgress = lambda done, total: None,
) -> Path:
    """Gives `path` back with the content of `url` in it; later calls find it there.

    Args:
        url: https; plain http only to this machine itself.
        setting: what the user changes to store it elsewhere, for messages: "--output".
        max_bytes: a larger file is refused, before or during the download.
        sha256: of the content, in hexadecimal digits: as many of the first as are published.
        on_progress: called with the bytes so far and their total, None if the server is silent.

    Raises:
        UserError: the address is not allowed, the server refuses, keeps failing, is too slow or
            sends a web page, the file is empty, too large or not that of the checksum, or the file
            at `path` is not the one that was downloaded.
    """
    check_address(url, url)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Only one process at a time downloads a file; the others wait and then find it.
        with path.with_name(path.name + ".lock").open("ab") as lock:
            if fcntl:
                fcntl.flock(lock, fcntl.LOCK_EX)  # closing releases it
            if not path.exists():
                _Transfer(url, path, what, max_bytes, sha256, on_progress).run()
            else:
                _check_recorded_hash(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be stored: {files.reason(error)};"
            f" free some space or choose another folder with {setting}"
        ) from None
    return path


def _record_hash(path: Path, digest: str) -> None:
    files.write_text(f"{path}.sha256", f"{digest}  {path.name}\n")


def _check_recorded_hash(path: Path) -> None:
    files.check_regular(path, "the downloaded file")
    digest = files.sha256(path)
    if not os.path.exists(f"{path}.sha256"):
        _record_hash(path, digest)
    elif files.read_text(f"{path}.sha256", "the checksum", errors="replace").split()[:1] != [
        digest
    ]:
        raise UserError(
            f"{path}: is not the file that was downloaded (its SHA-256 differs from the one in"
            f" {path.name}.sha256); delete it and try again"
        )


def check_address(url: str, first_url: str) -> None:
    """https, or http to this machine if that was what the user asked for.

    A server must not send us to another scheme: `file:` would read from this machine.
    """
    kind = _kind(url)
    if kind == "https" or (kind == "local" and _kind(first_url) == "local"):
        return
    how = "" if url == first_url else f"{first_url} leads to "
    raise UserError(f"{how}{url!a}: not an https address; download the file yourself")


def _kind(url: str) -> str:
    """`https`, `local` for http to this machine, or nothing."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:  # a malformed IPv6 address or port
        return ""
    # A space or an umlaut would break the request.
    if not re.fullmatch(r"[!-~]+", url) or not parts.hostname:
        return ""
    if parts.scheme == "http" and parts.hostname in _LOOPBACK:
        return "local"
    return "https" if parts.scheme == "https" else ""


class _CheckedRedirect(urllib.request.HTTPRedirectHandler):
    """With this and a checked first address, the opener's other schemes are never reached."""

    def __init__(self, first_url: str):
        self._first_url = first_url

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        check_address(newurl, self._first_url)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


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


@dataclass
class _Transfer:
    """Brings `url`, which `check_address` has passed, to `path`'s temporary name."""

    url: str
    path: Path
    what: str
    max_bytes: int
    sha256: str
    on_progress: OnProgress

    def __post_init__(self):
        self._part = self.path.with_name(self.path.name + ".part")
        self._notes = self.path.with_name(self.path.name + ".part.json")
        direct = [urllib.request.ProxyHandler({})] if _kind(self.url) == "local" else []
        self._opener = urllib.request.build_opener(_CheckedRedirect(self.url), *direct)
        self._lock = threading.Lock()
        self._arrived = 0  # bytes, in all attempts

    def run(self) -> None:
        """Attempts it until the file is complete, and gives it its name."""
        attempts = failures = 0
        reason: object = None
        while failures < ATTEMPTS and attempts < MAX_ATTEMPTS:
            if failures:
                time.sleep(BACKOFF_SECONDS * 2 ** (failures - 1))
            before = self._saved_bytes()
            attempts += 1
            try:
                self._watched_attempt()
                return self._finish()
            except _StartOver:
                self._forget()
                reason = "the file on the server keeps changing"
            except _CutOff as error:
                reason = error
            failures = 1 if self._saved_bytes() - before >= ENOUGH_BYTES else failures + 1
        raise UserError(
            f"{self.url}: the download of {self.what} failed after {attempts} attempts:"
            f" {_words(reason)}; try again (it goes on where it stopped) or download the file"
            " yourself"
        )

    def _saved_bytes(self) -> int:
        return self._part.stat().st_size if self._part.exists() else 0

    def _finish(self) -> None:
        self._check_content()
        # The hash comes first, so that the file never lacks one.
        digest = files.sha256(self._part)
        if not digest.startswith(self.sha256):
            self._forget()
            raise UserError(
                f"{self.url}: what arrived is not the published file: its SHA-256 begins with"
                f" {digest[:8]}, not {self.sha256}; it was deleted, try again"
            )
        _record_hash(self.path, digest)
        os.replace(self._part, self.path)
        self._forget()

    def _forget(self) -> None:
        self._part.unlink(missing_ok=True)
        self._notes.unlink(missing_ok=True)

    def _watched_attempt(self) -> None:
        """One attempt, in a thread of its own, which is abandoned once it is too slow.

        A socket's timeout starts anew with every byte, and that of a name server is not ours.
        """
        abandoned = threading.Event()
        errors: list[BaseException] = []

        def attempt() -> None:
            try:
                self._attempt(abandoned)
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=attempt, daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                before = self._arrived
                thread.join(WINDOW_SECONDS)
                if thread.is_alive() and self._arrived - before < MIN_RATE * WINDOW_SECONDS:
                    raise _CutOff(f"it is slower than {MIN_RATE:,} bytes a second")
        finally:
            with self._lock:
                abandoned.set()
        if errors:
            raise errors[0]

    @contextlib.contextmanager
    def _turn(self, abandoned: threading.Event) -> Iterator[None]:
        """Guards every change of the files: an abandoned attempt must not disturb the next one."""
        with self._lock:
            if abandoned.is_set():
                raise _CutOff
            yield

    def _attempt(self, abandoned: threading.Event) -> None:
        version = self._saved_version()
        offset = self._saved_bytes()
        if offset and version and offset == version.length:
            return  # complete, and stopped before it was renamed
        headers = {"User-Agent": "tsm_jax"}
        if offset and version and version.validator:
            headers |= {"Range": f"bytes={offset}-", "If-Range": version.validator}
        with self._open(headers) as response:
            self._receive(response, offset, version, abandoned)

    def _open(self, headers: dict[str, str]) -> Any:
        try:
            request = urllib.request.Request(self.url, headers=headers)
            return self._opener.open(request, timeout=TIMEOUT_SECONDS)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416:  # the saved part is longer than the file is now
                raise _StartOver from None
            answer = f"the server answers {error.code} {_words(error.reason)}"
            if error.code in _TEMPORARY_STATUS:
                raise _CutOff(answer) from None
            raise UserError(f"{self.url}: {answer}; check the address") from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise UserError(
                    f"{self.url}: the server's certificate is not trusted"
                    f" ({_words(reason)}); check the network's proxy"
                ) from None
            raise _CutOff(reason) from None
        except ValueError:
            raise UserError(f"{self.url}: the server leads to a malformed address") from None

    def _saved_version(self) -> _Version | None:
        try:
            notes = json.loads(self._notes.read_text(encoding="utf-8"))
            version = _Version(notes["etag"], notes["modified"], notes["length"])
            return version if notes["url"] == self.url else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _receive(
        self, response: Any, offset: int, version: _Version | None, abandoned: threading.Event
    ) -> None:
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise UserError(f"{self.url}: the server compresses the file; download it yourself")
        if response.status == 206:
            offered = _continued(response, offset, version)
        else:  # the whole file, also from a server that does not know Range
            offset = 0
            offered = _offered(response, response.headers.get("Content-Length", ""))
            with self._turn(abandoned):
                self._forget()
                files.write_json(self._notes, {"url": self.url, **offered._asdict()}, indent=None)
        is_chunked = response.headers.get("Transfer-Encoding", "").lower() == "chunked"
        if offered.length is None and not is_chunked:
            raise UserError(
                f"{self.url}: the server does not tell the file's length, so that a broken"
                " download would go unnoticed; download it yourself"
            )
        done = self._save(response, offset, offered.length, abandoned)
        if offered.length is not None and done != offered.length:
            raise _CutOff(f"it broke off after {done:,} of {offered.length:,} bytes")

    def _save(self, response: Any, done: int, total: int | None, abandoned: threading.Event) -> int:
        with self._turn(abandoned):
            self._check_size(total or 0)
            self.on_progress(done, total)
        with self._part.open("ab", buffering=0) as file:
            while chunk := _read(response):
                with self._turn(abandoned):
                    self._check_size(done + len(chunk))
                    file.write(chunk)
                    done += len(chunk)
                    self._arrived += len(chunk)
                    self.on_progress(done, total)
            os.fsync(file.fileno())
        return done

    def _check_size(self, length: int) -> None:
        if length > self.max_bytes:
            self._forget()
            raise UserError(
                f"{self.url}: is larger than {self.max_bytes:,} bytes, the limit for"
                f" {self.what}; download it yourself if it is meant"
            )

    def _check_content(self) -> None:
        """Refuses what servers send with status 200 instead of a file that they lack."""
        with self._part.open("rb") as file:
            start = file.read(512).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
        if not start or start.startswith(_WEB_PAGE):
            self._forget()
            found = "a web page" if start else "an empty file"
            raise UserError(
                f"{self.url}: the server sends {found} instead of {self.what}; check the address"
            )


def _words(error: object) -> str:
    """An error on one line; what a server writes must not reach the terminal as it is."""
    return printable(" ".join(str(error).split()))


def _read(response: Any) -> bytes:
    try:
        return response.read1(_CHUNK)  # what is there, so that a slow server is noticed
    except (OSError, http.client.HTTPException) as error:
        raise _CutOff(error) from None


def _offered(response: Any, length: str) -> _Version:
    number = int(length) if re.fullmatch(r"[0-9]{1,18}", length) else None
    return _Version(response.headers.get("ETag"), response.headers.get("Last-Modified"), number)


def _continued(response: Any, offset: int, version: _Version | None) -> _Version:
    """The version that a partial answer belongs to, if it really continues what was saved."""
    unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
    extent, _, total = rest.partition("/")
    offered = _offered(response, total)
    continues = unit == "bytes" and extent.partition("-")[0] == str(offset)
    if not continues or offered.length is None or version is None:
        raise _StartOver
    same = (offered.etag, offered.length) == (version.etag, version.length)
    if not same or offered.modified not in (None, version.modified):
        raise _StartOver
    return offered
