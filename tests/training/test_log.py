"""What metrics.jsonl and TensorBoard's files hold, whatever happened before."""

from __future__ import annotations

import io
import json
import resource
import struct
import sys

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from tsm_jax.errors import UserError
from tsm_jax.training.log import METRICS_FILE, RunLog, StepTimer


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


def test_lines_of_steps_that_will_be_done_again_are_removed(stopped_at_4):
    with open_log(stopped_at_4, 4):
        pass
    assert steps(stopped_at_4) == [("train", 2), ("train", 4), ("val", 4), ("best", 4)]


def test_a_validation_that_will_be_done_again_is_removed(stopped_at_4):
    with open_log(stopped_at_4, 4, validated=False):
        pass
    assert steps(stopped_at_4) == [("train", 2), ("train", 4)]


@pytest.mark.parametrize("torn", [1, 5, 20])
def test_a_torn_last_line_does_not_spoil_the_next(stopped_at_4, torn):
    path = stopped_at_4 / METRICS_FILE
    path.write_bytes(path.read_bytes()[:-torn])  # one byte less: a whole line without its end
    with open_log(stopped_at_4, 6) as log:
        log.record("train", 8, {"loss": 1.0})
    expected = [("train", 6)] if torn == 1 else []
    assert steps(stopped_at_4)[4:] == [*expected, ("train", 8)]


def test_what_is_not_finite_becomes_null(tmp_path):
    with open_log(tmp_path) as log:
        log.record("train", 1, {"loss": float("nan"), "clips": ["a"], "seconds": None})
    text = (tmp_path / METRICS_FILE).read_text()
    assert text == '{"kind": "train", "step": 1, "loss": null, "clips": ["a"], "seconds": null}\n'


def events(directory):
    """An independent reader of the record format: length, checksum, bytes, checksum."""
    (path,) = directory.iterdir()
    data, found = path.read_bytes(), []
    while data:
        length, length_crc = struct.unpack("<QI", data[:12])
        body, (body_crc,) = data[12 : 12 + length], struct.unpack("<I", data[12 + length :][:4])
        assert length_crc == masked_crc32c(data[:8])
        assert body_crc == masked_crc32c(body)
        found.append(Event.FromString(body))
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


def test_event_files_hold_the_numbers_and_where_a_run_went_on(tmp_path):
    with open_log(tmp_path, 4) as log:
        log.record("train", 6, {"loss": 0.5, "top1": 0.25, "clips": ["a"]})
        version, restart, point = events(tmp_path / "tensorboard")  # it is on disk already
    assert version.file_version == "brain.Event:2"
    assert (restart.session_log.status, restart.step) == (SessionLog.START, 5)
    assert point.step == 6
    assert [(v.tag, v.simple_value) for v in point.summary.value] == [
        ("train/loss", 0.5),
        ("train/top1", 0.25),
    ]


def test_runs_that_start_within_a_second_keep_their_events(tmp_path):
    for _ in range(3):
        open_log(tmp_path).__exit__()
    assert len(list((tmp_path / "tensorboard").iterdir())) == 3


@pytest.mark.parametrize("full", ["metrics", "events"])
def test_a_full_disk_fails_at_the_line(tmp_path, full):
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


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_bars_follow_each_other_on_stderr_and_lines_stay_on_stdout(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with open_log(tmp_path) as log:
        log.show("train", 1, 4)
        log.say("epoch 1/2")
        log.show("validate", 1, 3)
        log.show("train", 2, 4)
    assert capsys.readouterr().out == "epoch 1/2\n"
    shown = sys.stderr.getvalue()
    assert all(part in shown for part in ("train", "1/4", "validate", "1/3", "2/4"))
    assert "epoch" not in shown


def test_there_is_no_speed_before_a_step_was_timed():
    timer = StepTimer()
    assert (timer.batch_seconds, timer.reader_seconds) == (None, None)
    timer.count(0.5)
    assert timer.reader_seconds == 0.5
