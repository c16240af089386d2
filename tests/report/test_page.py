"""The HTML for notebooks, and names that must not break it."""

from __future__ import annotations

import base64
import io
import re

from PIL import Image

from tsm_jax.report.writer import class_accuracies, playing_clips

EVIL = "<script>alert(1)</script>"


def test_clips_play_and_their_names_are_escaped(random_answers):
    evaluation = random_answers(3, 2, names=[EVIL, "b", "c"], class_names=[f"{EVIL}1", f"{EVIL}2"])
    html = playing_clips(evaluation, [0, 2])
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    films = re.findall(r'src="data:image/gif;base64,([^"]+)"', html)
    assert len(films) == 2
    with Image.open(io.BytesIO(base64.b64decode(films[0]))) as film:
        assert film.n_frames == 12
        assert film.height == 160


def test_classes_with_the_largest_loss_come_first(evaluation_of):
    names = ["a", "b", EVIL, "without clips"]
    labels = [0, 1, 2]
    before = evaluation_of([[9, 0, 0, 0], [0, 9, 0, 0], [9, 0, 0, 0]], labels, class_names=names)
    after = evaluation_of([[9, 0, 0, 0], [9, 0, 0, 0], [9, 0, 0, 0]], labels, class_names=names)
    html = class_accuracies({"with": before, "without": after})
    assert "<script" not in html
    assert "without clips" not in html
    rows = re.findall(r'<tr><td style="text-align: left">(.*?)</td>', html)
    assert rows == ["b", "a", "&lt;script&gt;alert(1)&lt;/script&gt;"]
    assert (
        re.findall(r"</span></span> ([\d.]+)%", html)
        == ["100.0", "0.0", "100.0", "100.0"] + ["0.0"] * 2
    )
    alone = re.findall(
        r'<tr><td style="text-align: left">(.*?)</td>', class_accuracies({"": after})
    )
    assert alone == ["b", "&lt;script&gt;alert(1)&lt;/script&gt;", "a"]
