"""Selection of the tensors to load."""

from __future__ import annotations

import numpy as np
import pytest

from tsm_jax.errors import UserError
from tsm_jax.weights.start import choose_start

EXPECTED = {
    "backbone.stem.conv.kernel": (7, 7, 3, 8),
    "backbone.stem.norm.mean": (8,),
    "head.fc.kernel": (16, 5),
    "head.fc.bias": (5,),
}


def tensors(**changes):
    values = {name: np.zeros(shape, np.float32) for name, shape in EXPECTED.items()}
    return {name: value for name, value in {**values, **changes}.items() if value is not None}


def test_loads_the_backbone_without_the_head():
    start = choose_start(tensors(), EXPECTED, with_head=False)
    assert sorted(start.loaded) == ["backbone.stem.conv.kernel", "backbone.stem.norm.mean"]
    assert start.fresh == ["head.fc.kernel", "head.fc.bias"]
    assert start.left == ["head.fc.kernel", "head.fc.bias"]
    assert str(start) == (
        "loaded 2 tensors (backbone); 2 newly initialised (head.fc.bias, head.fc.kernel); 2"
        " not used (head.fc.bias, head.fc.kernel)"
    )


def test_loads_the_head_on_request():
    start = choose_start(tensors(), EXPECTED, with_head=True)
    assert start.loaded.keys() == EXPECTED.keys()
    assert start.fresh == start.left == []


def test_the_backbone_loads_whatever_the_head():
    for head in (np.zeros((16, 400)), None):
        given = tensors(**{"head.fc.kernel": head, "head.fc.bias": None})
        assert len(choose_start(given, EXPECTED, with_head=False).loaded) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone.stem.norm.mean": None}, "backbone.stem.norm.mean is missing"),
        (
            {"backbone.stem.norm.mean": np.zeros(9)},
            r"backbone.stem.norm.mean has shape \(9,\) instead of \(8,\)",
        ),
        ({"backbone.extra": np.zeros(1)}, "backbone.extra is not part of the network"),
    ],
)
def test_other_differences_are_errors_unless_ignored(changes, message):
    with pytest.raises(UserError, match=message) as error:
        choose_start(tensors(**changes), EXPECTED, with_head=False, source="x.pdparams")
    assert "x.pdparams" in str(error.value)
    assert "config.init_ignore" in str(error.value)
    name = next(iter(changes))
    start = choose_start(tensors(**changes), EXPECTED, with_head=False, ignore=(name,))
    assert name not in start.loaded
    assert (name in start.fresh) == (name in EXPECTED)


def test_a_requested_head_must_fit():
    given = tensors(**{"head.fc.bias": np.zeros(400)})
    with pytest.raises(UserError, match=r"head.fc.bias has shape \(400,\) instead of"):
        choose_start(given, EXPECTED, with_head=True)
