"""Published data sets, as downloaded, become lists that recipes read."""

from __future__ import annotations

import json
import math
from pathlib import Path

import jax
import pytest
from layouts import LAYOUTS

from tsm_jax import evaluate, prepare, train
from tsm_jax.assemble import evaluate as assemble_evaluate
from tsm_jax.assemble import train as assemble_train
from tsm_jax.assemble.data import build_source, build_train_clips
from tsm_jax.assemble.network import preprocessing_of
from tsm_jax.cli import load_recipe
from tsm_jax.data.lists import read_frame_list, read_video_list
from tsm_jax.data.prepare.check import check_entries
from tsm_jax.data.prepare.published import DATA_SETS
from tsm_jax.data.protocols import protocol_of
from tsm_jax.data.sources import EvalClips
from tsm_jax.data.transforms import with_direction
from tsm_jax.errors import UserError
from tsm_jax.training.mesh import make_mesh
from tsm_jax.weights.labels import dataset_labels

REPOSITORY = Path(__file__).parents[3]


def run(*arguments):
    prepare.main([str(word) for word in arguments])


@pytest.fixture
def make(tmp_path, make_video):
    def make_layout(name):
        root = tmp_path / f"my {name}"
        root.mkdir()
        return LAYOUTS[name](root, make_video)

    return make_layout


@pytest.mark.parametrize("name", LAYOUTS)
def test_lists_have_the_clips_that_are_there(name, make, tmp_path, capsys):
    layout, output = make(name), tmp_path / "lists"
    run("lists", name, *layout.arguments, "--output", output)
    out = capsys.readouterr().out
    assert "1 missing, such as " in out
    published = DATA_SETS[name].num_classes
    assert f"warning: {name} was published with {published} classes" in out
    assert (output / "labels.txt").read_text().splitlines() == layout.labels
    frames = "--frames" in layout.arguments
    prefix, entries = str(layout.prefix), []
    for file, lines in layout.lists.items():
        assert (output / file).read_text().splitlines() == lines
        read = read_frame_list if frames else read_video_list
        entries += read(output / file, prefix=prefix, num_classes=len(layout.labels))
    assert all(Path(entry.path).exists() for entry in entries)
    if name in ("jester", "sthv2"):
        source = "frames" if frames else "videos"
        verdicts = check_entries(entries, source, template="{:05}.jpg", processes=1)
        assert {verdict.kind for verdict in verdicts} == {"short"}  # readable; 6 frames for 8
    assert ("frames are named {:05}.jpg" in out) == frames
    if name == "diving48":
        (tmp_path / "my diving48" / "Diving48_vocab.json").unlink()
        run("lists", name, *layout.arguments, "--output", tmp_path / "numbers")
        assert (tmp_path / "numbers" / "labels.txt").read_text() == "class 0\nclass 1\n"


def test_full_label_files_have_the_published_classes(tmp_path):
    """V1 and V2 of Something-Something have the same names; their files order them differently."""
    names = sorted(f"Doing something, number {k}" for k in range(174))
    gestures = dataset_labels("jester_mmaction2")
    frames = tmp_path / "frames" / "1"
    frames.mkdir(parents=True)
    (frames / "000001.jpg").touch()
    found = {}
    for name, order in {"sthv1": names[::-1], "jester": gestures, "sthv2": names}.items():
        labels = tmp_path / name
        labels.mkdir()
        if name == "sthv2":
            numbers = {n: str(k) for k, n in enumerate(order)}
            (labels / "labels.json").write_text(json.dumps(numbers))
            items = [{"id": "1", "template": order[5].replace("something", "[something]")}]
            for part in ("train", "validation"):
                (labels / f"{part}.json").write_text(json.dumps(items))
        else:
            (labels / "labels.csv").write_text("\n".join(order))
            for part in ("train", "validation"):
                (labels / f"{part}.csv").write_text(f"1;{order[-1]}\n")
        lists = ["lists", name, "--annotations", labels, "--frames", tmp_path / "frames"]
        run(*lists, "--output", tmp_path / "sorted" / name)
        found[name] = (tmp_path / "sorted" / name / "labels.txt").read_text().splitlines()
        assert len(found[name]) == DATA_SETS[name].num_classes
        if name == "jester":  # mmaction2's order
            run(*lists, "--output", tmp_path / "file", "--labels", labels / "labels.csv")
            assert (tmp_path / "file" / "labels.txt").read_text().splitlines() == gestures
            assert (tmp_path / "file" / "train_frames.list").read_text() == "1 1 26\n"
            with pytest.raises(UserError, match="has different classes or a different order"):
                run(*lists, "--output", tmp_path / "file")
    assert found["sthv1"] == found["sthv2"] == names
    assert found["jester"] == dataset_labels("jester")


V1, HMDB51 = "label files/something-something-v1", "testTrainMulti_7030_splits/wave_test_split1"
# Data set, changed file, old text, new text, and part of the error message. Without old text, the
# file is new; without either, it is deleted.
MISTAKES = [
    ("sthv1", f"{V1}-train.csv", "t1;", "t1;x", "line 2: 'xLaying .* one of the 4"),
    ("sthv1", f"{V1}-train.csv", ";", ",", "line 1: expected 'id;class', found 't0,Push"),
    ("sthv1", f"{V1}-labels.csv", "\n\n", "\nA\nA\n", "repeats a name"),
    ("sthv1", f"{V1}-labels.csv", "", "", "expected one file labels.csv"),
    ("sthv2", "labels/train.json", "Holding", "x", "item 3: 'x something' is not one"),
    ("sthv2", "labels/train.json", "}]", "}", "is not valid JSON"),
    ("sthv2", "labels/train.json", '"template"', '"t"', "item 1: expected an object with"),
    ("sthv2", "labels/labels.json", '"2"', '"3"', "numbered from 0 without gaps"),
    ("sthv2", "labels/x-train.json", "", "[]", "several: train.json, x-train.json"),
    ("hmdb51", f"{HMDB51}.txt", " 2", " 7", "expected 'name.avi' and 0, 1 or 2"),
    ("diving48", "Diving48_V2_train.json", '"label": 1', '"label": 2', "label 2 is not in 0..1"),
    ("diving48", "Diving48_vocab.json", "[[", '[["a"], ["a"], [', "names a class twice"),
    ("diving48", "Diving48_vocab.json", "[[", "[1, [", "a list of lists of words"),
    ("moments", "moments_categories.txt", ",1", ",0", "numbered from 0 without gaps"),
    ("moments", "trainingSet.csv", "burying/", "running/", "line 2: 'running' is not one"),
    ("moments", "trainingSet.csv", "burying/", "burying ", "expected 'class/name.mp4'"),
]


@pytest.mark.parametrize(("name", "file", "old", "new", "message"), MISTAKES)
def test_wrong_label_files_are_named_and_nothing_is_written(
    name, file, old, new, message, make, tmp_path
):
    layout = make(name)
    path = tmp_path / f"my {name}" / file
    if old:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
    elif new:
        path.write_text(new)
    else:
        path.unlink()
    with pytest.raises(UserError, match=message) as error:
        run("lists", name, *layout.arguments, "--output", tmp_path / "lists")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "lists").exists()


def test_options_must_fit_the_data_set(make, tmp_path):
    layout = make("jester")
    labels, clips = layout.arguments[1], layout.arguments[3]
    lists = ["lists", "jester", "--output", tmp_path / "lists"]
    for arguments, message in (
        (["--frames", clips], "needs --annotations"),
        (["--annotations", labels, "--videos", clips], "comes as folders of frames"),
        (["--annotations", labels, "--frames", tmp_path / "no"], "no does not exist"),
        (["--annotations", tmp_path / "no", "--frames", clips], "the folder of the label files"),
        (["--annotations", labels, "--frames", labels], "none of the 4 clips .* such as t0"),
    ):
        with pytest.raises(UserError, match=message):
            run(*lists, *arguments)


def recipe_of(layout, folder, **changes):
    """Returns the arguments of a command for a data set's recipe, with its lists in a folder."""
    train_list, *_, val_list = layout.lists
    values = {
        "data.train_list": folder / "lists" / train_list,
        "data.val_list": folder / "lists" / val_list,
        "data.prefix": layout.prefix,
        "data.crop_size": 32,
        "data.short_side": 36,
        "model.num_classes": len(layout.labels),
        "model.backbone": "resnet18",
        "model.width": 8,
        "model.num_segments": 4,
        "batch_size": 2,
        "epochs": 1,
        "optimizer.schedule": "cosine",
        "optimizer.warmup_epochs": 0.0,
        "init_from": "",
        "workdir": folder / "run",
        **changes,
    }
    recipe = str(REPOSITORY / "configs" / f"{layout.recipe}.py")
    return ["--config", recipe, *(f"--config.{key}={value}" for key, value in values.items())]


@pytest.mark.parametrize("name", LAYOUTS)
def test_recipes_read_what_is_there(name, make, tmp_path):
    """Training clips, with swapped labels if mirrored, and the views of evaluation."""
    layout = make(name)
    run("lists", name, *layout.arguments, "--output", tmp_path / "lists")
    _, path, *overrides = recipe_of(layout, tmp_path, **{"data.flip": True})
    config = load_recipe(path, overrides)
    source = build_source(config.data, "train", len(layout.labels))
    clips, changed = build_train_clips(config, source), set()
    for index in range(len(source)):
        for epoch in range(12):
            label = int(clips.read(index, epoch)["label"])
            changed |= {frozenset((layout.labels[label], layout.labels[source.label(index)]))}
    pairs = {pair for pair in changed if len(pair) == 2}
    assert all("left" in " ".join(p).lower() or "clockwise" in " ".join(p).lower() for p in pairs)
    assert len(pairs) == {"sthv1": 1, "sthv2": 1, "jester": 2}.get(name, 0)
    source = build_source(config.data, "val", len(layout.labels))
    views = {"": 1, "mmaction2_center_crop": 1, "mit_twice_three_crop": 6}
    for protocol, count in views.items():
        of_protocol = protocol_of(preprocessing_of(config.data), protocol)
        read = EvalClips(source, 4, of_protocol).read
        shapes = {read(i)["video"].shape[:2] for i in range(len(source))}
        assert shapes == {(count, 4)}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_from_the_download_to_the_accuracy(name, make, tmp_path, capsys, monkeypatch):
    """Lists, one epoch, and evaluation with several protocols, as a user types them."""
    mesh = make_mesh(jax.devices()[:1])  # there are fewer clips than the tests have devices
    for module in (assemble_train, assemble_evaluate):
        monkeypatch.setattr(module, "make_mesh", lambda: mesh)
    layout = make(name)
    run("lists", name, *layout.arguments, "--output", tmp_path / "lists")
    arguments = recipe_of(layout, tmp_path)
    train.main(arguments)
    arguments += ["--weights", str(tmp_path / "run")]
    for protocol in ("test", "mmaction2_center_crop", "mit_twice_three_crop"):
        evaluate.main([*arguments, f"--config.data.protocol={protocol}"])
        assert f"({protocol}: views " in capsys.readouterr().out
    log = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert all(math.isfinite(json.loads(line).get("loss", 0)) for line in log)
    if with_direction(layout.labels):
        with pytest.raises(UserError, match="mirrors half of the views"):
            evaluate.main([*arguments, "--config.data.protocol=mit_ten_crop"])
