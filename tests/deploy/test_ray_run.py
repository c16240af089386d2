"""`predict --ray` gives the lines, pictures and features of one machine.

Ray is the stand-in of tests/fake_ray.py.
"""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest

from tsm_jax import predict
from tsm_jax.assemble.load import load
from tsm_jax.data.prepare.jobs import JobFailure
from tsm_jax.deploy import drawing
from tsm_jax.deploy.ray_run import OnRay
from tsm_jax.errors import UserError

RAY = ["--ray", "10.0.0.1:6379"]


def run(exported, videos, *more):
    """The exit code."""
    words = ["--model", exported, "--input", videos, *more]
    try:
        predict.main([str(word) for word in words])
    except SystemExit as end:
        return end.code
    return 0


@pytest.fixture
def nodes(fake_ray):
    fake_ray.work = fake_ray.at_once
    fake_ray.lose = lambda item: fake_ray.rng.random() < 0.3
    return fake_ray


@pytest.mark.parametrize("more", [[], ["--window", "0.5"]], ids=["whole", "windows"])
def test_lines_equal_those_of_one_machine(nodes, exported, videos, tmp_path, capsys, more):
    printed = []
    for name, where in (("here", []), ("there", RAY)):
        assert run(exported, videos, "--output", tmp_path / name, *more, *where) == 1
        printed.append(capsys.readouterr())
    assert (tmp_path / "here").read_bytes() == (tmp_path / "there").read_bytes()
    assert printed[0].out == printed[1].out
    assert "2_broken.mp4" in printed[1].err
    assert len(nodes.items) >= 6
    assert not list(tmp_path.glob("*.unfinished"))


def test_an_interrupted_run_is_resumed(nodes, exported, videos, tmp_path, capsys):
    assert run(exported, videos, "--output", tmp_path / "whole") == 1
    lose = nodes.lose
    nodes.lose = lambda item: item.endswith("4.mp4")
    with pytest.raises(UserError, match="10 workers were lost"):
        run(exported, videos, "--output", tmp_path / "cut", *RAY)
    nodes.lose = lose
    nodes.tasks.clear()
    assert run(exported, videos, "--output", tmp_path / "cut", *RAY) == 1
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()
    assert str(videos / "0.mp4") not in nodes.items


def test_a_video_that_crashes_its_process_is_a_line(nodes, exported, videos, tmp_path, capsys):
    failure = JobFailure("the decoder crashed (exit code -11)", "crashed", -11)
    nodes.work = lambda order, items: [
        nodes.done(failure, path)
        if path.endswith("1.mp4")
        else nodes.at_once(order, [(item, path)])[0]
        for item, path in items
    ]
    assert run(exported, videos, "--output", tmp_path / "a", *RAY) == 2
    lines = [json.loads(line) for line in (tmp_path / "a").read_text().splitlines()]
    path = str(videos / "1.mp4")
    assert lines[1] == {"video": path, "error": f"{path}: the decoder crashed (exit code -11)"}
    assert [("error" in line) for line in lines] == [False, True, True, False, False, False]


def test_pictures_and_features(nodes, exported, videos, tmp_path):
    for name, where in (("here", []), ("there", RAY)):
        assert run(exported, videos / "0.mp4", "--visualize", tmp_path / f"{name}.png", *where) == 0
        assert run(exported, videos, "--embed", "--output", tmp_path / f"{name}.npz", *where) == 1
    assert (tmp_path / "here.png").read_bytes() == (tmp_path / "there.png").read_bytes()
    here, there = (np.load(tmp_path / f"{name}.npz") for name in ("here", "there"))
    assert list(here["videos"]) == list(there["videos"])
    np.testing.assert_array_equal(here["clips"], there["clips"])
    np.testing.assert_array_equal(here["frames"], there["frames"])


@pytest.mark.parametrize("more", [[], ["--window", "0.5"]], ids=["whole", "windows"])
def test_nodes_draw_only_what_was_requested(nodes, exported, videos, tmp_path, monkeypatch, more):
    """It takes ten times as long as an answer."""
    drawn = []
    monkeypatch.setattr(drawing, "draw_answer", lambda *_: drawn.append("picture"))
    monkeypatch.setattr(drawing, "draw_timeline", lambda *_: drawn.append("plot"))
    run(exported, videos, "--output", tmp_path / "lines", *more, *RAY)
    assert drawn == []
    run(exported, videos, "--visualize", tmp_path / "pictures", *more, *RAY)
    assert drawn


def test_a_node_with_another_model_is_refused(nodes, exported):
    opened = load(exported)
    other = OnRay("10.0.0.1:6379", functools.partial(_relabelled, str(exported)))
    with pytest.raises(UserError, match="on a node is not the same model as on this machine"):
        list(other.run(opened, ["a.mp4"], str))


def _relabelled(folder):
    predictor = load(folder)
    predictor.labels[0] = "another"
    return predictor
