"""A service in a separate process, and a client that may misbehave."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest

REPOSITORY = Path(__file__).parents[2]


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def values(self) -> dict[str, Any]:
        return json.loads(self.body)


def read_answer(connection: socket.socket) -> Answer:
    """Reads until the other side has sent the whole answer."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _some(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    while len(body) < int(headers["content-length"]):
        body += _some(connection)
    return Answer(int(first.split()[1]), headers, body)


def _some(connection: socket.socket) -> bytes:
    if data := connection.recv(1 << 16):
        return data
    raise EOFError("closed without an answer")


def form(content: bytes, name: str = "a.mp4", field: str = "file") -> tuple[bytes, str]:
    """Returns a multipart body and its Content-Type."""
    disposition = f'Content-Disposition: form-data; name="{field}"; filename="{name}"'
    head = f"--limit\r\n{disposition}\r\nContent-Type: video/mp4\r\n\r\n".encode()
    return head + content + b"\r\n--limit--\r\n", "multipart/form-data; boundary=limit"


class Service:
    """Runs `tsm serve` with temporary files in `folder`, and waits until it listens or answers."""

    def __init__(self, model: Path, folder: Path, *options: str, answers: bool = True):
        self.folder = folder
        self.log, self.errors = folder / "log.txt", folder / "errors.txt"
        arguments = ["--model", str(model), "--port", "0", "--engine", "onnxruntime", *options]
        with open(self.log, "wb") as log, open(self.errors, "wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tsm_jax", "serve", *arguments],
                stdout=log,
                stderr=errors,
                cwd=REPOSITORY,
                env={**os.environ, "TMPDIR": str(folder)},
            )
        self.port = 0
        for _ in range(1200):
            found = re.search(r"http://127.0.0.1:(\d+)/", self.errors.read_text())
            if found:
                self.port = int(found[1])
                if not answers or self.get("/readyz").status == 200:
                    return
            assert self.process.poll() is None, self.errors.read_text()
            time.sleep(0.1)
        pytest.fail("the service did not start")

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def get(self, path: str) -> Answer:
        return self.send(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())

    def post(self, body: bytes, query: str = "", kind: str = "video/mp4", more: str = "") -> Answer:
        return self.send(self.head(len(body), query, kind, more) + body)

    def head(self, length: int, query: str = "", kind: str = "video/mp4", more: str = "") -> bytes:
        fields = f"Host: x\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n{more}"
        return f"POST /v1/predict{query} HTTP/1.1\r\n{fields}\r\n".encode()

    def send(self, data: bytes) -> Answer:
        with self.connect() as connection:
            connection.sendall(data)
            return read_answer(connection)

    def processes(self) -> dict[str, int]:
        """Returns the newest decoder, which is sandboxed, and the engine, which is not."""
        found = {}
        for path in sorted(Path("/proc").glob("[0-9]*/stat"), key=lambda path: int(path.parts[2])):
            try:
                state, parent = path.read_text().rsplit(")", 1)[1].split()[:2]
                status = (path.parent / "status").read_text()
                command = (path.parent / "cmdline").read_bytes()
            except OSError:  # the process has exited
                continue
            if int(parent) == self.process.pid and state != "Z" and b"spawn_main" in command:
                found["decode" if "Seccomp:\t2" in status else "engine"] = int(path.parts[2])
        return found

    def temporary(self) -> list[str]:
        """Lists the uploads on disk."""
        return [path.name for path in self.folder.glob("tsm_jax-serve-*/*") if path.name != "lock"]

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)
