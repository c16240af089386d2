"""Contents of metrics.jsonl and TensorBoard's files, whatever happened before."""

from __future__ import annotations

import io
import json
import resource
import struct
import sys
import time
from types import SimpleNamespace

import pytest

from tsm_jax.config import Plan, default
from tsm_jax.errors import UserError
from tsm_jax.training.log import METRICS_FILE, RunLog
from tsm_jax.training.progress import MovingAverage, RemainingTime, StepTimer
from tsm_jax.training.wandb_log import WeightsAndBiases


def lines(directory):
    return [json.loads(line) for line in (directory / METRICS_FILE).read_text().splitlines()]


def steps(directory):
    return [(line["kind"], line["step"]) for line in lines(directory)]


def open_log(directory, first_step=0, **options):
    return RunLog(str(directory), first_step=first_step, **options)


@pytest.fixture
def stopped_at_4(tmp_path):
    with open_log(tmp_path) as log:
        for kind, step in (("train", 2), ("train", 4), ("val", 4), ("best", 4), ("train", 6)):
            log.record(kind, step, {"loss": 1.5})
    return tmp_path


def test_lines_of_steps_to_be_repeated_are_removed(stopped_at_4):
    with open_log(stopped_at_4, 4):
        pass
    assert steps(stopped_at_4) == [("train", 2), ("train", 4), ("val", 4), ("best", 4)]


def test_lines_of_a_validation_to_be_repeated_are_removed(stopped_at_4):
    with open_log(stopped_at_4, 4, validated=False):
        pass
    assert steps(stopped_at_4) == [("train", 2), ("train", 4)]


@pytest.mark.parametrize("torn", [1, 5, 20])
def test_a_truncated_last_line_does_not_corrupt_the_next(stopped_at_4, torn):
    path = stopped_at_4 / METRICS_FILE
    path.write_bytes(path.read_bytes()[:-torn])  # one byte less: a whole line without its end
    with open_log(stopped_at_4, 6) as log:
        log.record("train", 8, {"loss": 1.0})
    expected = [("train", 6)] if torn == 1 else []
    assert steps(stopped_at_4)[4:] == [*expected, ("train", 8)]


def test_values_that_are_not_finite_become_null(tmp_path):
    with open_log(tmp_path) as log:
        log.record("train", 1, {"loss": float("nan"), "clips": ["a"], "seconds": None})
    text = (tmp_path / METRICS_FILE).read_text()
    assert text == '{"kind": "train", "step": 1, "loss": null, "clips": ["a"], "seconds": null}\n'


@pytest.fixture
def event_pb2(monkeypatch):
    """The message types as defined by another package."""
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it takes three seconds
    return pytest.importorskip("tensorboardX.proto.event_pb2")


def events(directory, event_pb2):
    """An independent reader of the record format: length, checksum, bytes, checksum."""
    (path,) = directory.iterdir()
    data, found = path.read_bytes(), []
    while data:
        length, length_crc = struct.unpack("<QI", data[:12])
        body, (body_crc,) = data[12 : 12 + length], struct.unpack("<I", data[12 + length :][:4])
        assert length_crc == masked_crc32c(data[:8])
        assert body_crc == masked_crc32c(body)
        found.append(event_pb2.Event.FromString(body))
        data = data[16 + length :]
    return found


def masked_crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_event_files_hold_the_numbers_and_where_a_run_continued(tmp_path, event_pb2):
    step = 2**40 + 300  # of several bytes
    with open_log(tmp_path, step - 1) as log:
        log.record("train", step, {"loss": 0.5, "größte" * 30: -3.0e38, "clips": ["a"]})
        version, restart, point = events(tmp_path / "tensorboard", event_pb2)  # on disk already
    assert version.file_version == "brain.Event:2"
    assert restart.session_log.status == event_pb2.SessionLog.START
    assert (restart.step, point.step) == (step, step)
    assert time.time() - 60 < version.wall_time <= point.wall_time <= time.time()
    assert [(v.tag, v.simple_value) for v in point.summary.value] == [
        ("train/loss", 0.5),
        ("train/" + "größte" * 30, pytest.approx(-3.0e38)),
    ]


def test_runs_that_start_within_a_second_keep_their_events(tmp_path):
    for _ in range(3):
        open_log(tmp_path).__exit__()
    assert len(list((tmp_path / "tensorboard").iterdir())) == 3


@pytest.mark.parametrize("full", ["metrics", "events"])
def test_a_full_disk_is_reported_at_the_line(tmp_path, full):
    earlier = json.dumps({"kind": "train", "step": 0, "clips": ["a" * 1000]}) + "\n"
    if full == "metrics":
        (tmp_path / METRICS_FILE).write_text(earlier)
    with open_log(tmp_path, 1) as log:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        # The events so far are longer than the line.
        resource.setrlimit(resource.RLIMIT_FSIZE, (60, limits[1]))
        try:
            with pytest.raises(UserError, match="File too large") as error:
                log.record("train", 1, {"loss": 1.0})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(tmp_path) in str(error.value)
    written = (tmp_path / METRICS_FILE).read_text()
    assert written == (earlier if full == "metrics" else written.splitlines()[0] + "\n")


def test_other_loggers_get_the_numbers_and_are_closed(tmp_path):
    class Recorder:
        def __init__(self):
            self.written, self.closed = [], False

        def write(self, kind, step, numbers):
            self.written.append((kind, step, dict(numbers)))

        def close(self):
            self.closed = True

    recorder = Recorder()
    with open_log(tmp_path, loggers=[recorder]) as log:
        log.record("val", 3, {"loss": 0.5, "clips": ["a"], "top1": float("nan")})
        assert recorder.written == [("val", 3, {"loss": 0.5})]
    assert recorder.closed


def test_weights_and_biases_continues_the_same_run(tmp_path, monkeypatch):
    runs = []

    class Wandb:
        Error = RuntimeError

        @staticmethod
        def init(**options):
            runs.append((options, logged := []))
            return SimpleNamespace(
                define_metric=lambda *_, **__: None, log=logged.append, finish=lambda: None
            )

    monkeypatch.setitem(sys.modules, "wandb", Wandb)
    config = default()
    config.workdir = str(tmp_path / "my_run")
    (tmp_path / "my_run").mkdir()
    for step in (2, 4):
        with open_log(tmp_path, step, loggers=[WeightsAndBiases(config)]) as log:
            log.record("train", step, {"loss": 1.0})
    assert [logged for _, logged in runs] == [[{"step": s, "train/loss": 1.0}] for s in (2, 4)]
    assert runs[0][0]["id"] == runs[1][0]["id"]
    assert runs[0][0]["config"]["model"]["backbone"] == config.model.backbone
    monkeypatch.setattr(Wandb, "init", lambda **_: (_ for _ in ()).throw(Wandb.Error("no key")))
    with pytest.raises(UserError, match="wandb: no key"):
        WeightsAndBiases(config)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="not installed"):
        WeightsAndBiases(config)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_bars_replace_each_other_on_stderr_and_lines_go_to_stdout(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with open_log(tmp_path) as log:
        log.show("train", 1, 4, "epoch 1/2  ETA 0:12:34")
        log.say("a line")
        log.show("validate", 1, 3)
        log.show("train", 2, 4)
    assert capsys.readouterr().out == "a line\n"
    shown = sys.stderr.getvalue()
    assert all(part in shown for part in ("train", "1/4", "ETA 0:12:34", "validate", "1/3", "2/4"))
    assert "a line" not in shown


def test_no_speed_is_reported_before_a_step_was_timed():
    timer = StepTimer()
    assert (timer.batch_seconds, timer.reader_seconds) == (None, None)
    timer.count(0.5)
    assert timer.reader_seconds == 0.5


def test_the_remaining_time_includes_every_remaining_validation():
    plan = Plan(steps_per_epoch=10, total_steps=30, boundaries=(), warmup_steps=0)
    remaining = RemainingTime(plan, validation_steps=4.0)
    assert remaining.seconds(1) is None
    remaining.step.add(2.0)
    assert remaining.seconds(0) == 30 * 2 + 3 * 8  # estimated from the work
    remaining.validation.add(5.0)
    assert remaining.seconds(10) == 20 * 2 + 3 * 5  # that of the first epoch is to come
    assert remaining.seconds(10, validated=0.2) == 20 * 2 + 2.8 * 5
    assert remaining.seconds(11) == 19 * 2 + 2 * 5
    assert remaining.seconds(30, validated=1.0) == 0


def test_a_moving_average_follows_slowly_and_forgets_its_start():
    average = MovingAverage(0.02)
    for value in (1.0, 3.0):
        average.add(value)
    assert average.value == 2.0  # a plain mean at first
    for _ in range(60):
        average.add(2.0)
    average.add(102.0)  # one slow step
    assert 2 < average.value <= 4.0001
    for _ in range(300):
        average.add(7.0)
    assert average.value == pytest.approx(7.0, abs=0.05)
