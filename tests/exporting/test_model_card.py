"""Tests that the model card agrees with recipe and metrics and that no name can break it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from markdown_it import MarkdownIt

from tsm_jax import cli
from tsm_jax.config import to_dict
from tsm_jax.data.protocols import Preprocessing
from tsm_jax.exporting.model_card import escape, model_card
from tsm_jax.models.architecture import Architecture
from tsm_jax.weights.model_directory import Model

RECIPE = str(Path(__file__).parents[2] / "configs" / "own_videos.py")
NASTY = [
    "<script>alert(1)</script>",
    "a|b",
    "[x](http://evil)",
    "`code`",
    "*bold* and __more__",
    "line\nbreak",
    "\\",
    "# heading",
    "&lt;",
    "![i](j)",
    "~~gone~~",
    "1. first",
    "- item",
    "snake_case_name",
    "$x^2$",
    "\u202eright to left",
    "\u4f53\u64cd",
]


def shown(markdown):
    """Returns the visible text and the kinds of Markdown elements."""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(markdown)
    inline = [child for token in tokens for child in token.children or []]
    text = "".join(child.content for child in inline if child.type in ("text", "code_inline"))
    return text, {token.type for token in tokens} | {child.type for child in inline}


@pytest.mark.parametrize("name", NASTY)
def test_a_name_is_shown_literally(name):
    text, kinds = shown(escape(name))
    assert text == " ".join(name.replace("\u202e", " ").split())
    assert kinds <= {"paragraph_open", "inline", "paragraph_close", "text", "text_special"}


@pytest.fixture
def model():
    recipe = cli.load_recipe(RECIPE, ["--config.model.num_classes=17", "--config.seed=7"])
    return Model(
        architecture=Architecture(backbone="resnet18", num_classes=17, num_segments=8, width=32),
        preprocessing=Preprocessing(crop_size=112, short_side=128),
        labels=NASTY,
        tensors={"a.kernel": np.zeros((1000, 3000)), "a.norm.mean": np.zeros(10**6)},
        provenance={
            "trained_in": "output/own_videos",
            "step": 600,
            "metrics": {"top1": 0.45, "top5": 0.9, "loss": 1.5, "count": 60, "step": 600},
            "recipe": to_dict(recipe),
            "train_clips": 160,
        },
    )


def row(card, name):
    (line,) = [line for line in card.splitlines() if line.startswith(f"| {name} |")]
    return line


def test_the_card_agrees_with_recipe_and_metrics(model):
    card = model_card(model, title="own_videos", path="output/own videos")
    assert "| 0.4500 | 0.9000 | 1.5000 | 60 validation clips of data/own/val.list" in card
    assert "A single clip accounts for 0.0167." in card
    assert "width 32, 3.0 million parameters" in card
    assert "`past_first`, 1/8 of the channels in each direction, every block" in card
    assert row(card, "training clips").endswith("| 160 of data/own/train.list |")
    assert row(card, "started from").endswith("| random weights |")
    assert row(card, "seed").endswith("| 7 |")
    assert row(card, "learning rate").endswith("cosine |")
    assert "short side to 128 pixels" in card
    assert "--model 'output/own videos' --input" in card


def test_the_card_warns_if_top1_is_that_of_a_constant_prediction(model):
    metrics = {
        **{"top1": 0.6875, "loss": 1.0, "count": 496, "mean_recall": 0.25},
        **{"classes_without_clips": 2, "largest_class": 3, "largest_class_share": 0.6875},
        **{"most_answered_class": 3, "most_answered_share": 1.0},
    }
    named = ["a", "b", "c", "*normal*"]
    provenance = {**model.provenance, "metrics": metrics, "best_metric": "mean_recall"}
    card = model_card(replace(model, labels=named, provenance=provenance), title="x", path="x")
    head = "| top-1 | mean recall | share of the largest class | loss | on |"
    assert f"{head}\n|---|---|---|---|---|\n| 0.6875 | 0.2500 | 0.6875 | 1.0000 | 496" in card
    assert "the best validation during training, by mean recall" in card
    assert "averaged over the classes (2 without clips are left out)." in card
    assert "share of the largest class, 0.6875 (3: '*normal*')" in shown(card)[0]
    above = {**metrics, "top1": 0.7}
    assert "Warning" not in model_card(
        replace(model, labels=named, provenance={"metrics": above}), title="x", path="x"
    )


def test_names_cannot_break_tables(model):
    card = model_card(model, title="<b>own</b> | x", path="x")
    _, kinds = shown(card)
    assert not kinds & {"html_inline", "html_block", "link_open", "image", "s_open"}
    for block in card.split("\n\n"):
        if block.startswith("| "):
            cells = {line.replace("\\|", "").count("|") for line in block.splitlines()}
            assert len(cells) == 1, block


def test_unknown_facts_are_omitted(model):
    bare = model_card(replace(model, provenance={}), title="x", path="x")
    assert "Not measured by the program that wrote this" in bare
    assert "Unknown." in bare
    assert "top-1" not in bare
    paddle = replace(model, provenance={"source": "TSM.pdparams", "source_sha256": "ab12"})
    assert "| SHA-256 of that file | `ab12` |" in model_card(paddle, title="x", path="x")


def test_the_card_reveals_no_folders_and_accepts_any_provenance(model):
    provenance = {**model.provenance, "recipe": {"data": 5}, "source_sha256": "`</td>"}
    card = model_card(replace(model, provenance=provenance), title="x", path="/home/ann/runs/own")
    assert "With a recipe that this version" in card and "--model own --input" in card
    assert "/home" not in card


def test_limitations_depend_on_the_network(model):
    def card(**changes):
        return model_card(replace(model, **changes), title="x", path="x")

    backwards, sides = "same action played backwards", "cannot distinguish left from right"
    assert backwards not in card()
    assert backwards in card(architecture=replace(model.architecture, shift="none"))
    assert sides in card()  # one of the names above has "left" or "right", and clips are mirrored
    assert sides not in card(labels=["walk", "run"])
    unmirrored = {**model.provenance["recipe"]["data"], "flip": False}
    recipe = {**model.provenance["recipe"], "data": unmirrored}
    assert sides not in card(provenance={**model.provenance, "recipe": recipe})


def test_many_classes_are_not_all_listed(model):
    labels = [f"class {index}" for index in range(400)]
    card = model_card(replace(model, labels=labels), title="x", path="x")
    assert "class 19 and 380 more (`labels.txt`)" in card
    assert "class 20" not in card
