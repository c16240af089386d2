"""What README, the pages in docs/ and the recipes' docstrings say can be typed and found."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tsm_jax import benchmark, cli, convert, evaluate, export, predict, prepare, serve, train
from tsm_jax.config import default, flatten
from tsm_jax.data.protocols import PROTOCOLS

REPOSITORY = Path(__file__).parents[1]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/*.md", "launch/*.md")
    for path in REPOSITORY.glob(pattern)
)
RECIPES = sorted((REPOSITORY / "configs").glob("*.py"))
MAINS = {
    "benchmark": benchmark.main,
    "convert": convert.main,
    "evaluate": evaluate.main,
    "export": export.main,
    "predict": predict.main,
    "prepare": prepare.main,
    "serve": serve.main,
    "train": train.main,
}
PLACEHOLDERS = {"RECIPE": "configs/quickstart.py"}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHELLS = ("", "sh", "bash")
TRANSLATED = sorted(REPOSITORY.rglob("*.zh-CN.md"))


def name_of(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def prose(text: str) -> str:
    return BLOCK.sub("", text)


def shell_lines(text: str) -> Iterator[str]:
    """Commands of the shell blocks, continued lines joined, joined commands parted."""
    for language, block in BLOCK.findall(text):
        if language not in SHELLS:
            continue
        for line in block.replace("\\\n", " ").splitlines():
            yield from re.split(r" (?:&&|\|) ", line.strip())


def inline_commands(text: str) -> Iterator[str]:
    """Commands in running text and tables that are more than a verb."""
    for span in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", prose(text)):
        if re.match(r"(python -m tsm_jax\.\w+|tsm \w+) .*--", span):
            yield span.replace("\\|", "|")


def docstring_commands(path: Path) -> Iterator[str]:
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("    "):
            yield line.strip()


def command_of(line: str) -> tuple[str, list[str]] | None:
    """The verb and its arguments if a line runs one of ours."""
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(line, comments=True)]
    while words and re.match(r"[A-Z_]+=", words[0]):  # VARIABLE=value in front
        words = words[1:]
    if words[:2] in (["python", "launch/local.py"], ["python3", "launch/local.py"]):
        return "train", words[words.index("--") + 1 :]
    if words[:2] == ["python", "-m"] and words[2].startswith("tsm_jax."):
        return words[2].removeprefix("tsm_jax."), words[3:]
    if words[:1] == ["tsm"]:
        return words[1], words[2:]
    return None


def all_commands() -> list[tuple[str, str]]:
    """(where, line), each once a place."""
    # One with `...` in it is no whole command.
    found: dict[tuple[str, str], None] = {}
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        for line in [*shell_lines(text), *inline_commands(text)]:
            found[name_of(path), line] = None
    for path in RECIPES:
        for line in docstring_commands(path):
            found[name_of(path), line] = None
    whole = [key for key in found if "..." not in key[1].split()]
    return [key for key in whole if command_of(key[1])]


COMMANDS = all_commands()


class Parsed(Exception):
    """The arguments were fine; what follows needs data."""


@pytest.fixture
def parsers_only(monkeypatch):
    """Commands end, with `Parsed`, when their own parser has taken all arguments."""
    parse_args, parse_with_recipe = cli.Parser.parse_args, cli.Parser.parse_with_recipe

    def plain(self, arguments):
        options = parse_args(self, arguments)
        if hasattr(options, "command"):  # `prepare` and `benchmark`, which choose the next parser
            return options
        raise Parsed

    def with_recipe(self, arguments):
        parse_with_recipe(self, arguments)
        raise Parsed

    monkeypatch.setattr(cli.Parser, "parse_args", plain)
    monkeypatch.setattr(cli.Parser, "parse_with_recipe", with_recipe)
    monkeypatch.chdir(REPOSITORY)


@pytest.mark.parametrize(("where", "line"), COMMANDS, ids=lambda word: word[:70])
def test_the_commands_parser_takes_it(where, line, parsers_only):
    command = command_of(line)
    assert command is not None
    verb, arguments = command
    if "--help" in arguments:
        return
    with pytest.raises(Parsed):
        MAINS[verb](arguments)


def test_there_are_commands_everywhere():
    pages = {where for where, _ in COMMANDS}
    assert {"README.md", "docs/data.md", "docs/exporting.md", "docs/from_paddlevideo.md"} <= pages
    assert {name_of(path) for path in RECIPES} <= pages
    assert len(COMMANDS) > 60


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_other_commands_name_what_exists(path):
    extras = set(re.findall(r'^        "(\w+)": \[', (REPOSITORY / "setup.py").read_text(), re.M))
    targets = set(re.findall(r"^(\w+):", (REPOSITORY / "Makefile").read_text(), re.M))
    for line in shell_lines(path.read_text(encoding="utf-8")):
        words = shlex.split(line, comments=True)
        if words[:2] == ["pip", "install"]:
            named = re.findall(r"(?:\.|tsm-jax)\[(\w+)\]", line)
            assert set(named) <= extras, line
        elif words[:1] == ["make"]:
            assert set(words[1:]) <= targets, line
        elif words[:1] == ["python"] and words[1].endswith(".py"):
            assert (REPOSITORY / words[1]).is_file(), line


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_python_blocks_import_what_exists(path):
    for language, block in BLOCK.findall(path.read_text(encoding="utf-8")):
        if language != "python":
            continue
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tsm_jax"):
                module = importlib.import_module(node.module or "")
                assert all(hasattr(module, alias.name) for alias in node.names), block


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def anchors(path: Path) -> set[str]:
    return {slug(h) for h in re.findall(r"^#+ (.+)$", prose(path.read_text("utf-8")), re.M)}


def links(text: str) -> list[str]:
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(text)) + re.findall(r'src="([^"]+)"', text)
    return [target for target in targets if not re.match(r"(https?|mailto):", target)]


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_lead_somewhere(path):
    for target in links(path.read_text(encoding="utf-8")):
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), target
        if anchor:
            assert anchor in anchors(there), target


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_files_that_are_named_exist(path):
    folders = "tsm_jax|configs|docs|tests|benchmarks|launch|notebooks"
    for named in re.findall(rf"`((?:{folders})/[\w./*-]*)`", prose(path.read_text("utf-8"))):
        assert list(REPOSITORY.glob(named.rstrip("/"))), named


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_keys_of_recipes_exist(path):
    keys = {key for key, _ in flatten(default())} | {"model", "data", "optimizer"}
    named = set(re.findall(r"\bconfig\.([a-z_]+(?:\.[a-z_]+)?)", path.read_text("utf-8")))
    assert named - {"py", "json"} <= keys


def test_every_protocol_is_in_its_table():
    text = (REPOSITORY / "docs" / "data.md").read_text()
    table = text.partition("| protocol |")[2].partition("\n\n")[0]
    rows = [line.split("|")[1] for line in table.splitlines()[2:]]
    assert set(re.findall(r"`(\w+)`", "".join(rows))) == set(PROTOCOLS)


def test_every_recipe_is_in_the_table_of_recipes():
    text = (REPOSITORY / "docs" / "recipes.md").read_text()
    assert {path.stem for path in RECIPES} <= set(re.findall(r"`(\w+)`", text))


@pytest.mark.parametrize("path", TRANSLATED, ids=name_of)
def test_a_translation_has_the_same_commands_and_links_and_both_lead_to_each_other(path):
    english = path.with_name(path.name.replace(".zh-CN", ""))
    here, there = path.read_text("utf-8"), english.read_text("utf-8")

    def commands(text: str) -> list[str]:
        lines = [*shell_lines(text), *inline_commands(text)]
        return [" ".join(shlex.split(line, comments=True)) for line in lines]

    def files(text: str) -> set[str]:
        return {link.partition("#")[0].replace(".zh-CN", "") for link in links(text)}

    assert commands(here) == commands(there)
    assert files(here) == files(there)
    first = "\n".join(here.splitlines()[:4]), "\n".join(there.splitlines()[:4])
    assert f"({english.name})" in first[0]
    assert f"({path.name})" in first[1]


def test_there_are_translations():
    assert {name_of(path) for path in TRANSLATED} == {
        "README.zh-CN.md",
        "docs/from_paddlevideo.zh-CN.md",
    }
