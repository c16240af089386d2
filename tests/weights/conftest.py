"""Fixtures for tests of weights: files by real Paddle, a small network, a local server."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from tsm_jax.weights.paddle_networks import paddle_tensors

GOLDENS = Path(__file__).parent / "goldens"


@pytest.fixture
def goldens() -> Path:
    return GOLDENS


def _tensors(
    backbone: str = "resnet50",
    width: int = 8,
    num_classes: int | None = 10,
    num_segments: int | None = None,
) -> dict:
    """Returns a PaddleVideo state dict with different values per tensor and positive variances."""
    generator = np.random.default_rng(0)
    return {
        tensor.paddle: generator.uniform(0.1, 1.0, tensor.shape).astype(np.float32)
        for tensor in paddle_tensors(backbone, width, num_classes, num_segments)
    }


@pytest.fixture
def make_tensors() -> Callable[..., dict[str, np.ndarray]]:
    return _tensors


def _text(text: bytes) -> bytes:
    return pickle.SHORT_BINUNICODE + bytes([len(text)]) + text


def _array_pickle(
    *,
    shape: list[int] = [2],  # noqa: B006
    data: bytes = pickle.SHORT_BINBYTES + b"\x08" + bytes(8),
    dtype: bytes = b"f4",
    order: bytes = b"<",
    text: Callable[[bytes], bytes] = _text,
) -> bytes:
    """Returns the pickle of `{"x": array}`; its parts can be replaced by other spellings.

    Args:
        shape: as LONG1 integers, any size.
        data: the instruction that pushes the array's bytes.
        dtype: NumPy's code.
        order: the byte order.
        text: how a text is pushed.
    """
    lengths = b"".join(pickle.LONG1 + b"\x08" + n.to_bytes(8, "little") for n in shape)
    made_dtype = pickle.GLOBAL + b"numpy\ndtype\n" + text(dtype) + b"\x89\x88\x87R"
    made_dtype += b"(K\x03" + text(order) + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85"
    array += text(b"b") + b"\x87R(K\x01(" + lengths + b"t" + made_dtype + b"\x89" + data + b"tb"
    return b"\x80\x02}" + text(b"x") + array + b"s."


@pytest.fixture
def array_pickle() -> Callable[..., bytes]:
    return _array_pickle


_CHILD = """
import importlib, json, sys, time
from tsm_jax.errors import UserError

module, name = sys.argv[1].split(".")
read = getattr(importlib.import_module("tsm_jax.weights." + module), name)

def peak():
    # Not getrusage: its maximum is inherited from the process that started this one.
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

results = {}
for path in sys.argv[2:]:
    before, start = peak(), time.process_time()
    try:
        read(path)
        message = None
    except UserError as error:
        message = str(error)
    results[path] = message, time.process_time() - start, peak() - before
print(json.dumps(results))
"""


def _read_in_a_child(reader: str, *paths: Path) -> dict[str, tuple[str | None, float, int]]:
    """Returns for each path: the error, CPU time in seconds, growth of the peak memory in bytes."""
    command = [sys.executable, "-c", _CHILD, reader, *map(str, paths)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout)


@pytest.fixture
def read_in_a_child() -> Callable[..., dict[str, tuple[str | None, float, int]]]:
    return _read_in_a_child


class Server:
    """An HTTP server on this machine that calls `answer` for each request.

    Attributes:
        requests: the headers of each request, oldest first.
        answer: function that writes the whole response, given the request handler.
    """

    def __init__(self) -> None:
        server = self
        self.requests: list[dict[str, str]] = []
        self.answer: Callable[[BaseHTTPRequestHandler], None] = lambda handler: None

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append(dict(self.headers))
                server.answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.01}
        )
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}/weights.pdparams"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()
