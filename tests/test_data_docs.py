"""Every command in docs/data.md is one that the parser takes, every protocol in it exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tsm_jax import cli, prepare
from tsm_jax.config import default, flatten
from tsm_jax.data.protocols import PROTOCOLS

TEXT = (Path(__file__).parents[1] / "docs" / "data.md").read_text()
COMMANDS = [
    line.partition("#")[0].split()[3:]
    for line in TEXT.replace("\\\n", " ").splitlines()
    if line.startswith("python -m tsm_jax.prepare ")
]


class Parsed(Exception):
    """The arguments were fine; what follows needs data."""


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_commands_parse(words, monkeypatch):
    parse = cli.Parser.parse_args

    def parse_only(self, arguments):
        options = parse(self, arguments)
        if self.prog != "python -m tsm_jax.prepare":
            raise Parsed
        return options

    monkeypatch.setattr(cli.Parser, "parse_args", parse_only)
    with pytest.raises(Parsed):
        prepare.main(words)


def test_there_are_commands():
    assert len(COMMANDS) >= 12


def test_keys_and_protocols_exist():
    keys = {key for key, _ in flatten(default())}
    named = set(re.findall(r"config\.([a-z_.]+[a-z_])", TEXT))
    assert named <= keys
    table = TEXT.partition("| protocol |")[2].partition("\n\n")[0]
    rows = [line.split("|")[1] for line in table.splitlines()[2:]]
    assert set(re.findall(r"`(\w+)`", "".join(rows))) == set(PROTOCOLS)
