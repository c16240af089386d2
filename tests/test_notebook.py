"""The notebook is stored without outputs and runs from top to bottom without a network."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from tsm_jax.data import moving_shapes
from tsm_jax.data.protocols import Preprocessing
from tsm_jax.models.architecture import Architecture
from tsm_jax.models.network import Network
from tsm_jax.models.tsm import TSM
from tsm_jax.weights.model_directory import Model, write_model_directory

REPOSITORY = Path(__file__).parents[1]
NOTEBOOK = REPOSITORY / "notebooks" / "evaluate.ipynb"


def read():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_is_stored_without_outputs():
    notebook = read()
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
    assert "widgets" not in notebook.metadata


def is_settings(cell):
    return "parameters" in cell.metadata.get("tags", ())


def test_every_form_field_is_documented_and_used():
    cells = read().cells
    (settings,) = filter(is_settings, cells)
    fields = re.findall(r"^(\w+) = .*# @param", settings.source, re.MULTILINE)
    assert len(fields) >= 8
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    code = "\n".join(c.source for c in cells if c.cell_type == "code" and not is_settings(c))
    for field in fields:
        assert f"**{field}**" in text
        assert re.search(rf"\b{field}\b", code), f"{field} is read nowhere"


def execute(folder, **settings):
    """Runs the notebook in `folder` with other settings and returns its cells by id."""
    notebook = read()
    place = next(i for i, cell in enumerate(notebook.cells) if is_settings(cell))
    changes = "\n".join(f"{name} = {value!r}" for name, value in settings.items())
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(changes))
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]),
    }
    client = NotebookClient(
        notebook, timeout=1200, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute(env=environment)
    return {cell.id: cell.get("outputs", []) for cell in notebook.cells}


def printed(outputs):
    return "".join(output.get("text", "") for output in outputs)


def shown(outputs, kind):
    return [o["data"][kind] for o in outputs if kind in o.get("data", {})]


def check(cells, folder):
    """Checks the visible outputs, and that the report agrees with them."""
    report = json.loads((folder / "evaluation" / "report" / "metrics.json").read_text())
    assert f"top1 {report['top1']:.5f}" in printed(cells["evaluate"])
    assert (folder / "evaluation" / "report" / "report.html").is_file()
    assert 1 <= len(shown(cells["looked"], "image/png")) <= 3
    assert shown(cells["your-video"], "image/png")
    assert shown(cells["confusion"], "image/png")
    assert shown(cells["calibration"], "image/png")
    (worst,) = shown(cells["worst"], "text/html")
    films = worst.count("data:image/gif;base64,")
    assert films == min(6, report["count"])
    (comparison,) = shown(cells["off"], "text/markdown")
    assert f"| with shift | {report['top1']:.1%} |" in comparison
    return report, comparison


@pytest.fixture(scope="module")
def model():
    """A random network for the classes of shapes, half the size of the smallest one."""
    architecture = Architecture("resnet18", len(moving_shapes.LABELS), 4, width=8)
    network = Network(lambda: TSM("resnet18", num_classes=8, num_segments=4, width=8, dropout=0.0))
    rng = np.random.default_rng(0)
    shapes = {**network.param_shapes, **network.batch_stat_shapes}
    tensors = {
        name: rng.uniform(0.1, 1, shape).astype(np.float32)
        if name.endswith((".scale", ".var"))
        else rng.normal(0, 0.1, shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    return Model(architecture, Preprocessing(32, 32), list(moving_shapes.LABELS), tensors)


def test_runs_with_custom_weights_and_videos(model, tmp_path):
    write_model_directory(model, str(tmp_path / "model"))
    moving_shapes.render(tmp_path / "shapes", train_videos=8, val_videos=8, seed=0)
    cells = execute(
        tmp_path,
        weights=str(tmp_path / "model"),
        videos="folder",
        videos_folder=str(tmp_path / "shapes" / "videos"),
        most_clips=12,
        batch_size=4,
    )
    report, comparison = check(cells, tmp_path)
    assert report["count"] == 12
    assert "| shift turned off |" in comparison
    assert "trained without" not in comparison


@pytest.mark.slow
def test_shows_the_effect_of_the_shift(tmp_path):
    """Runs unchanged with the quickstart's network: about five minutes on two cores."""
    cells = execute(tmp_path)
    report, comparison = check(cells, tmp_path)
    assert shown(cells["curves"], "image/png")
    assert report["top1"] > 0.95
    without = re.search(r"\| trained without \| ([\d.]+)% \|", comparison)
    assert without, comparison
    assert float(without[1]) < 60, "a single frame should not distinguish a pair of classes"
