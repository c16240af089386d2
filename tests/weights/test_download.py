"""Downloads from a local server that misbehaves in every way."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import os
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from tsm_jax import download as module
from tsm_jax.download import check_address, download
from tsm_jax.errors import UserError

CONTENT = bytes(range(256)) * 4096  # 1 MiB
OTHER = bytes(reversed(CONTENT))
ETAG = '"version 1"'
WEIGHTS: Any = {"what": "the weights", "setting": "TSM_JAX_CACHE", "max_bytes": 2**30}
NOTES = {"etag": ETAG, "modified": None, "length": len(CONTENT)}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(module, "BACKOFF_SECONDS", 0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "weights.pdparams"


def get(server, path, **arguments: Any) -> Path:
    return download(server.url, path, **{**WEIGHTS, **arguments})


def serve(
    content: bytes = CONTENT,
    *,
    cut: int | None = None,
    etag: str | None = ETAG,
    modified: str | None = None,
    knows_range: bool = True,
    knows_if_range: bool = True,
):
    """Returns a well-behaved response that may stop after `cut` bytes of its body."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        start = 0
        asked = handler.headers.get("Range")
        is_same = not knows_if_range or handler.headers.get("If-Range") in (etag, modified)
        if asked and knows_range and is_same:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start >= len(content):
            handler.send_response(416)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        for name, value in (("ETag", etag), ("Last-Modified", modified)):
            if value:
                handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(content) - start))
        handler.end_headers()
        body = content[start:]
        handler.wfile.write(body if cut is None else body[:cut])

    return answer


def in_turn(*answers):
    """Uses the next answer for each request, and the last one forever."""
    left = list(answers)

    def answer(handler):
        (left.pop(0) if len(left) > 1 else left[0])(handler)

    return answer


def status(code: int, headers: dict[str, str] | None = None, body: bytes = b""):
    def answer(handler):
        handler.send_response(code)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def names_in(folder) -> set[str]:
    return {name for name in os.listdir(folder) if not name.endswith(".lock")}


def test_downloaded_once(server, path):
    server.answer = serve()
    seen: list[tuple[int, int | None]] = []
    assert get(server, path, on_progress=lambda *state: seen.append(state)) == path
    assert path.read_bytes() == CONTENT
    assert seen[0] == (0, len(CONTENT)) and seen[-1] == (len(CONTENT), len(CONTENT))
    assert get(server, path) == path
    assert len(server.requests) == 1
    digest = hashlib.sha256(CONTENT).hexdigest()
    recorded = path.with_name(path.name + ".sha256").read_text()
    assert recorded == f"{digest}  {path.name}\n"
    assert names_in(path.parent) == {path.name, f"{path.name}.sha256"}


def test_cut_connections_are_continued(server, path):
    server.answer = serve(cut=300_000)
    get(server, path)
    assert path.read_bytes() == CONTENT
    assert [request.get("Range") for request in server.requests] == [
        None,
        "bytes=300000-",
        "bytes=600000-",
        "bytes=900000-",
    ]
    assert {request.get("If-Range") for request in server.requests[1:]} == {ETAG}


def test_last_modified_is_used_if_the_etag_is_weak(server, path):
    day = "Wed, 21 Oct 2015 07:28:00 GMT"
    server.answer = serve(cut=600_000, etag='W/"1"', modified=day)
    get(server, path)
    assert path.read_bytes() == CONTENT
    assert server.requests[1]["If-Range"] == day


def test_continued_by_a_later_call(server, path):
    server.answer = in_turn(serve(cut=500_000), status(404))
    with pytest.raises(UserError, match="404"):
        get(server, path)
    assert not path.exists()
    server.answer = serve()
    get(server, path)
    assert path.read_bytes() == CONTENT
    assert server.requests[-1]["Range"] == "bytes=500000-"


def test_complete_but_not_yet_renamed(server, path):
    """The process was killed between the last byte and the rename."""
    server.answer = serve()
    get(server, path)
    path.rename(path.with_name(path.name + ".part"))
    path.with_name(path.name + ".part.json").write_text(json.dumps({**NOTES, "url": server.url}))
    get(server, path)
    assert path.read_bytes() == CONTENT
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "notes", ["", "{}", "[]", json.dumps({**NOTES, "url": "https://elsewhere"})]
)
def test_a_part_of_unknown_origin_is_dropped(server, path, notes):
    path.parent.mkdir()
    path.with_name(path.name + ".part").write_bytes(OTHER[:1000])
    path.with_name(path.name + ".part.json").write_text(notes)
    server.answer = serve()
    get(server, path)
    assert path.read_bytes() == CONTENT


def test_a_server_without_ranges_restarts_the_download(server, path):
    server.answer = in_turn(serve(cut=700_000), serve(knows_range=False))
    get(server, path)
    assert path.read_bytes() == CONTENT
    assert "Range" in server.requests[1]


def test_without_a_validator_nothing_is_continued(server, path):
    server.answer = in_turn(serve(cut=700_000, etag=None), serve(OTHER, etag=None))
    get(server, path)
    assert path.read_bytes() == OTHER
    assert "Range" not in server.requests[1]


@pytest.mark.parametrize("knows_if_range", [True, False])
def test_versions_of_a_changed_file_are_never_mixed(server, path, knows_if_range):
    changed = serve(OTHER, etag='"version 2"', knows_if_range=knows_if_range)
    server.answer = in_turn(serve(cut=700_000), changed)
    get(server, path)
    assert path.read_bytes() == OTHER


def test_a_file_that_became_shorter(server, path):
    shorter = serve(CONTENT[:1000], knows_if_range=False)  # answers 416
    server.answer = in_turn(serve(cut=700_000), shorter)
    get(server, path)
    assert path.read_bytes() == CONTENT[:1000]


@pytest.mark.parametrize(
    "content_range",
    [
        "bytes 5-1048575/1048576",
        "bytes 5-10/20",
        "bytes 700000-1048575/*",
        "nonsense",
        "bytes 700000-9/²",
        "",
    ],
)
def test_a_wrong_content_range_restarts_the_download(server, path, content_range):
    wrong = status(206, {"Content-Range": content_range, "ETag": ETAG}, b"wrong bytes")
    server.answer = in_turn(serve(cut=700_000), wrong, serve())
    get(server, path)
    assert path.read_bytes() == CONTENT


def test_a_truncated_response_fails(server, path):
    server.answer = status(200, {"Content-Length": "1000"}, b"short")
    with pytest.raises(
        UserError, match=r"failed after 5 attempts: the connection ended after 5 of 1,000 bytes"
    ):
        get(server, path)
    assert len(server.requests) == 5
    assert not path.exists()


def test_attempts_with_progress_are_not_counted(server, path, monkeypatch):
    monkeypatch.setattr(module, "ENOUGH_BYTES", 10_000)
    server.answer = serve(cut=50_000)
    get(server, path)
    assert path.read_bytes() == CONTENT
    assert len(server.requests) == 21


def test_a_server_that_never_ends(server, path, monkeypatch):
    """Each response is part of another version and never complete."""
    monkeypatch.setattr(module, "ENOUGH_BYTES", 1000)
    monkeypatch.setattr(module, "MAX_ATTEMPTS", 7)
    counter = itertools.count()

    def answer(handler):
        number = next(counter)
        serve(etag=f'"{number}"', cut=5000 if number % 2 else 50_000)(handler)

    server.answer = answer
    with pytest.raises(UserError, match="failed after 7 attempts"):
        get(server, path)


@pytest.mark.parametrize("code", [500, 503, 429])
def test_temporary_errors_are_retried(server, path, code):
    server.answer = in_turn(status(code), status(code), serve())
    get(server, path)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_permanent_errors_are_not_retried(server, path, code):
    server.answer = status(code)
    with pytest.raises(UserError, match=f"the server responded with {code}"):
        get(server, path)
    assert len(server.requests) == 1


def test_waiting_doubles(server, path, monkeypatch):
    waited: list[float] = []
    monkeypatch.setattr(module, "BACKOFF_SECONDS", 1.0)
    monkeypatch.setattr(module.time, "sleep", waited.append)
    server.answer = status(503)
    with pytest.raises(UserError, match="failed after 5 attempts: the server responded with 503"):
        get(server, path)
    assert waited == [1, 2, 4, 8]


def test_a_dead_server(server, path):
    server.close()
    with pytest.raises(UserError, match=r"failed after 5 attempts: .*refused"):
        get(server, path)


def test_a_certificate_that_is_not_trusted(tmp_path, monkeypatch):
    """A retry would not help."""
    tried = []

    def refuse(*args, **kwargs):
        tried.append(args)
        raise urllib.error.URLError(ssl.SSLCertVerificationError("self-signed certificate"))

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", refuse)
    with pytest.raises(UserError, match=r"certificate is not trusted .*self-signed"):
        download("https://example.com/x", tmp_path / "x", **WEIGHTS)
    assert len(tried) == 1


def test_no_answer_within_the_time_limit(server, path, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT_SECONDS", 0.05)
    monkeypatch.setattr(module, "ATTEMPTS", 2)

    def stall(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "10")
        handler.end_headers()
        handler.wfile.write(b"12345")
        handler.wfile.flush()
        handler.connection.settimeout(0.3)
        with contextlib.suppress(OSError):
            handler.connection.recv(1)

    server.answer = stall
    with pytest.raises(UserError, match="timed out"):
        get(server, path)


def drip(handler, *, start: bytes) -> None:
    """Sends `start`, then one byte per hundredth of a second."""
    handler.wfile.write(start)
    with contextlib.suppress(OSError):
        for _ in range(1000):
            handler.wfile.write(b"x")
            handler.wfile.flush()
            time.sleep(0.01)


@pytest.mark.parametrize(
    "start",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;",
    ],
    ids=["body", "header", "chunk"],
)
def test_a_server_that_is_too_slow(server, path, monkeypatch, start):
    """Every byte arrives long before the socket's timeout."""
    monkeypatch.setattr(module, "WINDOW_SECONDS", 0.1)
    monkeypatch.setattr(module, "ATTEMPTS", 2)
    server.answer = functools.partial(drip, start=start)
    with pytest.raises(UserError, match="after 2 attempts: slower than 5,000 bytes per second"):
        get(server, path)
    assert len(server.requests) == 2
    assert not path.exists()


def in_pieces(content: bytes, start: int, size: int):
    """Returns a response that sends `content` from `start`, one piece per hundredth of a second."""

    def answer(handler):
        handler.send_response(206 if start else 200)
        handler.send_header("ETag", ETAG)
        handler.send_header("Content-Length", str(len(content) - start))
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        handler.end_headers()
        for at in range(start, len(content), size):
            handler.wfile.write(content[at : at + size])
            time.sleep(0.01)

    return answer


def test_a_server_that_is_not_too_slow(server, path, monkeypatch):
    monkeypatch.setattr(module, "WINDOW_SECONDS", 0.15)
    server.answer = in_pieces(CONTENT[:10_000], 0, 250)
    get(server, path)
    assert len(server.requests) == 1


def test_an_abandoned_attempt_disturbs_nothing(server, path, monkeypatch):
    """The first response keeps sending other bytes while the second one continues the file."""
    monkeypatch.setattr(module, "WINDOW_SECONDS", 0.15)
    continued = threading.Event()

    def first(handler):
        handler.send_response(200)
        handler.send_header("ETag", ETAG)
        handler.send_header("Content-Length", str(len(CONTENT)))
        handler.end_headers()
        handler.wfile.write(CONTENT[:1000])
        handler.wfile.flush()
        continued.wait(5)
        with contextlib.suppress(OSError):
            for _ in range(100):
                handler.wfile.write(b"wrong")
                time.sleep(0.005)

    def second(handler):
        continued.set()
        in_pieces(CONTENT, 1000, 30_000)(handler)

    server.answer = in_turn(first, second)
    get(server, path)
    assert path.read_bytes() == CONTENT
    assert server.requests[1]["Range"] == "bytes=1000-"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "sent an empty file instead of the weights"),
        (b"<html>not found</html>", "sent a web page instead of the weights"),
        (b"\xef\xbb\xbf\n<!DOCTYPE HTML><p>", "sent a web page instead of the weights"),
    ],
)
def test_what_servers_send_instead_of_a_file(server, path, body, says):
    server.answer = status(200, body=body)
    with pytest.raises(UserError, match=says):
        get(server, path)
    assert names_in(path.parent) == set()


def test_messages_name_the_downloaded_thing(server, path):
    what = {"what": "the data set", "setting": "--output"}
    server.answer = serve()
    with pytest.raises(UserError, match="the limit for the data set"):
        get(server, path, max_bytes=10, **what)
    server.answer = status(503)
    with pytest.raises(UserError, match="the download of the data set failed"):
        get(server, path, **what)
    with pytest.raises(UserError, match="choose another folder with --output"):
        get(server, Path(__file__, "x"), **what)


def test_text_from_a_server_is_escaped(server, path):
    def answer(handler):
        handler.send_response(401, "\x1b[31mno")
        handler.end_headers()

    server.answer = answer
    with pytest.raises(UserError, match=r"responded with 401 \\x1b\[31mno"):
        get(server, path)


def test_a_changed_date_restarts_the_download(server, path):
    """A server without ETag that ignores If-Range."""
    day, next_day = "Wed, 21 Oct 2015 07:28:00 GMT", "Thu, 22 Oct 2015 07:28:00 GMT"
    changed = serve(OTHER, etag=None, modified=next_day, knows_if_range=False)
    server.answer = in_turn(serve(cut=700_000, etag=None, modified=day), changed)
    get(server, path)
    assert path.read_bytes() == OTHER


def test_too_large_by_content_length(server, path):
    server.answer = serve()
    seen: list[tuple[int, int | None]] = []
    with pytest.raises(UserError, match="larger than 1,000 bytes"):
        get(server, path, max_bytes=1000, on_progress=lambda *state: seen.append(state))
    assert seen == []  # no byte was read
    assert names_in(path.parent) == set()


def chunked(handler, *, complete: bool = True) -> None:
    handler.protocol_version = "HTTP/1.1"
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.send_header("Connection", "close")
    handler.end_headers()
    for start in range(0, len(CONTENT), 100_000):
        piece = CONTENT[start : start + 100_000]
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        if not complete:
            return
    handler.wfile.write(b"0\r\n\r\n")


def test_too_large_without_content_length(server, path):
    server.answer = chunked
    with pytest.raises(UserError, match="larger than 500,000 bytes"):
        get(server, path, max_bytes=500_000)
    assert names_in(path.parent) == set()


def test_chunks(server, path):
    server.answer = in_turn(lambda handler: chunked(handler, complete=False), chunked)
    get(server, path)
    assert path.read_bytes() == CONTENT


def test_a_length_is_needed(server, path):
    def answer(handler):
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(b"who knows whether this is all")

    server.answer = answer
    with pytest.raises(UserError, match="does not send the length of the file"):
        get(server, path)
    assert not path.exists()


def test_compression_is_refused(server, path):
    server.answer = status(200, {"Content-Encoding": "gzip"}, b"x")
    with pytest.raises(UserError, match="compresses"):
        get(server, path)
    assert server.requests[0]["Accept-Encoding"] == "identity"


# Redirects and URLs.


def test_a_redirection_on_this_machine(server, path):
    moved = status(302, {"Location": "/elsewhere"})
    server.answer = in_turn(moved, serve())
    get(server, path)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    "target",
    [
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "data:text/plain,hello",
        "http://example.com/x",
        "gopher://x/",
        "http://[broken",
    ],
)
def test_a_redirection_elsewhere(server, path, target):
    server.answer = status(302, {"Location": target})
    with pytest.raises(UserError, match=r"not allowed|not an https|malformed"):
        get(server, path)
    assert len(server.requests) == 1
    assert not path.exists()


def test_a_redirection_loop(server, path):
    server.answer = status(302, {"Location": server.url})
    with pytest.raises(UserError, match="redirect"):
        get(server, path)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/x",
        "ftp://example.com/x",
        "file:///etc/passwd",
        "https:///x",
        "https://[::1/x",
        "http://127.0.0.1:99999/x",
        "https://exa mple.com/x",
        "https://example.com/ü",
        "https://example.com/\n",
        "http://localhost.example.com/",
        "http://127.0.0.1@example.com/",
        "",
    ],
)
def test_addresses_that_are_refused(tmp_path, url):
    with pytest.raises(UserError, match="not an https URL"):
        download(url, tmp_path / "x", **WEIGHTS)


def test_addresses_that_are_allowed():
    for url in ("https://example.com/x", "http://localhost:1/x", "http://[::1]/x"):
        check_address(url, url)


def test_no_way_from_outside_to_this_machine():
    with pytest.raises(UserError, match=r"https://example.com/ redirects to 'http://localhost/x'"):
        check_address("http://localhost/x", "https://example.com/")


# The cache.


def test_a_file_that_was_changed_later(server, path):
    server.answer = serve()
    get(server, path)
    path.write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(UserError, match="delete it") as caught:
        get(server, path)
    assert str(path) in str(caught.value)
    path.unlink()
    get(server, path)
    assert path.read_bytes() == CONTENT


def test_a_file_without_a_recorded_hash_gets_one(server, path):
    path.parent.mkdir()
    path.write_bytes(b"put here by hand")
    get(server, path)
    assert server.requests == []
    path.write_bytes(b"and changed")
    with pytest.raises(UserError, match="delete it"):
        get(server, path)


def test_a_cache_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot write the file.*TSM_JAX_CACHE"):
        get(server, tmp_path / "file" / "weights.pdparams")


def test_the_final_name_appears_only_when_complete(server, path):
    server.answer = serve()
    seen = []
    get(server, path, on_progress=lambda done, total: seen.append(path.exists()))
    assert len(seen) > 2 and not any(seen)


def test_two_processes_at_once(server, path):
    server.answer = serve()
    code = (
        "import sys; from pathlib import Path; from tsm_jax.download import download;"
        "path = download(sys.argv[1], Path(sys.argv[2]), what='', setting='', max_bytes=2**30);"
        "print(len(path.read_bytes()))"
    )
    command = [sys.executable, "-c", code, server.url, str(path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate(timeout=30)[0] for process in both] == [f"{len(CONTENT)}\n"] * 3
    assert len(server.requests) == 1
    assert path.read_bytes() == CONTENT
