"""Checks the direction of imports described in docs/architecture.md."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "tsm_jax"

# From bottom to top. A module may import from its own entry and from lines below it; rooms on the
# same line do not import each other.
FLOORS = (
    ("errors",),
    ("terminal", "host"),
    ("files", "accuracy", "figures"),
    ("download",),
    ("data", "models"),
    ("weights", "config"),
    ("deploy", "training"),
    ("exporting", "report", "serving"),
    ("assemble",),
    ("measure",),
    ("cli",),
    (
        "probe",
        "train",
        "evaluate",
        "predict",
        "stream",
        "serve",
        "export",
        "convert",
        "prepare",
        "push",
        "benchmark",
        "recipes",
    ),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports_of(path: Path) -> set[str]:
    """Returns the modules of the package that a file imports, at the top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "tsm_jax":
                found |= {f"tsm_jax.{name.name}" for name in node.names}
            else:
                found.add(node.module)
    return {name for name in found if name.startswith("tsm_jax.")}


FILES = sorted(
    path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem[0] != "_"
)


def upward(path: Path) -> list[str]:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return [
        module
        for module in imports_of(path)
        if room_of(module) != own
        and not module.startswith("tsm_jax.__")
        and FLOOR[room_of(module)] >= FLOOR[own]
    ]


def test_every_room_has_a_layer():
    rooms = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES}
    assert rooms == FLOOR.keys()


@pytest.mark.parametrize("room", FLOOR)
def test_imports_point_down(room):
    files = [
        path for path in FILES if path.relative_to(PACKAGE).parts[0].removesuffix(".py") == room
    ]
    wrong = {str(path.relative_to(PACKAGE)): upward(path) for path in files}
    assert {path: modules for path, modules in wrong.items() if modules} == {}


def test_upward_imports_are_found(tmp_path):
    path = tmp_path / "wrong.py"
    path.write_text("def late():\n    from tsm_jax.assemble import network\n")
    assert imports_of(path) == {"tsm_jax.assemble"}
