"""Lists the recipes in the package, or prints one.

tsm recipes
tsm recipe quickstart > my_recipe.py
"""

from __future__ import annotations

import ast
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path

from tsm_jax import cli


def main(arguments: Sequence[str]) -> None:
    parser = cli.Parser(
        "recipes",
        description=(
            "Lists the recipes that `train` accepts by name. With a name, prints that recipe: save"
            " it to a file, edit it, and train it with --config FILE."
        ),
        example="python -m tsm_jax.recipes quickstart > my_recipe.py",
    )
    argument = parser.add_argument("name", metavar="NAME", nargs="?", help="print this recipe")
    cli.complete_with(argument, cli.recipe_names)
    name = parser.parse_args(arguments).name
    if name is not None:
        print(Path(cli.recipe_path(name)).read_text(encoding="utf-8"), end="")
        return
    names = cli.recipe_names()
    indent = max(map(len, names)) + 2
    for name in names:
        program = ast.parse(Path(cli.recipe_path(name)).read_text(encoding="utf-8"))
        about = (ast.get_docstring(program) or "").partition("\n")[0]
        print(
            textwrap.fill(
                f"{name:{indent}}{about}",
                max(shutil.get_terminal_size().columns, 60),
                subsequent_indent=" " * indent,
                break_on_hyphens=False,
            )
        )


if __name__ == "__main__":
    cli.run(main)
