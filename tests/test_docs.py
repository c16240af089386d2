"""Checks commands, links and names in README, docs/ and the recipes' docstrings."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tsm_jax import (
    benchmark,
    cli,
    convert,
    evaluate,
    export,
    predict,
    prepare,
    probe,
    push,
    recipes,
    serve,
    stream,
    train,
)
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
    "probe": probe.main,
    "push": push.main,
    "recipe": recipes.main,
    "recipes": recipes.main,
    "serve": serve.main,
    "stream": stream.main,
    "train": train.main,
}
PLACEHOLDERS = {"RECIPE": "configs/quickstart.py", "NAME": "quickstart", "mine.py": "quickstart"}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHELLS = ("", "sh", "bash")
TRANSLATED = sorted(REPOSITORY.rglob("*.zh-CN.md"))


def name_of(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def prose(text: str) -> str:
    return BLOCK.sub("", text)


def shell_lines(text: str) -> Iterator[str]:
    """Yields the commands of shell blocks; joins continued lines and splits at `&&` and `|`."""
    for language, block in BLOCK.findall(text):
        if language not in SHELLS:
            continue
        for line in block.replace("\\\n", " ").splitlines():
            yield from re.split(r" (?:&&|\|) ", line.strip())


def inline_commands(text: str) -> Iterator[str]:
    """Yields commands in text and tables, except for bare verbs."""
    for span in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", prose(text)):
        if re.match(r"(python -m tsm_jax\.\w+|tsm \w+) .*--", span):
            yield span.replace("\\|", "|")


def docstring_commands(path: Path) -> Iterator[str]:
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("    "):
            yield line.strip()


def command_of(line: str) -> tuple[str, list[str]] | None:
    """Returns the verb and its arguments if a line runs one of our commands."""
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(line, comments=True)]
    while words and re.match(r"[A-Z_]+=", words[0]):  # leading VARIABLE=value
        words = words[1:]
    if words[:2] in (["python", "launch/local.py"], ["python3", "launch/local.py"]):
        return "train", words[words.index("--") + 1 :]
    if words[:2] == ["python", "-m"] and words[2].startswith("tsm_jax."):
        return words[2].removeprefix("tsm_jax."), words[3:]
    if words[:1] == ["tsm"]:
        return words[1], words[2:]
    return None


def all_commands() -> list[tuple[str, str]]:
    """Returns pairs (where, line), without duplicates in the same place."""
    # Commands with `...` are incomplete.
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
    """The arguments were accepted; the rest of the command would need data."""


@pytest.fixture
def parsers_only(monkeypatch):
    """Makes commands raise `Parsed` once their parser has accepted all arguments."""
    parse_args, parse_with_recipe = cli.Parser.parse_args, cli.Parser.parse_with_recipe

    def plain(self, arguments):
        options = parse_args(self, arguments)
        if hasattr(options, "command"):  # `prepare` and `benchmark`, which select the next parser
            return options
        raise Parsed

    def with_recipe(self, arguments):
        parse_with_recipe(self, arguments)
        raise Parsed

    monkeypatch.setattr(cli.Parser, "parse_args", plain)
    monkeypatch.setattr(cli.Parser, "parse_with_recipe", with_recipe)
    monkeypatch.chdir(REPOSITORY)


@pytest.mark.parametrize("where", dict.fromkeys(where for where, _ in COMMANDS))
def test_the_parsers_accept_all_commands(where, parsers_only):
    for line in (line for place, line in COMMANDS if place == where):
        verb, arguments = command_of(line) or ("", [])
        if "--help" in arguments:
            continue
        try:
            MAINS[verb](arguments)
        except Parsed:
            continue
        except Exception as error:
            pytest.fail(f"{line}: {error}")
        pytest.fail(f"{line}: no parser saw it")


def test_there_are_commands_everywhere():
    pages = {where for where, _ in COMMANDS}
    assert {"README.md", "docs/data.md", "docs/exporting.md", "docs/from_paddlevideo.md"} <= pages
    assert {name_of(path) for path in RECIPES} <= pages
    assert len(COMMANDS) > 60


def test_other_commands_refer_to_existing_files():
    extras = set(re.findall(r'^        "(\w+)": \[', (REPOSITORY / "setup.py").read_text(), re.M))
    targets = set(re.findall(r"^(\w+):", (REPOSITORY / "Makefile").read_text(), re.M))
    for path in PAGES:
        for line in shell_lines(path.read_text(encoding="utf-8")):
            words = shlex.split(line, comments=True)
            if words[:2] == ["pip", "install"]:
                named = re.findall(r"(?:\.|tsm-jax)\[(\w+)\]", line)
                assert set(named) <= extras, line
            elif words[:1] == ["make"]:
                assert set(words[1:]) <= targets, line
            elif words[:1] == ["python"] and words[1].endswith(".py"):
                assert (REPOSITORY / words[1]).is_file(), line


def test_python_blocks_import_what_exists():
    for path in PAGES:
        for language, block in BLOCK.findall(path.read_text(encoding="utf-8")):
            if language != "python":
                continue
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tsm_jax"):
                    module = importlib.import_module(node.module or "")
                    assert all(hasattr(module, alias.name) for alias in node.names), block


def slug(heading: str) -> str:
    """Returns GitHub's anchor for a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def anchors(path: Path) -> set[str]:
    return {slug(h) for h in re.findall(r"^#+ (.+)$", prose(path.read_text("utf-8")), re.M)}


def links(text: str) -> list[str]:
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(text)) + re.findall(r'src="([^"]+)"', text)
    return [target for target in targets if not re.match(r"(https?|mailto):", target)]


def test_links_have_targets():
    for path in PAGES:
        for target in links(path.read_text(encoding="utf-8")):
            file, _, anchor = target.partition("#")
            there = (path.parent / file).resolve() if file else path
            assert there.exists(), (path, target)
            if anchor:
                assert anchor in anchors(there), (path, target)


def test_mentioned_files_exist():
    folders = "tsm_jax|configs|docs|tests|benchmarks|launch|notebooks"
    for path in PAGES:
        for named in re.findall(rf"`((?:{folders})/[\w./*-]*)`", prose(path.read_text("utf-8"))):
            assert list(REPOSITORY.glob(named.rstrip("/"))), (path, named)


def test_mentioned_recipe_keys_exist():
    keys = {key for key, _ in flatten(default())} | {"model", "data", "optimizer"}
    for path in PAGES:
        named = set(re.findall(r"\bconfig\.([a-z_]+(?:\.[a-z_]+)?)", path.read_text("utf-8")))
        assert named - {"py", "json"} <= keys, path


def test_every_protocol_is_in_its_table():
    text = (REPOSITORY / "docs" / "data.md").read_text()
    table = text.partition("| protocol |")[2].partition("\n\n")[0]
    rows = [line.split("|")[1] for line in table.splitlines()[2:]]
    assert set(re.findall(r"`(\w+)`", "".join(rows))) == set(PROTOCOLS)


def test_every_recipe_is_in_the_table_of_recipes():
    text = (REPOSITORY / "docs" / "recipes.md").read_text()
    assert {path.stem for path in RECIPES} <= set(re.findall(r"`(\w+)`", text))


@pytest.mark.parametrize("path", TRANSLATED, ids=name_of)
def test_a_translation_has_the_same_commands_and_links(path):
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
