"""Batches, the gate, the sandbox, options and the page, without a service."""

from __future__ import annotations

import asyncio
import base64
import re
import subprocess
import sys
from importlib.resources import files

import numpy as np
import pytest

from tsm_jax import cli, serve
from tsm_jax.errors import UserError

pytest.importorskip("starlette", reason="the extra serve is not installed")

from tsm_jax.serving import openapi, sandbox, uploads
from tsm_jax.serving.app import _read_page
from tsm_jax.serving.engine import Batcher
from tsm_jax.serving.gate import Gate, Metrics, to_json
from tsm_jax.serving.limits import REFUSALS, Limits, Refused
from tsm_jax.serving.openapi import schemas


def batched(values, *, max_batch=8, coming=lambda: False, fail=None):
    """Returns the sizes of the batches, and the result of each value."""
    sizes = []

    async def run(batch):
        sizes.append(len(batch))
        await asyncio.sleep(0)
        if fail in batch:
            raise Refused("interrupted", "lost")
        return batch * 10

    async def main():
        batcher = Batcher(run, max_batch, 3600, coming)
        work = asyncio.create_task(batcher.work())
        calls = [batcher(np.float32(value)) for value in values]
        results = await asyncio.gather(*calls, return_exceptions=True)
        work.cancel()
        return results

    return sizes, asyncio.run(main())


def test_waiting_clips_are_computed_together_in_powers_of_two():
    sizes, results = batched(range(11))
    assert sizes == [8, 2, 1] and results == [10 * value for value in range(11)]
    assert batched(range(3), max_batch=1)[0] == [1, 1, 1]
    assert batched(range(7), max_batch=6)[0] == [4, 2, 1]


def test_a_single_clip_does_not_wait():
    assert batched([1])[0] == [1]  # otherwise it would wait for an hour


def test_a_batch_waits_for_clips_being_decoded():
    sizes = []

    async def run(batch):
        sizes.append(len(batch))
        return batch

    async def main():
        decoding = True
        batcher = Batcher(run, 4, 3600, lambda: decoding)
        work = asyncio.create_task(batcher.work())
        first = asyncio.create_task(batcher(np.float32(1)))
        await asyncio.sleep(0.01)
        assert sizes == []
        decoding = False
        await asyncio.gather(first, batcher(np.float32(2)))
        work.cancel()

    asyncio.run(main())
    assert sizes == [2]


def test_a_failure_affects_only_its_batch():
    sizes, results = batched(range(5), max_batch=2, fail=1)
    assert sizes == [2, 2, 1]
    assert [isinstance(result, Refused) for result in results] == [True, True, False, False, False]


def through_gate(token, *, authorization=None, path="/v1/predict", length=None):
    """Returns status, headers, and whether the application was reached."""
    reached, sent = [], []

    async def app(scope, receive, send):
        reached.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    headers = [(b"authorization", authorization)] if authorization is not None else []
    headers += [(b"content-length", length)] if length else []
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
    gate = Gate(app, Metrics(), token, ("/healthz",), ("/v1/predict", "/healthz"))
    asyncio.run(gate(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"]), bool(reached)


TOKEN = "correct-horse-battery"


@pytest.mark.parametrize(
    "authorization",
    [
        *(None, b"", b"Bearer", b"Bearer ", b"Bearer correct-horse-batter", b"Bearer \xff"),
        *(f"Basic {TOKEN}".encode(), f"Bearer {TOKEN}x".encode(), TOKEN.encode()),
    ],
)
def test_wrong_tokens_reach_nothing(authorization):
    status, headers, reached = through_gate(TOKEN, authorization=authorization, length=b"9")
    assert (status, reached) == (401, False)
    assert headers[b"www-authenticate"] == b"Bearer" and headers[b"connection"] == b"close"


def test_the_right_token_and_public_paths_pass():
    assert through_gate(TOKEN, authorization=f"bearer {TOKEN}".encode())[0] == 200
    assert through_gate(TOKEN, path="/healthz")[0] == 200
    assert through_gate(None)[0] == 200


def open_socket(*, path="/v1/stream", subprotocols=(), **headers):
    """Returns the status of an answer (None if the application was reached) and the messages."""
    sent = []

    async def app(scope, receive, send):
        await send({"type": "websocket.accept", "headers": []})
        await send({"type": "websocket.close", "code": 4408})

    async def send(message):
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in {"host": "a:8", **headers}.items()]
    scope = {"type": "websocket", "path": path, "headers": raw, "subprotocols": subprotocols}
    gate = Gate(app, Metrics(), TOKEN, (), (path,), origins=("https://b",))
    asyncio.run(gate(scope, lambda: asyncio.sleep(60), send))
    assert b"x-request-id" in dict(sent[0]["headers"])
    return sent[0].get("status"), sent


def test_sockets_pass_the_gate_with_a_token_and_from_allowed_pages(caplog):
    encoded = base64.urlsafe_b64encode(TOKEN.encode()).decode().rstrip("=")
    given = {"authorization": f"Bearer {TOKEN}"}
    caplog.set_level("INFO", logger="tsm_jax.serving.access")
    assert open_socket(subprotocols=["tsm", f"bearer.{encoded}"])[0] is None
    assert '"status": 4408' in caplog.text
    for wrong in (["tsm"], ["bearer."], [f"bearer.{encoded[:-2]}"], [f"bearer.{TOKEN}"]):
        status, sent = open_socket(subprotocols=wrong)
        assert status == 401 and sent[-1]["type"] == "websocket.http.response.body"
    for origin in ("http://a:8", "https://a:8", "https://b"):
        assert open_socket(origin=origin, **given)[0] is None
    for origin in ("http://a:9", "http://evil.a:8", "null", "", "http://["):
        assert open_socket(origin=origin, **given)[0] == 403
    assert open_socket(path="/v1/predict", **given)[0] == 404


def test_tokens_are_compared_by_digests_of_one_length(monkeypatch):
    compared = []

    def compare(a, b):
        compared.append((len(a), len(b)))
        return False

    monkeypatch.setattr("tsm_jax.serving.gate.hmac.compare_digest", compare)
    for given in (b"Bearer x", b"Bearer " + b"y" * 5000):
        through_gate(TOKEN, authorization=given)
    assert compared == [(32, 32), (32, 32)]


def test_a_lone_surrogate_is_still_json():
    assert to_json({"name": "\udcff"}) == b'{"name": "\\udcff"}'


@pytest.mark.parametrize(
    "content", ["short", "", "two words of sixteen", "ümlaut-with-enough-letters"]
)
def test_weak_tokens_are_refused(tmp_path, content):
    path = tmp_path / "token"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as error:
        serve.main(["--model", "m", "--token_file", str(path)])
    assert str(path) in str(error.value)
    assert not content or content not in str(error.value)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--port", "70000"], "--port is 70000: it must be from 0 to 65535"),
        (["--max_upload_mb", "0"], "--max_upload_mb is 0"),
        (["--max_storage_mb", "10"], "--max_storage_mb must be at least --max_upload_mb"),
        (["--max_seconds", "nan"], "--max_seconds is nan"),
        ([], "m is not an exported folder"),
        (["--host", "256.0.0.1"], "cannot listen on 256.0.0.1:8000"),
    ],
)
def test_wrong_arguments_are_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tsm_jax.serving.server._listen", _listen_nowhere)
    with pytest.raises(SystemExit) as exit_:
        cli.run(serve.main, ["--model", "m", *arguments])
    errors = capsys.readouterr().err
    assert exit_.value.code == 1 and errors.count("\n") == 1 and message in errors


def _listen_nowhere(host, port):
    import socket

    if host != "127.0.0.1":
        raise OSError(99, "no such address")
    return socket.socket()


CONFINED = """
import resource, socket, subprocess, sys
from tsm_jax.serving import sandbox
sandbox.confine(64 << 20)

def refused(function):
    try:
        function()
    except (OSError, MemoryError) as error:
        return type(error).__name__
    return "allowed"

print(refused(lambda: bytearray(256 << 20)))
print(refused(lambda: open({path!r}, "wb", buffering=0).write(b"x")))
print(refused(lambda: [open({path!r}) for _ in range(100)]))
{network}
sandbox.allow_seconds(0.2)
while True:
    pass
"""
NETWORK = """
print(refused(socket.socket))
print(refused(lambda: subprocess.run(["true"])))
"""


def test_confined_processes(tmp_path):
    network = NETWORK if sandbox.has_filters() else ""
    code = CONFINED.format(path=str(tmp_path / "file"), network=network)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    expected = ["MemoryError", "OSError", "OSError"]
    expected += ["PermissionError", "PermissionError"] if network else []
    assert result.stdout.split() == expected, result.stderr
    assert result.returncode == -24  # SIGXCPU
    assert (tmp_path / "file").stat().st_size == 0


def test_abandoned_folders_are_removed_and_no_others(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "tsm_jax-serve-old").mkdir()
    (tmp_path / "tsm_jax-serve-old" / "tmp1.mp4").touch()
    first = uploads.Uploads(Limits())
    assert not (tmp_path / "tsm_jax-serve-old").exists()
    second = uploads.Uploads(Limits())
    assert len(list(tmp_path.iterdir())) == 2  # the first one is in use
    first.close()
    second.close()
    assert list(tmp_path.iterdir()) == []


def test_all_uploads_together_have_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = uploads.Uploads(Limits(storage_bytes=10))
    first, second = uploads.Upload(folder), uploads.Upload(folder)
    first.open("a.mp4")
    second.open()
    first.write(bytes(8))
    with pytest.raises(Refused) as error:
        second.write(bytes(3))
    assert error.value.status == 503
    first.remove()
    second.write(bytes(3))
    second.remove()
    assert folder.stored == 0
    folder.close()


def test_every_reference_of_the_description_resolves():
    options = schemas(5, ["test"], "test")
    description = openapi.describe("1", options, token=True, num_classes=5)
    names = re.findall(r"'#/components/schemas/(\w+)'", str(description))
    assert set(names) == description["components"]["schemas"].keys()
    never = {"404", "403", "409", "426"}
    statuses = {str(status) for status, _ in REFUSALS.values()} - never
    assert description["paths"]["/v1/predict"]["post"]["responses"].keys() == statuses | {"200"}


def test_the_page_runs_nothing_but_itself():
    page, policy = _read_page()
    assert page == (files("tsm_jax.serving") / "page.html").read_text(encoding="utf-8")
    assert "unsafe" not in policy and policy.startswith("default-src 'none'")
    assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|https?://|style=\"", page)
