"""Downloads a file once and caches it, with resumption, verification and locking.

Next to the file `name` are `name.sha256` (its checksum, in the format of `sha256sum`) and
`name.lock`. An incomplete download is stored in `name.part`. `name.part.json` records which version
of the file it belongs to, so that two versions are never joined if the file changes on the server.
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
except ImportError:  # Windows: two processes may corrupt each other's part and have to start over
    fcntl = None

OnProgress = Callable[[int, int | None], object]

ATTEMPTS = 5  # consecutive attempts with less than ENOUGH_BYTES each
ENOUGH_BYTES = 2**20
MAX_ATTEMPTS = 100  # in total: a server could send something new each time
BACKOFF_SECONDS = 1.0  # before the second attempt; doubles with each further attempt
TIMEOUT_SECONDS = 30.0  # without receiving a byte
WINDOW_SECONDS = 60.0  # over which MIN_RATE is measured
MIN_RATE = 5000  # bytes per second; a slower attempt fails
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
    """Downloads `url` to `path`, unless `path` already exists, and returns `path`.

    Args:
        url: an https URL; plain http is allowed only to this machine.
        what: what the file is, for messages: "the weights".
        setting: the option that changes where the file is stored, for messages: "--output".
        max_bytes: larger files are refused, before or during the download.
        sha256: the expected checksum in hexadecimal, or its first digits if no more are published.
        on_progress: called with the number of bytes so far and the total, which is None if the
            server does not send it.

    Raises:
        UserError: the URL is not allowed; the server refuses, keeps failing, is too slow or sends a
            web page; the file is empty, too large or does not match the checksum; or the file at
            `path` has changed since it was downloaded.
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
            f"{path}: cannot write the file: {files.reason(error)};"
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
            f"{path}: the file has changed since it was downloaded (its SHA-256 differs from the"
            f" one in {path.name}.sha256); delete it and try again"
        )


def check_address(url: str, first_url: str) -> None:
    """Raises a UserError unless `url` is https, or http to this machine if `first_url` is as well.

    A server must not redirect to another scheme: `file:` would read files of this machine.
    """
    kind = _kind(url)
    if kind == "https" or (kind == "local" and _kind(first_url) == "local"):
        return
    how = "" if url == first_url else f"{first_url} redirects to "
    raise UserError(f"{how}{url!a}: not an https URL; download the file yourself")


def _kind(url: str) -> str:
    """Returns `https`, `local` for http to this machine, or an empty string for anything else."""
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
    """Checks the URL of every redirect, so that the opener never uses another scheme."""

    def __init__(self, first_url: str):
        self._first_url = first_url

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        check_address(newurl, self._first_url)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Version(NamedTuple):
    """Identifies one version of a file on its server."""

    etag: str | None
    modified: str | None
    length: int | None

    @property
    def validator(self) -> str | None:
        """The value for If-Range; a weak ETag does not guarantee identical bytes."""
        is_strong = self.etag and not self.etag.startswith("W/")
        return self.etag if is_strong else self.modified


class _CutOff(Exception):
    """The transfer ended early; another attempt may resume it."""


class _StartOver(Exception):
    """The saved part does not belong to the file that the server has now."""


@dataclass
class _Transfer:
    """Downloads `url`, which has passed `check_address`, to `path` via a temporary name."""

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
        self._arrived = 0  # bytes received in all attempts

    def run(self) -> None:
        """Repeats attempts until the file is complete, then renames it to `path`."""
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
            f" {_words(reason)}; try again (the download will resume) or download the file"
            " yourself"
        )

    def _saved_bytes(self) -> int:
        return self._part.stat().st_size if self._part.exists() else 0

    def _finish(self) -> None:
        self._check_content()
        # The hash is written first, so that the file always has one.
        digest = files.sha256(self._part)
        if not digest.startswith(self.sha256):
            self._forget()
            raise UserError(
                f"{self.url}: the downloaded file is not the published one: its SHA-256 begins with"
                f" {digest[:8]} instead of {self.sha256}; it was deleted, try again"
            )
        _record_hash(self.path, digest)
        os.replace(self._part, self.path)
        self._forget()

    def _forget(self) -> None:
        self._part.unlink(missing_ok=True)
        self._notes.unlink(missing_ok=True)

    def _watched_attempt(self) -> None:
        """Makes one attempt in a separate thread, and abandons it if it is too slow.

        A socket's timeout restarts with every byte, and does not cover name resolution.
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
                    raise _CutOff(f"slower than {MIN_RATE:,} bytes per second")
        finally:
            with self._lock:
                abandoned.set()
        if errors:
            raise errors[0]

    @contextlib.contextmanager
    def _turn(self, abandoned: threading.Event) -> Iterator[None]:
        """Guards all changes of files, so that an abandoned attempt cannot disturb the next one."""
        with self._lock:
            if abandoned.is_set():
                raise _CutOff
            yield

    def _attempt(self, abandoned: threading.Event) -> None:
        version = self._saved_version()
        offset = self._saved_bytes()
        if offset and version and offset == version.length:
            return  # already complete, but interrupted before it was renamed
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
            if error.code == 416:  # the saved part is longer than the current file
                raise _StartOver from None
            answer = f"the server responded with {error.code} {_words(error.reason)}"
            if error.code in _TEMPORARY_STATUS:
                raise _CutOff(answer) from None
            raise UserError(f"{self.url}: {answer}; check the URL") from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise UserError(
                    f"{self.url}: the server's certificate is not trusted"
                    f" ({_words(reason)}); check the proxy of your network"
                ) from None
            raise _CutOff(reason) from None
        except ValueError:
            raise UserError(f"{self.url}: the server redirects to a malformed URL") from None

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
        else:  # the whole file, for example from a server that does not support Range
            offset = 0
            offered = _offered(response, response.headers.get("Content-Length", ""))
            with self._turn(abandoned):
                self._forget()
                files.write_json(self._notes, {"url": self.url, **offered._asdict()}, indent=None)
        is_chunked = response.headers.get("Transfer-Encoding", "").lower() == "chunked"
        if offered.length is None and not is_chunked:
            raise UserError(
                f"{self.url}: the server does not send the length of the file, so a truncated"
                " download would go unnoticed; download it yourself"
            )
        done = self._save(response, offset, offered.length, abandoned)
        if offered.length is not None and done != offered.length:
            raise _CutOff(f"the connection ended after {done:,} of {offered.length:,} bytes")

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
                f"{self.url}: the file is larger than {self.max_bytes:,} bytes, the limit for"
                f" {self.what}; if this is intended, download it yourself"
            )

    def _check_content(self) -> None:
        """Refuses pages that servers send with status 200 instead of a missing file."""
        with self._part.open("rb") as file:
            start = file.read(512).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
        if not start or start.startswith(_WEB_PAGE):
            self._forget()
            found = "a web page" if start else "an empty file"
            raise UserError(
                f"{self.url}: the server sent {found} instead of {self.what}; check the URL"
            )


def _words(error: object) -> str:
    """Returns an error on one line, without control codes that a server may have sent."""
    return printable(" ".join(str(error).split()))


def _read(response: Any) -> bytes:
    try:
        return response.read1(_CHUNK)  # returns what has arrived, so that a slow server is detected
    except (OSError, http.client.HTTPException) as error:
        raise _CutOff(error) from None


def _offered(response: Any, length: str) -> _Version:
    number = int(length) if re.fullmatch(r"[0-9]{1,18}", length) else None
    return _Version(response.headers.get("ETag"), response.headers.get("Last-Modified"), number)


def _continued(response: Any, offset: int, version: _Version | None) -> _Version:
    """Returns the version of a partial response, if it really continues the saved part."""
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
