"""Frames in time: picking, dropping and waiting."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import av
import numpy as np
import pytest

from tsm_jax.data.lists import read_video_list
from tsm_jax.data.moving_shapes import draw_clip
from tsm_jax.data.sources import SyntheticSource, VideoSource, measure_frame_rate
from tsm_jax.deploy import live_input
from tsm_jax.deploy.live_input import Frame, Gap, Input, Picker
from tsm_jax.errors import UserError


@pytest.mark.parametrize("rate", [1.0, 4.8, 7.5, 24.0, 30.0])
@pytest.mark.parametrize("source_rate", [15, 24, 30, 59.94])
def test_picks_as_many_frames_a_second_as_in_training(rate, source_rate):
    jitter = np.random.default_rng(0).uniform(-0.2, 0.2, int(60 * source_rate)) / source_rate
    times = (np.arange(len(jitter)) + 0.5) / source_rate + jitter
    picked = times[list(map(Picker(rate), times))]
    assert len(picked) == pytest.approx(60 * min(rate, source_rate), rel=0.02, abs=1)
    if rate < source_rate / 2:  # and evenly
        assert np.abs(np.diff(picked) - 1 / rate).max() < 1.5 / source_rate


def test_picking_goes_on_after_a_gap_and_when_a_clock_is_set_back():
    picker = Picker(2)
    assert [picker(t) for t in (0, 0.25, 0.5, 0.75)] == [False, True, False, True]
    assert [picker(t) for t in (60, 60.1, 60.5)] == [True, False, True]  # no burst
    assert [picker(t) for t in (1.0, 1.1, 1.5)] == [True, False, True]
    assert all(map(Picker(0), (0, 0.01, 0.02)))


def test_a_file_gives_the_middle_of_each_part(film, tmp_path):
    frames = draw_clip(0, np.random.default_rng(0))[:24]
    path = film(tmp_path / "a.mp4", frames)
    moments = list(Input(str(path), 8.0))
    assert len(moments) == 8 and all(moment.picked for moment in moments)
    assert [round(moment.time * 24 - 0.5) for moment in moments] == [1, 4, 7, 10, 13, 16, 19, 22]
    every = list(Input(str(path), 8.0, every_frame=True))
    assert [moment.picked for moment in every].count(True) == 8 and len(every) == 24
    np.testing.assert_array_equal(every[4].pixels, moments[1].pixels)


def test_the_frame_rate_of_training_is_that_of_the_middle_clip(film, tmp_path):
    entries = []
    for count in (12, 24, 48):
        frames = np.zeros((count, 32, 32, 3), np.uint8)
        entries.append((str(film(tmp_path / f"{count}.mp4", frames)), 0))
    listed = tmp_path / "train.list"
    listed.write_text("".join(f"{path} {label}\n" for path, label in entries))
    source = VideoSource(read_video_list(str(listed), num_classes=1))
    assert measure_frame_rate(source, 8) == 8.0
    assert measure_frame_rate(SyntheticSource(4, 2), 8) == 0  # not known
    (tmp_path / "24.mp4").write_bytes(b"")
    assert measure_frame_rate(source, 8) == pytest.approx(8 / 1.25)


class Camera:
    """Delivers frames whose pixels are their number, at a rate, and disappears between them."""

    def __init__(self, *runs, rate=200.0):
        self.runs, self.rate, self.opened, self.number = list(runs), rate, 0, 0

    def __call__(self, source):
        if not self.runs:
            raise live_input._SourceLostError("nothing there")
        self.opened += 1
        return self._frames(self.runs.pop(0))

    def _frames(self, count):
        for _ in range(count):
            self.number += 1
            number = self.number
            yield None, lambda number=number: np.full((4, 4, 3), number % 256, np.uint8)
            time.sleep(1 / self.rate)
        raise live_input._SourceLostError("unplugged")


@pytest.fixture
def camera(monkeypatch):
    def install(*runs, **arguments):
        made = Camera(*runs, **arguments)
        monkeypatch.setattr(live_input, "_opened", made)
        monkeypatch.setattr(live_input, "_RETRY", 0.01)
        return made

    return install


def take(frames, until):
    taken = []
    for moment in frames:
        taken.append(moment)
        if until(moment):
            return taken
    return taken


def test_a_lost_camera_is_waited_for(camera):
    camera(3, 3)
    frames = iter(Input("0", 0))
    moments = take(frames, lambda m: isinstance(m, Gap) and "back" in m.text)
    gaps = [moment.text for moment in moments if isinstance(moment, Gap)]
    assert gaps == ["camera 0 was lost (unplugged): waiting for it", "camera 0 is back"]
    assert isinstance(next(frames), Frame)  # the camera is back


def test_frames_not_taken_in_time_are_dropped_and_counted(camera):
    made = camera(10_000)
    frames = Input("0", 0)
    numbers = []
    for moment in frames:
        assert isinstance(moment, Frame)
        numbers.append(int(moment.pixels[0, 0, 0]))
        while made.number < numbers[-1] + 5:  # slower than they arrive
            time.sleep(0.001)
        if len(numbers) == 5:
            break
    assert numbers == sorted(set(numbers)) and numbers[-1] > 10  # the newest ones
    assert 0 < frames.dropped <= made.number


def test_no_camera_no_address_no_video(tmp_path):
    for source, message in (
        ("99", "cannot open camera 99: no camera has this number"),
        ("rtsp://user:secret@127.0.0.1:9/x", r"cannot open rtsp://127.0.0.1:9/x: "),
        ("gopher://x", "gopher://x is not the address of a stream"),
        (str(tmp_path / "no.mp4"), "No such file"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            Input(source, 5)
        assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_an_address_gives_frames_by_their_own_time(film, tmp_path):
    """A server sends a film as MPEG-TS, once per request."""
    film(tmp_path / "a.mp4", draw_clip(0, np.random.default_rng(0))[:24])
    with av.open(str(tmp_path / "a.mp4")) as source, av.open(str(tmp_path / "a.ts"), "w") as target:
        stream = source.streams.video[0]
        copied = target.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.stream = copied
                target.mux(packet)
    content = (tmp_path / "a.ts").read_bytes()

    class Server(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        frames = Input(f"http://127.0.0.1:{server.server_port}/a.ts", 8.0, every_frame=True)
        moments = take(frames, lambda moment: isinstance(moment, Gap))
    finally:
        server.shutdown()
        server.server_close()
    assert "was lost" in moments[-1].text
    assert moments[-2].time - moments[0].time <= 1.0  # a second of film, however fast it arrived
