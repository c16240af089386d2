"""A report is complete or absent, safe with untrusted names, and true to the evaluation."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest

from tsm_jax.errors import UserError
from tsm_jax.report import writer
from tsm_jax.report.statistics import read_curves
from tsm_jax.report.writer import check_target, write_report
from tsm_jax.terminal import printable

EVIL = "<script>alert('x')</script>&\"onerror=\"alert(1).mp4"


def rows(folder, name):
    with open(folder / name, encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def report(random_answers, tmp_path_factory):
    """An evaluation and its report, which tests leave unchanged."""
    evaluation = random_answers(40, 6, skill=1.0)
    folder = tmp_path_factory.mktemp("written") / "report"
    write_report(evaluation, str(folder))
    return evaluation, folder


@pytest.fixture
def written(report, tmp_path):
    """The same, for a test that changes it."""
    return report[0], shutil.copytree(report[1], tmp_path / "report")


def test_the_folder_has_the_listed_files_and_no_others(report):
    _, folder = report
    promised = {*writer._FILES, "report.html"} - {
        "curves.png",
        "frames_seen.png",
    }  # neither a training run nor a past-only network
    assert set(os.listdir(folder)) == promised
    page = Page((folder / "report.html").read_text())
    assert all(name in page.text for name in promised - {"report.html"})
    assert "curves.png" not in page.text
    assert os.listdir(folder.parent) == ["report"]


def test_metrics_are_the_evaluations(report):
    evaluation, folder = report
    metrics = json.loads((folder / "metrics.json").read_text())
    assert {name: metrics[name] for name in evaluation.metrics} == evaluation.metrics
    assert metrics["protocol"] == "test"
    assert metrics["architecture"]["shift"] == "past_first"


def test_predictions_have_every_clip_and_all_scores(report):
    evaluation, folder = report
    lines, scores = rows(folder, "predictions.csv"), np.load(folder / "scores.npy")
    assert [line["clip"] for line in lines] == [f"videos/{i}.mp4" for i in range(40)]
    assert scores.shape == (40, 6)
    assert sum(line["correct"] == "1" for line in lines) / 40 == evaluation.metrics["top1"]
    in_five = [line["label"] in {line[f"top{n}_label"] for n in range(1, 6)} for line in lines]
    assert sum(in_five) / 40 == evaluation.metrics["top5"]
    for i, line in enumerate(lines):
        assert float(line["top1_score"]) == pytest.approx(scores[i].max(), rel=1e-5)
        assert float(line["score_of_class"]) == pytest.approx(
            scores[i, int(line["label"])], rel=1e-5
        )
    losses = -np.log(scores[np.arange(40), evaluation.labels])
    assert losses.mean() == pytest.approx(evaluation.metrics["loss"], rel=1e-5)


def test_tables_agree(report):
    evaluation, folder = report
    classes, confusion = rows(folder, "per_class.csv"), rows(folder, "confusion.csv")
    counts = np.bincount(evaluation.labels, minlength=6)
    for k, (row, line) in enumerate(zip(classes, confusion, strict=True)):
        assert int(row["clips"]) == counts[k]
        assert sum(int(line[f"class {j}"]) for j in range(6)) == counts[k]
        assert int(line[f"class {k}"]) / counts[k] == pytest.approx(float(row["top1"]), abs=1e-5)


class Page(HTMLParser):
    """Collects elements, attributes and text of a page."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attributes]

    def handle_data(self, data):
        self.text += data


def test_the_page_is_complete_without_network_or_script(report):
    evaluation, folder = report
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert "script" not in page.tags
    links = [value for _, name, value in page.attributes if name in ("src", "href")]
    assert len(links) > 5
    assert all(link.startswith("data:") for link in links)
    for name in ("top1", "top5", "mean_recall", "largest_class_share"):
        assert f"{100 * evaluation.metrics[name]:.2f}%" in page.text
    wrong = round(40 * (1 - evaluation.metrics["top1"]))
    assert f"of {wrong} wrong answers" in page.text


def test_names_cannot_break_the_page(random_answers, tmp_path):
    """Class names and file names come from people's folders and downloaded weights."""
    class_names = [
        "<img src=x onerror=alert(1)>",
        "a & b",
        '"quoted"',
        "<script>alert(2)</script>",
        "\u202egnp.\u2066exe",
        "bell\x07 escape\x1b[31m\nline",
        "x" * 5000,
        "$\\frac{_{$ 打篮球 🏀",
    ]
    evaluation = random_answers(
        30, 8, skill=-9.0, names=[f"{i}{EVIL}" for i in range(30)], class_names=class_names
    )
    write_report(evaluation, str(tmp_path / "report"))
    html = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert "script" not in page.tags
    assert not [a for a in page.attributes if a[1].startswith("on")]
    assert all(
        a[2].startswith("data:image/png") for a in page.attributes if a[:2] == ("img", "src")
    )
    assert all(printable(name) in page.text for name in class_names)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", html)
    assert f"{np.argmax(evaluation.confidence)}{EVIL}" in page.text
    lines = rows(tmp_path / "report", "predictions.csv")
    assert [line["clip"] for line in lines] == [f"{i}{EVIL}" for i in range(30)]
    assert [row["class"] for row in rows(tmp_path / "report", "per_class.csv")] == class_names


def test_names_that_are_not_utf8(random_answers, tmp_path):
    name = os.fsdecode(b"\xff,\n.avi")
    evaluation = random_answers(3, 2, skill=-9.0, names=[name] * 3)
    write_report(evaluation, str(tmp_path / "report"))
    assert rows(tmp_path / "report", "predictions.csv")[2]["clip"] == name
    (tmp_path / "report" / "report.html").read_text(encoding="utf-8")


def test_no_mistakes_and_classes_without_clips(evaluation_of, tmp_path):
    write_report(evaluation_of(np.eye(7)[:3] * 9, [0, 1, 2]), str(tmp_path / "report"))
    assert "every answer is correct" in (tmp_path / "report" / "report.html").read_text()
    assert rows(tmp_path / "report", "per_class.csv")[6]["top1"] == ""


def test_a_network_that_always_answers_the_largest_class_gets_a_warning(evaluation_of, tmp_path):
    labels = [0] + [1] * 6 + [2] * 2
    evaluation = evaluation_of(
        np.tile([0.0, 3.0, 1.0, 0.0], (9, 1)), labels, class_names=["a", "<b>", "c", "d"]
    )
    write_report(evaluation, str(tmp_path / "report"))
    page = Page((tmp_path / "report" / "report.html").read_text(encoding="utf-8"))
    assert (
        "top-1 0.6667 is not above the share of the largest class, 0.6667 (1: '<b>')" in page.text
    )
    assert "100.0% of its answers are 1: '<b>'" in page.text
    assert "1 of 4 classes have no clips" in page.text
    assert "33.33%mean recall" in page.text
    assert "top-5" not in page.text
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert "top5" not in metrics
    assert metrics["mean_recall"] == pytest.approx(1 / 3)
    assert {line["top5"] for line in rows(tmp_path / "report", "per_class.csv")} == {""}


def test_an_earlier_report_is_replaced_as_a_whole(written, evaluation_of):
    _, folder = written
    assert os.listdir(folder / "mistakes")
    write_report(evaluation_of(np.eye(2) * 9, [0, 1]), str(folder))
    assert json.loads((folder / "metrics.json").read_text())["count"] == 2
    assert not (folder / "mistakes").exists()
    assert os.listdir(folder.parent) == ["report"]


def test_a_report_that_fails_leaves_the_earlier_one(written, random_answers, monkeypatch):
    _, folder = written
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    def fail(path, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "write_text", fail)
    with pytest.raises(UserError, match="No space left"):
        write_report(random_answers(5, 3), str(folder))
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    assert os.listdir(folder.parent) == ["report"]


def test_files_that_appear_while_a_report_is_written_are_not_deleted(
    written, random_answers, monkeypatch
):
    _, folder = written
    original = writer.render

    def slow(*args, **values):
        (folder / "mine.txt").write_text("mine")
        return original(*args, **values)

    monkeypatch.setattr(writer, "render", slow)
    with pytest.raises(UserError, match="mine.txt"):
        write_report(random_answers(5, 3), str(folder))
    assert (folder / "mine.txt").read_text() == "mine"
    assert len(np.load(folder / "scores.npy")) == 40
    assert os.listdir(folder.parent) == ["report"]


def test_a_link_to_an_earlier_report_stays_a_link(written, evaluation_of, tmp_path):
    _, folder = written
    (tmp_path / "link").symlink_to(folder)
    write_report(evaluation_of(np.eye(2) * 9, [0, 1]), str(tmp_path / "link"))
    assert (tmp_path / "link").is_symlink()
    assert json.loads((folder / "metrics.json").read_text())["count"] == 2


def test_directories_of_the_machine_are_not_in_the_report(random_answers, tmp_path):
    names = [f"{tmp_path}/data/{'ab'[i % 2]}/{i}.mp4" for i in range(9)]
    evaluation = random_answers(
        9,
        3,
        skill=-9.0,
        names=names,
        weights=str(tmp_path / "runs" / "shapes"),
        list_path=f"{tmp_path}/data/val.list",
    )
    write_report(evaluation, str(tmp_path / "report"))
    files = [path for path in (tmp_path / "report").rglob("*") if path.is_file()]
    for path in files:
        assert str(tmp_path).encode() not in path.read_bytes(), path
    lines = rows(tmp_path / "report", "predictions.csv")
    assert [line["clip"] for line in lines] == [f"{'ab'[i % 2]}/{i}.mp4" for i in range(9)]
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert (metrics["weights"], metrics["list"]) == ("shapes", "val.list")


def test_a_report_of_400_classes_is_light(random_answers, tmp_path):
    names = [f"class {k} with a name of some length" for k in range(400)]
    write_report(random_answers(2000, 400, class_names=names), str(tmp_path / "report"))
    assert (tmp_path / "report" / "report.html").stat().st_size < 2_000_000
    confusion = rows(tmp_path / "report", "confusion.csv")
    assert sum(int(row[name]) for row in confusion for name in names) == 2000


def test_the_log_of_a_run_becomes_learning_curves(random_answers, tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    log = [
        {"kind": "train", "step": 20, "epoch": 1, "loss": 2.0, "top1": 0.1},
        {"kind": "train", "step": 40, "epoch": 1, "loss": 1.5, "top1": 0.2},
        {"kind": "val", "step": 40, "loss": 1.4, "top1": 0.3, "mean_recall": 0.25, "count": 9},
        {"kind": "best", "step": 40, "top1": 0.3},
        {"kind": "bad_step", "step": 50, "bad_steps": 1, "clips": ["a"]},
        {"kind": "train", "step": 60, "epoch": 2, "loss": None, "top1": 0.4},
    ]
    lines = [json.dumps(line) for line in log]
    (workdir / "metrics.jsonl").write_text("\n".join([*lines, '{"kind": "train", "st']))
    curves = read_curves(str(workdir))
    found = {(m, k): v.tolist() for m, kinds in curves.items() for k, v in kinds.items()}
    assert found == {
        ("loss", "training"): [[0.5, 1.0], [2.0, 1.5]],
        ("loss", "validation"): [[1.0], [1.4]],
        ("top-1", "training"): [[0.5, 1.0, 1.5], [0.1, 0.2, 0.4]],
        ("top-1", "validation"): [[1.0], [0.3]],
        ("mean recall", "validation"): [[1.0], [0.25]],
    }
    write_report(random_answers(5, 3, weights=str(workdir)), str(tmp_path / "report"))
    assert (tmp_path / "report" / "curves.png").is_file()
    assert "Learning curves" in (tmp_path / "report" / "report.html").read_text()
    assert read_curves(str(tmp_path / "report")) == {}
    (workdir / "metrics.jsonl").write_text("\n\0{[1]\n[]\n")
    assert read_curves(str(workdir)) == {}


def test_never_deletes_what_is_not_a_report(written, tmp_path):
    _, folder = written
    (folder / "mistakes" / "notes.txt").write_text("mine")
    (tmp_path / "a_file").write_text("mine")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "metrics_only").mkdir()
    (tmp_path / "metrics_only" / "metrics.json").write_text("{}")
    for name in ("a_file", "run", "metrics_only", "report"):
        with pytest.raises(UserError, match=re.escape(str(tmp_path / name))):
            check_target(str(tmp_path / name))
    (tmp_path / "empty").mkdir()
    check_target(str(tmp_path / "empty"))
    check_target(str(tmp_path / "new" / "one"))
