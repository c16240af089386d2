"""Streams over WebSockets: answers, errors, processes that die, shutdown, dropped frames."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette", reason="the extra serve is not installed")

from starlette.websockets import WebSocket
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tsm_jax.deploy.artifact import STREAM, read_artifact
from tsm_jax.deploy.stream import Stream
from tsm_jax.errors import UserError
from tsm_jax.serving import streams
from tsm_jax.serving.app import Service, Settings
from tsm_jax.serving.gate import Metrics
from tsm_jax.serving.limits import Limits, Refused
from tsm_jax.serving.streams import NewestFrame, Streams, warning_of


def jpeg(seed, size=(40, 52), kind="JPEG", **options):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def open_stream(service, **options):
    return connect(f"ws://127.0.0.1:{service.port}/v1/stream", **options)


def ask(connection, picture):
    connection.send(picture)
    return json.loads(connection.recv(timeout=30))


def end_of(connection):
    """Returns the last message, and the code and reason of the close."""
    values = {}
    try:
        while True:
            values = json.loads(connection.recv(timeout=30))
    except ConnectionClosed as closed:
        return values, closed.rcvd.code, closed.rcvd.reason


class Expected:
    """Returns what `tsm stream` writes for these pictures, without times."""

    def __init__(self, folder):
        self._stream = Stream.load(str(folder), engine="onnxruntime")
        self._smoother = self._stream.smoother()

    def __call__(self, picture):
        pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
        return self._smoother.update(self._stream.push(pixels)).values(0.0, 0)


def check(found, expected):
    assert found.keys() == expected.keys() and found["frame"].keys() == expected["frame"].keys()
    assert found["dropped"] == 0
    for one, other in ((found, expected), (found["frame"], expected["frame"])):
        assert one["label"] == other["label"] and one["class"] == other["class"]
        assert one["score"] == pytest.approx(other["score"], abs=2e-6)
    assert found["changed"] == expected["changed"]


def test_each_stream_answers_as_tsm_stream(stream_service, exported_stream):
    with open_stream(stream_service) as one, open_stream(stream_service) as other:
        expected = [Expected(exported_stream), Expected(exported_stream)]
        times = []
        for number in range(6):
            answers = []
            for connection, seed, follow in zip((one, other), (0, 100), expected, strict=True):
                picture = jpeg(seed + number)
                answers.append(ask(connection, picture))
                check(answers[-1], follow(picture))
            times.append(answers[0]["time"])
        assert times[0] == 0 and times == sorted(times)
    figures = stream_service.get("/metrics").body.decode()
    assert 'tsm_requests_total{path="/v1/stream",status="1000"}' in figures
    assert "tsm_dropped_frames_total" in figures and "tsm_streams" in figures


def test_a_stream_outlives_processes(stream_service, exported_stream):
    expected = Expected(exported_stream)
    with open_stream(stream_service) as connection:
        for number, name in enumerate(("decode", "engine", None)):
            picture = jpeg(number)
            check(ask(connection, picture), expected(picture))
            if name:
                os.kill(stream_service.processes()[name], signal.SIGKILL)


def test_the_orientation_tag_of_a_picture_is_applied(stream_service, exported_stream):
    exif = Image.Exif()
    exif[0x0112] = 6  # display rotated clockwise
    turned = jpeg(0, exif=exif)
    upright = np.rot90(np.asarray(Image.open(io.BytesIO(turned))), -1)
    expected = Stream.load(str(exported_stream), engine="onnxruntime").push(
        np.ascontiguousarray(upright)
    )
    with open_stream(stream_service) as connection:
        assert ask(connection, turned)["frame"]["class"] == int(expected.argmax())
        scores = np.exp(expected - expected.max())
        score = scores.max() / scores.sum()
    with open_stream(stream_service) as connection:
        assert ask(connection, turned)["frame"]["score"] == pytest.approx(score, abs=2e-6)


@pytest.mark.parametrize(
    ("message", "status", "code"),
    [
        ("text", 400, "bad_request"),
        (b"", 400, "bad_request"),
        (b"no picture", 422, "unreadable_frame"),
        (jpeg(0)[:-300], 422, "unreadable_frame"),
        (jpeg(0, kind="PNG"), 422, "unreadable_frame"),
        (jpeg(0, (200, 101), quality=1), 422, "resolution_too_high"),
    ],
)
def test_wrong_frames_end_a_stream(stream_service, message, status, code):
    with open_stream(stream_service) as connection:
        ask(connection, jpeg(1))
        connection.send(message)
        values, close, reason = end_of(connection)
        assert (values["code"], close, reason) == (code, 4000 + status, code)
        assert values["id"] and "\n" not in values["error"]


def test_a_large_frame_is_refused_while_it_arrives(stream_service):
    with open_stream(stream_service) as connection:
        with suppress(ConnectionClosed):  # it may have been refused before the second part is sent
            connection.send([bytes(5000), bytes(5000)])
        assert end_of(connection)[1] == 1009


def test_streams_are_counted(stream_service):
    with open_stream(stream_service) as one, open_stream(stream_service) as two:
        ask(one, jpeg(0))
        ask(two, jpeg(0))
        with open_stream(stream_service) as three:
            assert end_of(three)[1:] == (4503, "busy")
        ask(one, jpeg(0))


def test_requests_of_the_wrong_kind_are_refused(stream_service, service):
    with open_stream(service) as connection:
        assert end_of(connection)[1:] == (4409, "wrong_kind")
    assert service.get("/v1/stream").status == 409
    answer = stream_service.post(b"film")
    assert (answer.status, answer.values["code"]) == (409, "wrong_kind")
    assert stream_service.get("/v1/stream").values["code"] == "upgrade_required"
    described = json.loads(stream_service.get("/openapi.json").body)["paths"]
    assert "/v1/predict" not in described and "426" in described["/v1/stream"]["get"]["responses"]
    model = stream_service.get("/v1/model").values
    assert (model["kind"], model["frame_rate"]) == ("stream", 50)
    with open_stream(stream_service, additional_headers={"Cookie": "x"}) as connection:
        ask(connection, jpeg(0))


@pytest.mark.parametrize("option", [{"precision": "int8"}, {"protocol": "test"}, {"max_batch": 2}])
def test_settings_for_clips_are_refused_for_streams(exported_stream, option, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(UserError, match=f"remove --{next(iter(option))}"):
        Service(Settings(str(exported_stream), **option), lambda: None)
    assert list(tmp_path.iterdir()) == []


def test_received_frames_are_answered_on_sigterm(start_service, exported_stream, tmp_path):
    service = start_service(tmp_path, "--decoders", "1", model=exported_stream)
    with open_stream(service) as connection:
        ask(connection, jpeg(0))
        os.kill(service.processes()["decode"], signal.SIGSTOP)
        connection.send(jpeg(1))
        connection.ping().wait(10)  # the frame has arrived
        for pid in (*service.processes().values(), service.process.pid):
            os.kill(pid, signal.SIGTERM)  # as systemd does
        with pytest.raises(TimeoutError):
            connection.recv(timeout=0.3)
        os.kill(service.processes()["decode"], signal.SIGCONT)
        assert json.loads(connection.recv(timeout=30))["frame"]
        assert end_of(connection)[1:] == (4503, "stopping")
    assert service.process.wait(60) == 0
    assert "Traceback" not in service.errors.read_text()


class Silent:
    """A client that sends nothing."""

    async def receive(self):
        await asyncio.Event().wait()


def test_a_silent_client_is_disconnected_unless_it_waits_for_an_answer(exported_stream):
    limits = Limits(idle_seconds=0.01)
    artifact = read_artifact(str(exported_stream), STREAM)
    follower = Streams(artifact, limits, None, None, Metrics())

    async def run():
        frames = NewestFrame(8, lambda number: None)
        reading = asyncio.create_task(follower._read(Silent(), frames))
        await asyncio.sleep(0.1)  # nobody takes a frame: one is being computed
        assert not reading.done()
        with pytest.raises(Refused) as refused:
            await frames.take()
        assert (refused.value.code, refused.value.status) == ("idle", 408)

    asyncio.run(run())


def test_a_stopping_service_accepts_no_stream(exported_stream):
    follower = Streams(read_artifact(str(exported_stream), STREAM), Limits(), None, None, Metrics())
    follower.stop()
    sent = []

    async def run():
        async def receive():
            return {"type": "websocket.connect"}

        async def send(message):
            sent.append(message)

        scope = {"type": "websocket", "subprotocols": [], "query_string": b"", "tsm.id": "1"}
        await follower.follow(WebSocket({**scope, "headers": []}, receive, send))

    asyncio.run(run())
    assert (sent[-1]["code"], sent[-1]["reason"]) == (4503, "stopping")


class Clock:
    """A clock that only advances during sleep."""

    now = 100.0

    def monotonic(self):
        return self.now

    async def sleep(self, seconds):
        self.now += max(seconds, 0)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(streams, "time", clock)
    monkeypatch.setattr(asyncio, "sleep", clock.sleep)
    return clock


def test_the_newest_frame_at_the_rate_of_the_network(clock):
    """30 frames a second for a network of 8, computed instantly: none is dropped."""
    frames, taken = NewestFrame(8, lambda number: None), []

    async def run():
        for number in range(61):
            clock.now = 100 + number / 30
            frames.put(bytes([number]))
            if frames._early() <= 0:
                taken.append(await frames.take())

    asyncio.run(run())
    times = np.array([frame.time for frame in taken])
    assert len(taken) == 17 and frames.dropped == 0
    assert np.abs(times - np.arange(17) / 8).max() < 1 / 30 + 1e-6
    assert [frame.picture[0] for frame in taken] == np.round(times * 30).tolist()


def test_frames_not_taken_in_time_are_dropped(clock):
    """8 frames a second, of which every second one can be computed."""
    counted = []
    frames, numbers = NewestFrame(8, counted.append), []

    async def run():
        for number in range(17):
            clock.now = 100 + number / 8
            frames.put(bytes([number]))
            if number % 2 == 0:
                numbers.append((await frames.take()).picture[0])

    asyncio.run(run())
    assert numbers == list(range(0, 17, 2))
    assert frames.dropped == sum(counted) == 8


def test_a_client_that_waits_for_answers_is_slowed_to_the_rate(clock):
    frames = NewestFrame(8, lambda number: None)

    async def run():
        for number in range(9):
            frames.put(bytes([number]))
            assert (await frames.take()).picture[0] == number

    asyncio.run(run())
    assert clock.now == pytest.approx(101, abs=1 / 8) and frames.dropped == 0


def test_a_waiting_frame_comes_before_the_end(clock):
    frames = NewestFrame(8, lambda number: None)

    async def run():
        frames.put(b"1")
        frames.end(KeyError())
        assert (await frames.take()).picture == b"1"
        with pytest.raises(KeyError):
            await frames.take()

    asyncio.run(run())


def test_a_stream_that_is_too_slow_gets_a_warning():
    times = np.arange(20) / 5
    assert "sees 5 frames a second but was trained with 8:" in warning_of(times, 8)["warning"]
    assert warning_of(times, 6) == {} and warning_of(times[1:], 8) == {}
