"""Intervals and comparisons agree with SciPy's, and only comparable evaluations are compared."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from scipy.stats import binomtest

from tsm_jax import evaluate
from tsm_jax.accuracy import wilson_interval
from tsm_jax.assemble import evaluate as assemble_evaluate
from tsm_jax.errors import UserError
from tsm_jax.report.comparison import Comparison, compare, read_answers
from tsm_jax.report.writer import write_report


@pytest.mark.parametrize(("right", "count"), [(0, 7), (7, 7), (1, 1), (105, 160), (13907, 19761)])
def test_intervals_are_wilsons(right, count):
    expected = binomtest(right, count).proportion_ci(0.95, method="wilson")
    low, high = wilson_interval(right, count)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= low < high <= 1


@pytest.mark.parametrize(
    ("first", "second"), [(0, 0), (1, 7), (7, 1), (5, 5), (30, 12), (0, 9), (2000, 2150)]
)
def test_p_values_are_those_of_the_exact_test(first, second):
    comparison = Comparison(("a", "b"), 10, first, second, 10)
    expected = binomtest(first, first + second).pvalue if first + second else 1.0
    assert comparison.p_value == pytest.approx(expected, rel=1e-9)
    assert comparison.difference == (first - second) / (20 + first + second)
    assert ("better" in comparison.lines()[1]) == (expected < 0.05)
    if (first, second) == (1, 7):  # 2 * (1 + 8) / 2**8, and the second is the better one
        assert comparison.p_value == 0.0703125


@pytest.fixture
def two(random_answers):
    """Two evaluations of the same clips by networks of different skill."""
    first, second = (random_answers(80, 6, skill=skill) for skill in (3.0, 1.0))
    return replace(first, weights="output/good"), replace(second, weights="output/<bad>")


def test_counts_compare_the_same_clips(two):
    comparison = compare(*two)
    right, also = (one.correct for one in two)
    counts = (comparison.both, comparison.only_first, comparison.only_second, comparison.neither)
    assert counts == tuple(
        sum(bool(a) is x and bool(b) is y for a, b in zip(right, also, strict=True))
        for x, y in ((True, True), (True, False), (False, True), (False, False))
    )
    assert comparison.difference == pytest.approx(right.mean() - also.mean())
    assert comparison.p_value < 0.05 and "output/good is better" in comparison.lines()[1]
    assert compare(*two[::-1]).p_value == comparison.p_value


def test_other_clips_or_classes_are_refused(two, random_answers):
    first, _ = two
    with pytest.raises(UserError, match="on 80 clips, .* on 79"):
        compare(first, random_answers(79, 6))
    names = [f"videos/{i}.mp4" for i in range(80)]
    with pytest.raises(UserError, match=r"one has the clip videos/0.mp4 .* videos/1.mp4"):
        compare(first, random_answers(80, 6, names=[*names[1:], "videos/80.mp4"]))
    with pytest.raises(UserError, match="with label . in its place"):
        compare(first, random_answers(80, 6, seed=1))
    named = replace(first, class_names=list("abcdef"))
    with pytest.raises(UserError, match="the same classes in another order"):
        compare(named, replace(first, class_names=list("fabcde")))
    assert compare(named, first).difference == 0  # one has no class names


def test_reports_compare_like_their_evaluations(two, tmp_path, capsys):
    folders = [str(tmp_path / name) for name in ("good", "bad")]
    for one, folder in zip(two, folders, strict=True):
        write_report(one, folder)
    comparison = compare(*two)
    assert replace(compare(*map(read_answers, folders)), names=comparison.names) == comparison
    assert compare(two[0], read_answers(folders[1])).both == comparison.both
    evaluate.main(["--compare", *folders])
    out = capsys.readouterr().out
    low = wilson_interval(int(two[0].correct.sum()), 80)[0]
    assert f"good: top1 {two[0].metrics['top1']:.5f} on 80 clips, 95 % interval: {low:.5f}" in out
    assert f"p = {comparison.p_value:.4g}, {folders[0]} is better" in out
    for arguments, message in (
        (["--compare", *folders, "--report", str(tmp_path / "x")], "is already a report"),
        (["--compare", *folders, "--weights", "x"], "replaces --weights: give only one"),
        (["--compare", folders[0], str(tmp_path / "nothing")], "there are no weights"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate.main(arguments)
    (tmp_path / "bad" / "predictions.csv").write_text("clip,label,class,correct\na,0,b,yes\n")
    with pytest.raises(UserError, match=r"predictions.csv is not the table of a report"):
        read_answers(folders[1])


def test_a_report_shows_the_comparison_and_both_learning_curves(two, tmp_path):
    runs = []
    for one, name in zip(two, ("good", "<bad>"), strict=True):
        workdir = tmp_path / name
        workdir.mkdir()
        lines = [
            {"kind": kind, "step": 10 * epoch, "epoch": epoch, "loss": 1 / epoch, "top1": 0.5}
            for epoch in (1, 2)
            for kind in ("train", "val")
        ]
        (workdir / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
        runs.append(replace(one, weights=str(workdir)))
    comparison = compare(*runs)
    write_report(runs[0], str(tmp_path / "alone"))
    write_report(runs[0], str(tmp_path / "report"), comparison)
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert metrics["comparison"]["names"] == ["good", "<bad>"]
    assert metrics["comparison"]["p_value"] == comparison.p_value
    assert metrics["top1_interval"] == [*wilson_interval(int(runs[0].correct.sum()), 80)]
    assert "comparison" not in json.loads((tmp_path / "alone" / "metrics.json").read_text())
    page = (tmp_path / "report" / "report.html").read_text()
    assert "Compared with &lt;bad&gt;" in page and "only &lt;bad&gt; right" in page
    assert str(tmp_path) not in page
    curves = [(tmp_path / name / "curves.png").read_bytes() for name in ("alone", "report")]
    assert curves[0] != curves[1]


def test_both_are_evaluated_on_the_list_of_the_first_that_has_a_recipe(two, monkeypatch):
    asked = []

    def evaluated(config, weights, *, average):
        asked.append((config, weights))
        return two[len(asked) - 1]

    monkeypatch.setattr(assemble_evaluate, "evaluate_weights", evaluated)
    monkeypatch.setattr(assemble_evaluate, "is_workdir", lambda path: path == "run")
    monkeypatch.setattr(assemble_evaluate, "_recipe_of", lambda path: f"recipe of {path}")
    assemble_evaluate.evaluate_both(None, "model", "run")
    assert asked == [("recipe of run", "model"), ("recipe of run", "run")]
