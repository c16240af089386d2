"""The prediction benchmark measures what it reports."""

from __future__ import annotations

import json

import pytest

from tsm_jax import benchmark
from tsm_jax.errors import UserError


def test_a_line_per_combination(exported, videos, capsys):
    arguments = ["predict", "--model", str(exported), "--engines", "jax", "--repeats", "3"]
    arguments += ["--batch_sizes", "1", "2", "--input", str(videos / "0.mp4")]
    benchmark.main(arguments)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0]["kind"] == "read"
    assert lines[0]["videos"] == 1
    assert {(line["engine"], line["batch_size"]) for line in lines[1:]} == {("jax", 1), ("jax", 2)}
    for line in lines:
        assert 0 < line["fastest"] <= line["milliseconds"] <= line["slowest"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "required: COMMAND"),
        (["dance"], "invalid choice: 'dance'"),
        (["predict"], "required: --model"),
        (["predict", "--model", "/nowhere"], "/nowhere is not an exported folder"),
        (["predict", "--model", "x", "--engines", "tf"], "there is no engine 'tf'"),
        (["predict", "--model", "x", "--precisions", "fp8"], "there is no precision 'fp8'"),
        (["predict", "--model", "x", "--repeats", "0"], "must be at least 1"),
    ],
)
def test_a_mistake_is_reported_in_one_line(arguments, message):
    with pytest.raises(UserError) as error:
        benchmark.main(arguments)
    assert message in str(error.value)
