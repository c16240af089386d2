"""`report.html`: the whole report as one page that needs no network and no script."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tsm_jax.report.calibration import Calibration
from tsm_jax.report.confusion import ClassResult, Confusion
from tsm_jax.report.html import data_uri, render

PAGE_FILE = "report.html"


@dataclass(frozen=True)
class ShownClip:
    """A clip that is shown with its frames.

    Attributes:
        name: of the clip.
        class_name: the right class.
        picture: file of its strip, relative to the report; or an address that holds it.
        best: (class, score, whether it is the right one), best first.
        score: of the right class.
    """

    name: str
    class_name: str
    picture: str
    best: list[tuple[str, float, bool]]
    score: float


@dataclass(frozen=True)
class Page:
    """What the page shows.

    Attributes:
        title: heading.
        warning: of the evaluation.
        metrics: what `metrics.json` has.
        about: (word, value) lines that say what was evaluated and how.
        class_names: K names.
        classes: all K.
        confused: the pairs that are confused most.
        calibration: of the scores.
        mistakes: the most confident ones.
        num_mistakes: of all clips.
        pictures: files of the `confusion` and the `calibration`, relative to the report.
        files: (file, what is in it) of the report.
    """

    title: str
    warning: str
    metrics: Mapping[str, Any]
    about: Sequence[tuple[str, str]]
    class_names: Sequence[str]
    classes: Sequence[ClassResult]
    confused: Sequence[Confusion]
    calibration: Calibration
    mistakes: Sequence[ShownClip]
    num_mistakes: int
    pictures: Mapping[str, str]
    files: Sequence[tuple[str, str]]


def write_page(folder: str, page: Page) -> None:
    """Writes `report.html` into a folder that has the pictures; they are embedded.

    Class and file names are foreign input: the template escapes everything.
    """

    def embed(name: str) -> str:
        with open(os.path.join(folder, name), "rb") as file:
            return data_uri(file.read(), "image/png")

    html = render("report.html.jinja", page=page, embed=embed)
    # A name of a file that is no UTF-8 cannot stand on a page as it is.
    with open(os.path.join(folder, PAGE_FILE), "wb") as file:
        file.write(html.encode("utf-8", errors="replace"))
