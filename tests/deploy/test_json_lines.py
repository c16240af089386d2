"""Results are resumed after an interruption, and never overwrite inputs, or others unasked."""

from __future__ import annotations

import json
import os
import threading

import numpy as np
import pytest

from tsm_jax.data.protocols import eval_protocol
from tsm_jax.deploy import drawing, prediction_run
from tsm_jax.deploy.json_lines import UNFINISHED, Results, json_line
from tsm_jax.deploy.prediction_run import predict_videos
from tsm_jax.deploy.predictor import Predictor
from tsm_jax.errors import UnreadableClipError, UserError
from tsm_jax.models.architecture import Architecture


class Engine:
    """Scores its input's brightness; stops the run when it has answered `stop_after` clips."""

    name, precision, device, batch_size = "fake", "float32", "cpu", 1
    clip_shape = (4, 16, 16, 3)

    def __init__(self):
        self.answered, self.stop_after = 0, 10**9

    def logits(self, video):
        if self.answered == self.stop_after:
            raise KeyboardInterrupt
        self.answered += 1
        return np.array([[float(video.mean()) / 100, 1.0]], np.float32)

    def features(self, video):
        return np.ones((len(video), 4, 1, 1, 1), np.float32)


class Fake(Predictor):
    """Reads no files: the brightness of a video is the number in its name."""

    def __init__(self, weights="weights", labels=("bright", "dark"), protocol="test"):
        self.fake = Engine()
        rules = eval_protocol(protocol, short_side=16, crop_size=16)
        super().__init__(
            self.fake,
            labels,
            Architecture("resnet18", 2, 4),
            rules,
            lambda: np.ones((1, 2), np.float32),
            fingerprint=lambda: weights,
        )

    def read(self, path):
        if "broken" in path:
            raise UnreadableClipError(f"cannot decode {path}")
        number = int("".join(filter(str.isdigit, os.path.basename(path))))
        return np.full((self.protocol.num_views, 4, 16, 16, 3), number, np.uint8)


VIDEOS = ["1.mp4", "2.mp4", "broken3.mp4", "4.mp4", "5.mp4", "6.mp4"]


@pytest.fixture(autouse=True)
def _inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(predictor=None, videos=VIDEOS, output="out.jsonl", **options):
    return predict_videos(predictor or Fake(), videos, output=output, **options)


def interrupt(after, predictor=None, **options):
    predictor = predictor or Fake()
    predictor.fake.stop_after = after
    with pytest.raises(KeyboardInterrupt):
        run(predictor, **options)


def read(path="out.jsonl"):
    with open(path, "rb") as file:
        return file.read()


@pytest.fixture(autouse=True)
def _drawn(monkeypatch):
    """Drawing would dominate the time of these tests; tests/deploy/test_prediction_run.py draws."""
    monkeypatch.setattr(drawing, "draw_answer", lambda *_: b"picture")


@pytest.fixture
def complete(tmp_path):
    """The output of a run without interruption."""
    run(output="complete.jsonl")
    return read("complete.jsonl")


@pytest.mark.parametrize("after", range(5))
@pytest.mark.parametrize("lost", [0, 1, 70, 10**6])
def test_an_interrupted_run_is_resumed(complete, after, lost):
    interrupt(after)
    before = read()
    assert complete.startswith(before)
    os.truncate("out.jsonl", max(0, len(before) - lost))  # as after a crash of the machine
    predictor = Fake()
    assert run(predictor) == 1
    assert read() == complete
    kept = before[: max(0, len(before) - lost)].count(b"\n")
    assert predictor.fake.answered == 5 - kept + (kept >= 3)
    assert not os.path.exists("out.jsonl" + UNFINISHED)


def test_a_half_line_at_the_end_is_dropped(complete):
    interrupt(3)
    with open("out.jsonl", "ab") as file:
        file.write(b'{"video": "5.m')
    run()
    assert read() == complete


def test_a_run_can_be_interrupted_repeatedly(complete):
    for _ in range(4):
        interrupt(1)
    assert run() == 1
    assert read() == complete


@pytest.mark.parametrize(
    "change, named",
    [
        ({"predictor": Fake("other weights")}, "model"),
        ({"predictor": Fake(protocol="mit_twice")}, "protocol"),
        ({"predictor": Fake(labels=("a", "b"))}, "labels"),
        ({"videos": [*VIDEOS, "7.mp4"]}, "videos"),
        ({"top_k": 1}, "top_k"),
        ({"visualize": "pictures"}, "visualize"),
    ],
)
def test_another_request_does_not_resume_it(complete, change, named):
    interrupt(2)
    before = read()
    with pytest.raises(UserError) as error:
        run(**change)
    assert str(error.value) == (
        f"out.jsonl is the unfinished output of another request ({named}): choose another file,"
        " or --overwrite to replace it"
    )
    assert read() == before
    run(**change, overwrite=True)
    assert read().count(b"\n") >= len(VIDEOS)
    assert not os.path.exists("out.jsonl" + UNFINISHED)


def test_finished_results_are_replaced_only_with_overwrite(complete):
    for _ in range(2):
        with pytest.raises(UserError, match="complete.jsonl already exists: choose another file"):
            run(output="complete.jsonl", videos=["9.mp4"])
    assert read("complete.jsonl") == complete
    run(output="complete.jsonl", videos=["9.mp4"], overwrite=True)
    assert [json.loads(line)["video"] for line in read("complete.jsonl").splitlines()] == ["9.mp4"]


def test_an_interrupted_overwrite_is_resumed_by_the_same_command(complete):
    run(videos=["9.mp4"])
    interrupt(2, overwrite=True)
    predictor = Fake()
    run(predictor, overwrite=True)
    assert read() == complete
    assert predictor.fake.answered == 3


def test_a_damaged_journal_is_ignored(complete):
    interrupt(2)
    for content in ("", "{", "rubbish\n", '{"model": 1}\n1 2\nrubbish\n'):
        with open("out.jsonl" + UNFINISHED, "w") as file:
            file.write(content)
        with pytest.raises(UserError, match="out.jsonl already exists"):
            run()


@pytest.mark.parametrize("link", [os.link, os.symlink, None])
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_input_is_not_overwritten(link, overwrite):
    for name in ("1.mp4", "films.txt"):
        with open(name, "w") as file:
            file.write("precious")
        output = f"{name}.jsonl" if link else name
        if link:
            link(name, output)
        options = {"videos": ["1.mp4"], "inputs": ["films.txt"], "overwrite": overwrite}
        with pytest.raises(UserError, match=f"{output} is the input {name}"):
            run(output=output, **options)
        assert read(name) == b"precious"


def test_a_picture_does_not_overwrite_an_input():
    with open("1.png", "w") as file:
        file.write("precious")
    with pytest.raises(UserError, match=r"1.png is the input 1.png"):
        run(videos=["1.png"], output=None, visualize="1.png", overwrite=True)
    assert read("1.png") == b"precious"


def test_pictures_belong_to_the_run_that_made_them(tmp_path):
    interrupt(2, visualize="pictures")
    first = (tmp_path / "pictures" / "1.png").stat().st_ino
    run(visualize="pictures")
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert names == ["1.png", "2.png", "4.png", "5.png", "6.png"]
    assert (tmp_path / "pictures" / "1.png").stat().st_ino == first
    for output in (None, "other.jsonl"):
        with pytest.raises(UserError, match="pictures/5.png already exists: choose another place"):
            run(videos=["9.mp4", "5.mp4"], output=output, visualize="pictures")
    assert not os.path.exists("other.jsonl")
    run(videos=["5.mp4"], output=None, visualize="pictures", overwrite=True)


def test_two_runs_do_not_write_one_file(complete, monkeypatch):
    entered, leave = threading.Event(), threading.Event()
    show = prediction_run._print

    def wait(line):
        entered.set()
        assert leave.wait(20)
        show(line)

    monkeypatch.setattr(prediction_run, "_print", wait)
    first = threading.Thread(target=run)
    first.start()
    assert entered.wait(20)
    try:
        with pytest.raises(UserError, match="out.jsonl is being written by another process"):
            run()
    finally:
        leave.set()
        first.join()
    assert read() == complete


def test_names_that_are_not_utf_8_survive(capsys):
    name = os.fsdecode(b"1\xff\xe9.mp4")
    run(videos=[name, "é1.mp4", os.fsdecode(b"broken\xff.mp4")])
    lines = read().decode().splitlines()  # valid UTF-8
    assert os.fsencode(json.loads(lines[0])["video"]) == b"1\xff\xe9.mp4"
    assert lines[1].startswith('{"video": "é1.mp4"')
    assert "1\\xff\\xe9.mp4" in capsys.readouterr().out


def test_no_control_codes_reach_the_terminal(capsys):
    name, label = "1\x1b]0;owned\x07\n.mp4", "\x1b[31mred"
    run(Fake(labels=(label, label)), videos=[name, "broken\x1b[31m"])
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out + captured.err
    assert captured.out.splitlines()[0] == r"1\x1b]0;owned\x07\x0a.mp4"
    assert json.loads(read().splitlines()[0])["predictions"][0]["label"] == label


def test_scores_that_are_not_finite_end_the_run(monkeypatch):
    predictor, engine = Fake(), Engine()
    monkeypatch.setattr(
        predictor.engine, "logits", lambda video: engine.logits(video) / (engine.answered != 2)
    )
    with np.errstate(divide="ignore"), pytest.raises(UserError, match="NaN or infinite"):
        run(predictor)
    assert [json.loads(line)["video"] for line in read().splitlines()] == ["1.mp4"]


def test_results_are_not_a_picture():
    with pytest.raises(UserError, match=r"x.png: results are JSON lines"):
        run(output="x.png", visualize="x.png", videos=["1.mp4"])


def test_json_holds_no_nan():
    with pytest.raises(ValueError):
        json_line({"score": float("nan")})


@pytest.mark.parametrize("output", ["folder", "/dev/full", "file/x", "pipe"])
def test_an_output_that_cannot_be_written_is_one_line(output):
    os.mkdir("folder")
    os.mkfifo("pipe")  # nobody reads it
    with open("file", "w"):
        pass
    with pytest.raises(UserError, match=f"cannot write {output}: ") as error:
        run(output=output)
    assert "\n" not in str(error.value)
    run(output="/dev/null")


def test_a_full_disk_is_one_line_and_the_run_can_be_resumed(complete, monkeypatch):
    written = []

    class Full:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            written.append(data)
            if len(written) == 4:
                raise OSError(28, "No space left on device")
            return self.file.write(data[:50])

        def __getattr__(self, name):
            return getattr(self.file, name)

    opened = Results._open
    with monkeypatch.context() as patch:
        patch.setattr(Results, "_open", lambda self, path: Full(opened(self, path)))
        with pytest.raises(UserError, match="cannot write out.jsonl: No space left on device"):
            run()
    run()
    assert read() == complete


def test_a_line_written_in_parts_is_complete(complete, monkeypatch):
    class Slow:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            return self.file.write(data[:7])

        def __getattr__(self, name):
            return getattr(self.file, name)

    opened = Results._open
    monkeypatch.setattr(Results, "_open", lambda self, path: Slow(opened(self, path)))
    run()
    assert read() == complete


def test_a_single_error_is_printed_once(capsys):
    assert run(videos=["broken.mp4"], output=None) == 1
    assert capsys.readouterr().err == "error: cannot decode broken.mp4\n"
    assert run(videos=["broken.mp4"], output="-") == 1
    assert capsys.readouterr().err == "error: 1 of 1 videos could not be read\n"


def test_timelines_are_resumed(film):
    grey = np.repeat(np.arange(60, dtype=np.uint8), 16 * 16 * 3).reshape(60, 16, 16, 3)
    videos = [str(film(f"{i}.mp4", grey + 50 * i, rate=10)) for i in range(3)]
    videos.insert(1, "broken.mp4")

    def run(output, stop_after=10**9, step=1.0):
        predictor = Fake()
        predictor.fake.stop_after = stop_after
        return predict_videos(predictor, videos, window=2.0, step=step, output=output)

    assert run("complete.jsonl") == 1
    complete = read("complete.jsonl")
    assert complete.count(b"\n") == 16
    for stop_after in (0, 3, 5, 7):
        with pytest.raises(KeyboardInterrupt):
            run("out.jsonl", stop_after)
    with pytest.raises(UserError, match=r"unfinished output of another request \(step\)"):
        run("out.jsonl", step=0.5)
    assert run("out.jsonl") == 1
    assert read() == complete
    with pytest.raises(UserError, match="out.jsonl already exists"):
        run("out.jsonl")
