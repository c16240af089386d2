"""Tests `tsm serve` under load, with damaged files, hostile clients and killed processes.

python benchmarks/serve_load.py throughput --model inference/TSM --videos DIR --seconds 300
python benchmarks/serve_load.py files --model inference/TSM --videos DIR --mutations 2000
python benchmarks/serve_load.py hostile --model inference/TSM --videos DIR --seconds 60
python benchmarks/serve_load.py kill --model inference/TSM --videos DIR --requests 1000
python benchmarks/serve_load.py streams --model inference/live --videos DIR --clients 1 4

Each command starts its own service on 127.0.0.1 and sends all requests from this machine, so
clients and service share the CPU. The exit code is 1 if anything went wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

_HOST = "127.0.0.1"
_VIDEOS = (".avi", ".mp4", ".webm", ".mkv", ".mov")


class Service:
    """A `tsm serve` process whose temporary files are in a separate folder."""

    def __init__(self, options: argparse.Namespace, *arguments: str):
        self.folder = tempfile.mkdtemp(prefix="serve-load-")
        self._errors = Path(self.folder, "errors.txt")
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "tsm_jax", "serve", "--model", options.model),
                *("--port", "0", "--precision", options.precision),
                *("--engine", options.engine, *arguments),
            ],
            stdout=open(Path(self.folder, "access.txt"), "w"),  # noqa: SIM115
            stderr=open(self._errors, "w"),  # noqa: SIM115
            env={**os.environ, "TMPDIR": self.folder},
        )
        self.port = int(self._wait(lambda: re.search(r":(\d+)/", self.errors))[1])
        self._wait(lambda: asyncio.run(get(self.port, "/readyz")).status == 200)

    def _wait(self, ready: Callable[[], Any]) -> Any:
        for _ in range(1200):
            with contextlib.suppress(OSError):
                if found := ready():
                    return found
            if self.process.poll() is not None:
                sys.exit(self.errors)
            time.sleep(0.1)
        sys.exit("the service did not start within 120 s")

    @property
    def errors(self) -> str:
        return self._errors.read_text()

    def processes(self, name: str = "") -> list[int]:
        """Returns the ids of its child processes: all, the decoders or the engine.

        Args:
            name: `decode`, `engine` or empty.
        """
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = path.read_text().rsplit(")", 1)[1].split()
                if int(fields[1]) == self.process.pid and fields[0] != "Z":
                    found.append(int(path.parent.name))
        spawned = [pid for pid in found if b"spawn_main" in _command(pid)]
        if name:  # only decoders are confined by seccomp
            spawned = [pid for pid in spawned if _is_confined(pid) == (name == "decode")]
        return spawned

    def memory(self) -> str:
        """Describes the memory of the service and its processes; shared pages count for each."""
        pids = [[self.process.pid], self.processes("engine"), self.processes("decode")]
        parts = [sum(map(_resident, kind)) / 2**20 for kind in pids]
        names = ("server", "engine", f"{len(pids[2])} decoders")
        shown = ", ".join(f"{name} {part:.0f}" for name, part in zip(names, parts, strict=True))
        return f"{sum(parts):.0f} MB ({shown})"

    @contextlib.asynccontextmanager
    async def watched(self, seconds: float) -> AsyncIterator[None]:
        """Prints the memory of the service at the start, at this interval and at the end."""
        start = time.perf_counter()

        def show() -> None:
            print(f"    {time.perf_counter() - start:4.0f} s: {self.memory()}", flush=True)

        async def watch() -> None:
            for number in itertools.count(1):
                await asyncio.sleep(start + number * seconds - time.perf_counter())
                show()

        show()
        watching = asyncio.create_task(watch())
        yield
        watching.cancel()
        show()

    def files(self) -> list[str]:
        """Returns the uploads that are on disk."""
        return [str(path) for path in Path(self.folder).glob("tsm_jax-serve-*/tmp*")]

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def _command(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def _is_confined(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "Seccomp:\t2" in Path(f"/proc/{pid}/status").read_text()
    return False


def _resident(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


class Answer(NamedTuple):
    status: int  # 0 if the connection ended without an answer
    values: dict[str, Any]
    seconds: float


class Client:
    """A client with a persistent connection that is reopened if it was closed."""

    def __init__(self, port: int):
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, target: str, body: bytes | None = None, token: str = "") -> Answer:
        start = time.perf_counter()
        kept = self._streams is not None
        try:
            status, values = await self._exchange(target, body, token)
        except (OSError, asyncio.IncompleteReadError, ValueError):
            self.close()
            if kept:  # closed by the service between two requests: retry, as any client does
                return await self.send(target, body, token)
            return Answer(0, {}, time.perf_counter() - start)
        return Answer(status, values, time.perf_counter() - start)

    async def _exchange(
        self, target: str, body: bytes | None, token: str
    ) -> tuple[int, dict[str, Any]]:
        self._streams = self._streams or await asyncio.open_connection(_HOST, self._port)
        reader, writer = self._streams
        method, length = (
            ("GET", "") if body is None else ("POST", f"Content-Length: {len(body)}\r\n")
        )
        length += f"Authorization: Bearer {token}\r\n" if token else ""
        writer.write(f"{method} {target} HTTP/1.1\r\nHost: {_HOST}\r\n{length}\r\n".encode())
        writer.write(body or b"")
        with contextlib.suppress(ConnectionError):  # there may be an answer nevertheless
            await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        match = re.search(r"content-length: (\d+)", head)
        content = await reader.readexactly(int(match[1])) if match else b""
        if "connection: close" in head:
            self.close()
        is_json = "application/json" in head
        return int(head.split()[1]), json.loads(content) if is_json else {}

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def get(port: int, target: str) -> Answer:
    client = Client(port)
    try:
        return await client.send(target)
    finally:
        client.close()


def read_videos(folder: str, most: int | None = None) -> dict[str, bytes]:
    paths = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in _VIDEOS)
    if not paths:
        sys.exit(f"there are no videos in {folder}")
    return {str(path): path.read_bytes() for path in paths[:most]}


def percentile(values: list[float], share: float) -> float:
    return (
        sorted(values)[min(int(share * len(values)), len(values) - 1)] if values else float("nan")
    )


class Load:
    """Sends valid requests from several clients and compares the answers with `predict`.

    Attributes:
        statuses: number of answers by HTTP status.
        seconds: response times of successful requests.
        wrong: number of answers that differ from those of `predict`.
        twice: number of repeated request ids.
    """

    def __init__(self, port: int, videos: dict[str, bytes], expected: dict[str, Any] | None):
        self._port, self._videos, self._expected = port, list(videos.items()), expected
        self.statuses: Counter[int] = Counter()
        self.seconds: list[float] = []
        self.wrong = self.twice = 0
        self._ids: set[str] = set()

    async def run(self, clients: int, seconds: float, requests: int | None = None) -> None:
        end = time.perf_counter() + seconds
        numbers = iter(range(requests)) if requests is not None else itertools.count()
        await asyncio.gather(*(self._client(numbers, end) for _ in range(clients)))

    async def _client(self, numbers: Iterator[int], end: float) -> None:
        client = Client(self._port)
        for number in numbers:
            path, body = self._videos[number % len(self._videos)]
            self._count(path, await client.send("/v1/predict", body))
            if time.perf_counter() > end:
                break
        client.close()

    def _count(self, path: str, answer: Answer) -> None:
        self.statuses[answer.status] += 1
        if "id" in answer.values:
            self.twice += answer.values["id"] in self._ids
            self._ids.add(answer.values["id"])
        if answer.status == 200:
            self.seconds.append(answer.seconds)
            if self._expected is not None:
                self.wrong += not _same(answer.values["predictions"], self._expected[path])

    def row(self, name: str, seconds: float) -> str:
        rate = self.statuses[200] / seconds
        p50, p99 = (1000 * percentile(self.seconds, share) for share in (0.5, 0.99))
        return (
            f"| {name} | {rate:.1f}/s | {p50:.0f} ms | {p99:.0f} ms | {dict(self.statuses)} |"
            f" wrong {self.wrong}, twice {self.twice} |"
        )

    @property
    def clean(self) -> bool:
        return not self.wrong and not self.twice and set(self.statuses) == {200}


def _same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> bool:
    """Compares predictions; other batch sizes may change the last digits of scores."""
    scores = {each["index"]: each["score"] for each in expected}
    return all(
        abs(each["score"] - scores.get(each["index"], each["score"])) < 1e-3 for each in found
    )


def predict(options: argparse.Namespace, folder: str, videos: list[str]) -> tuple[dict, float]:
    """Returns the predictions of `tsm predict` by video, and the videos per second it reports."""
    listed, output = Path(folder, "list.txt"), Path(folder, "answers.jsonl")
    listed.write_text("".join(f"{Path(path).resolve()}\n" for path in videos))
    result = subprocess.run(
        [
            *(sys.executable, "-m", "tsm_jax", "predict", "--model", options.model, "--input"),
            *(str(listed), "--output", str(output), "--overwrite"),
            *("--precision", options.precision, "--engine", options.engine),
        ],
        capture_output=True,
        text=True,
    )
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    found = {path: line.get("predictions") for path, line in zip(videos, lines, strict=True)}
    rate = re.search(r"videos, ([\d.]+) (?:a|per) second", result.stderr)
    return found, float(rate[1]) if rate else float("nan")


def throughput(options: argparse.Namespace) -> bool:
    """Compares the throughput of the service with `predict` on the same files."""
    videos, good = read_videos(options.videos, options.most), True
    repeated, rates = list(videos) * options.repeat, []

    def compare() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            answers, rate = predict(options, folder, repeated)
        print(f"predict: {rate:.1f} videos per second", flush=True)
        rates.append(rate)
        return answers

    async def run(clients: int, load: Load) -> None:
        async with service.watched(options.every):
            await load.run(clients, options.seconds)

    answers = compare()
    service = Service(options, "--max_requests", "128")
    found = {}
    try:
        for clients in options.clients:
            load, start = Load(service.port, videos, answers), time.perf_counter()
            asyncio.run(run(clients, load))
            seconds = time.perf_counter() - start
            print(load.row(f"{clients} clients", seconds), flush=True)
            found[clients] = load.statuses[200] / seconds
            good = good and load.clean
        good = _check_after(service) and good
    finally:
        service.stop()
    compare()  # again, because the speed of a machine varies
    mean = sum(rates) / len(rates)
    shown = (f"{rate / mean:.2f} with {clients}" for clients, rate in found.items())
    print(f"throughput relative to predict, by number of clients: {', '.join(shown)}")
    return good


def streams(options: argparse.Namespace) -> bool:
    """Sends frames at the network's rate and measures the time from a frame to its answer."""
    import av
    from websockets.asyncio.client import connect

    path, *_ = read_videos(options.videos, options.most)
    with av.open(path) as container:
        films = [frame.to_image() for frame in container.decode(video=0)]
    pictures = []
    for film in films:
        film.save(file := io.BytesIO(), "JPEG", quality=90)
        pictures.append(file.getvalue())
    service, good = Service(options, "--max_streams", "64"), True

    async def follow(rate: float, answers: list[dict[str, Any]], late: list[float]) -> None:
        async with connect(f"ws://{_HOST}:{service.port}/v1/stream") as connection:
            start = time.perf_counter()

            async def send() -> None:
                for number, picture in enumerate(itertools.cycle(pictures)):
                    await asyncio.sleep(start + number / rate - time.perf_counter())
                    if number > rate * options.seconds:
                        break
                    await connection.send(picture)
                await asyncio.sleep(1)
                await connection.close()

            sending = asyncio.create_task(send())
            async for message in connection:
                answers.append(json.loads(message))
                late.append(time.perf_counter() - start - answers[-1]["time"])
            await sending

    async def run(clients: int) -> None:
        nonlocal good
        rate = (await get(service.port, "/v1/model")).values["frame_rate"]
        found: list[tuple[list[dict[str, Any]], list[float]]] = [([], []) for _ in range(clients)]
        async with service.watched(options.every):
            await asyncio.gather(*(follow(rate, *each) for each in found))
        late = [each for _, times in found for each in times]
        good = good and all(answers and "error" not in answers[-1] for answers, _ in found)
        dropped = sum(answers[-1]["dropped"] for answers, _ in found if answers)
        p50, p99 = (1000 * percentile(late, share) for share in (0.5, 0.99))
        print(
            f"| {clients} streams at {rate:g} frames/s | {len(late) / options.seconds:.1f}/s"
            f" | {p50:.0f} ms | {p99:.0f} ms | dropped {dropped} |",
            flush=True,
        )

    try:
        for clients in options.clients:
            asyncio.run(run(clients))
        return _check_after(service) and good
    finally:
        service.stop()


def _check_after(service: Service) -> bool:
    """Stops the service; returns whether it ended cleanly and left nothing behind."""
    time.sleep(0.5)
    files, errors, code = service.files(), service.errors, service.stop()
    left = service.processes()
    print(f"files {files}, processes {left}, exit code {code}")
    if "Traceback" in errors:
        print(errors)
    folders = list(Path(service.folder).glob("tsm_jax-serve-*"))
    return not files and not left and code == 0 and not folders and "Traceback" not in errors


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Returns a copy with bytes changed, removed, repeated or cut off."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 4, 32, 256))):
        place = (
            rng.randrange(len(data)) if rng.random() < 0.7 else rng.randrange(min(len(data), 400))
        )
        match rng.randrange(4):
            case 0:
                data[place] = rng.randrange(256)
            case 1:
                data[place : place + 4] = rng.choice((b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff"))
            case 2:
                del data[place : place + rng.choice((1, 16, 1000))]
            case _:
                data[place:place] = data[place : place + rng.choice((1, 16, 1000))]
        data = data or bytearray(b"\0")
    return bytes(data[: rng.randint(1, len(data))] if rng.random() < 0.1 else data)


def files(options: argparse.Namespace) -> bool:
    """Sends all files of a folder and damaged videos, and regularly a valid one in between."""
    videos = read_videos(options.videos, options.most)
    odd = [path for path in Path(options.odd).rglob("*") if path.is_file()] if options.odd else []
    service, rng = Service(options, "--decode_seconds", "20"), random.Random(0)
    (name, real), *_ = videos.items()
    sources = [content for content in videos.values() if len(content) < 1 << 20] or [real]
    sources += [path.read_bytes() for path in odd if path.stat().st_size < 1 << 20]
    sources = [content for content in sources if content]

    def bodies() -> Iterator[tuple[str, bytes]]:
        for path in odd:
            yield str(path), path.read_bytes()
        for number in range(options.mutations):
            yield f"mutation {number}", mutated(rng.choice(sources), rng)

    statuses: Counter[str] = Counter()
    good = 0

    async def run() -> None:
        nonlocal good
        queue = bodies()

        async def client() -> None:
            nonlocal good
            connection = Client(service.port)
            for number, (what, body) in enumerate(queue):
                target = "/v1/predict" if number % 3 else "/v1/predict?timeline=true&window=1"
                answer = await connection.send(target, body)
                statuses[f"{answer.status} {answer.values.get('code', '')}".strip()] += 1
                if answer.status in (0, 500):
                    print(answer.status, what, answer.values, flush=True)
                if number % 25 == 0:
                    fine = (await connection.send("/v1/predict", real)).status == 200
                    good += fine
                    if not fine:
                        print(f"{name}, a valid video, failed after {what}", flush=True)
                        statuses["0 valid request failed"] += 1
            connection.close()

        await asyncio.gather(*(client() for _ in range(4)))

    try:
        asyncio.run(run())
        print(f"{dict(statuses)}; {good} valid requests in between succeeded")
        return _check_after(service) and not any(
            key[0] == "0" or key[:3] == "500" for key in statuses
        )
    finally:
        service.stop()


async def _crawl(port: int) -> None:
    """Sends a body at one byte per second."""
    with contextlib.suppress(OSError):
        reader, writer = await asyncio.open_connection(_HOST, port)
        writer.write(b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
        reading = asyncio.create_task(reader.read())
        while not reading.done():
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(1)


async def _flood(port: int) -> None:
    """Sends 10 GB in chunks, as fast as they are accepted."""
    with contextlib.suppress(OSError):
        _, writer = await asyncio.open_connection(_HOST, port)
        writer.write(b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(10 << 10):
            writer.write(b"100000\r\n" + bytes(1 << 20) + b"\r\n")
            await writer.drain()


async def _be_silent(port: int) -> None:
    with contextlib.suppress(OSError):
        reader, _ = await asyncio.open_connection(_HOST, port)
        await reader.read()


def bomb() -> bytes:
    """Returns a small video file with huge black frames."""
    import av
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "bomb.mp4")
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=25)
            stream.width, stream.height, stream.pix_fmt = 4096, 2304, "yuv420p"
            for _ in range(250):
                frame = av.VideoFrame.from_ndarray(np.zeros((3456, 4096), np.uint8), "yuv420p")
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path.read_bytes()


def hostile(options: argparse.Namespace) -> bool:
    """Compares valid requests during each kind of attack with those of a quiet period."""
    videos, good = read_videos(options.videos, options.most), True
    expensive = bomb()
    service = Service(options, "--max_upload_mb", "64")

    async def forever(make: Callable[[], Any]) -> None:
        while True:
            await make()
            await asyncio.sleep(0.05)

    async def send_bomb() -> None:
        client = Client(service.port)
        await client.send("/v1/predict", expensive)
        client.close()

    kinds = {
        "quiet": (0, lambda: asyncio.sleep(1)),
        "50 clients with a byte per second": (50, lambda: _crawl(service.port)),
        "2 clients with 10 GB": (2, lambda: _flood(service.port)),
        f"1 client with bombs ({len(expensive) >> 10} KB)": (1, send_bomb),
        "500 silent clients": (500, lambda: _be_silent(service.port)),
    }

    async def run(number: int, make: Callable[[], Any], load: Load) -> float:
        tasks = [asyncio.create_task(forever(make)) for _ in range(number)]
        await asyncio.sleep(1)
        start = time.perf_counter()
        await load.run(1, options.seconds)
        seconds = time.perf_counter() - start
        for task in tasks:
            task.cancel()
        return seconds

    try:
        quiet = None
        for name, (number, make) in kinds.items():
            load = Load(service.port, videos, None)
            print(load.row(name, asyncio.run(run(number, make, load))), end=" ")
            p99 = percentile(load.seconds, 0.99)
            quiet = quiet or p99
            print(f"p99 is {p99 / quiet:.1f} times the quiet one |", flush=True)
            good = good and load.clean and p99 < 3 * quiet
        return _check_after(service) and good
    finally:
        service.stop()


def kill(options: argparse.Namespace) -> bool:
    """Kills decoders and the engine with SIGKILL during requests; later sends SIGTERM."""
    videos, rng = read_videos(options.videos, options.most), random.Random(0)
    service = Service(options)

    async def killer() -> None:
        while True:
            for name in ("decode", "engine"):
                await asyncio.sleep(options.pause)
                if found := service.processes(name):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(rng.choice(found), signal.SIGKILL)
                    killed[name] += 1

    async def run() -> None:
        task = asyncio.create_task(killer())
        await load.run(8, float("inf"), options.requests)
        task.cancel()

    async def terminate() -> None:
        running = asyncio.create_task(last.run(8, float("inf"), 200))
        await asyncio.sleep(1)
        service.process.send_signal(signal.SIGTERM)
        await running

    try:
        killed: Counter[str] = Counter()
        load = Load(service.port, videos, None)
        start = time.perf_counter()
        asyncio.run(run())
        print(load.row(f"killed {dict(killed)}", time.perf_counter() - start))
        after = Load(service.port, videos, None)
        time.sleep(2)
        start = time.perf_counter()
        asyncio.run(after.run(1, float("inf"), 20))
        print(after.row("afterwards", time.perf_counter() - start))
        # Accepted requests must be answered; a connection that opens too late gets status 0.
        last = Load(service.port, videos, None)
        asyncio.run(terminate())
        code = service.process.wait(60)
        accepted = Path(service.folder, "access.txt").read_text().splitlines()
        lost = sum(json.loads(line)["status"] == 499 for line in accepted)
        print(f"SIGTERM: {dict(last.statuses)}, exit code {code}, accepted but lost: {lost}")
        clean = set(load.statuses) <= {200, 503} and after.clean and set(last.statuses) <= {200, 0}
        return clean and code == 0 and not lost and not load.twice
    finally:
        service.stop()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = {
        "throughput": throughput,
        "files": files,
        "hostile": hostile,
        "kill": kill,
        "streams": streams,
    }
    parser.add_argument("what", choices=commands)
    parser.add_argument("--model", required=True, help="exported folder")
    parser.add_argument("--videos", required=True, help="folder of valid videos")
    parser.add_argument("--most", type=int, help="largest number of videos to use")
    parser.add_argument("--odd", help="files: folder of unusual files to send")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--every", type=float, default=60, help="seconds between memory reports")
    parser.add_argument(
        "--repeat", type=int, default=1, help="throughput: how often predict gets each video"
    )
    parser.add_argument("--mutations", type=int, default=2000)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--pause", type=float, default=2, help="kill: seconds between kills")
    options = parser.parse_args()
    sys.exit(0 if commands[options.what](options) else 1)


if __name__ == "__main__":
    main()
