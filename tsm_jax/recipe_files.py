"""Files of recipes: where those of the package are, what they are called, loading one."""

from __future__ import annotations

import ast
import difflib
import os
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from tsm_jax import config as config_lib
from tsm_jax.errors import UserError
from tsm_jax.files import check_regular
from tsm_jax.terminal import typed

# Installed from a wheel the recipes are in the package; in a clone they are beside it.
_INSTALLED = Path(__file__).with_name("configs")
FOLDER = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[1] / "configs"


def names() -> list[str]:
    """The recipes of the package."""
    return sorted(path.stem for path in FOLDER.glob("[!_]*.py"))


def about(name: str) -> str:
    """What a recipe is, on one line: the first one of its file."""
    text = ast.get_docstring(ast.parse(Path(path_of(name)).read_text(encoding="utf-8")))
    return (text or "").partition("\n")[0]


def path_of(recipe: str) -> str:
    """The file of a recipe, which is given by its name in the package or as a path.

    Raises:
        UserError: there is neither.
    """
    known = names()
    if recipe in known:
        return str(FOLDER / f"{recipe}.py")
    if os.path.exists(recipe):
        check_regular(recipe, "the recipe")
        return recipe
    stem = os.path.splitext(os.path.basename(recipe))[0]
    close = difflib.get_close_matches(stem, known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise UserError(f"there is no recipe {recipe}: {hint}`{typed('recipes')}` lists all")


def load_recipe(recipe: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """The validated recipe of a file.

    Args:
        recipe: a name of `names()`, or the path of a Python file with `get_config()`.
        overrides: `--config.KEY=VALUE` or `--KEY=VALUE` each.

    Raises:
        UserError: names what is wrong with the path, the key or the value.
    """
    path = path_of(recipe)
    unchanged = _apply(path, ())
    _check_keys(unchanged, overrides)
    config = _apply(path, [f"--config.{_key(override)}" for override in overrides])
    config_lib.validate(config)
    if not config.workdir:
        config.workdir = config_lib.default_workdir(path, unchanged, config)
    return config


def recipe_of(config: ConfigDict | str | os.PathLike[str]) -> ConfigDict:
    """A validated recipe, from what `tsm_jax.train` and `tsm_jax.evaluate` take.

    Raises:
        UserError: as `load_recipe`, or a value that was changed is not allowed.
    """
    if isinstance(config, str | os.PathLike):
        return load_recipe(os.fspath(config))
    config_lib.validate(config)
    if not config.workdir:
        raise UserError("config.workdir is empty: say where the run is to be kept")
    return config


def _key(override: str) -> str:
    return override.removeprefix("--").removeprefix("config.")


def _check_keys(recipe: ConfigDict, overrides: Sequence[str]) -> None:
    keys = [key for key, _ in config_lib.flatten(recipe)]
    for override in overrides:
        key, equals, value = _key(override).partition("=")
        if key not in keys:
            start = override.partition(key)[0]  # --config. or --, as it was typed
            close = closest_key(key, keys)
            hint = f"did you mean {start}{close}?" if close else "tsm_jax/config.py lists the keys"
            hint = config_lib.OLD_KEYS.get(key, hint).format(value=value)
            raise UserError(f"{override}: there is no such key; {hint}")
        if not equals:
            raise UserError(f"{override}: write it as {override}=VALUE")


def closest_key(word: str, keys: Sequence[str]) -> str | None:
    """The key that was probably meant: one whose last part is the word, else a similar one."""
    last = [key for key in keys if key.rpartition(".")[2] == word]
    close = last or difflib.get_close_matches(word, keys, n=1)
    return close[0] if close else None


def _apply(path: str, overrides: Sequence[str]) -> ConfigDict:
    values = flags.FlagValues()
    arguments = ["tsm_jax", f"--config={path}", *overrides]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
    try:
        values(arguments)
        config = values["config"].value
    except Exception as error:  # the recipe is a program of the user's, with any defect
        what = "" if isinstance(error, flags.Error) else f"{type(error).__name__}: "
        raise UserError(f"{path}: {what}{' '.join(str(error).split())}") from error
    known = dict(config_lib.flatten(config_lib.default())).keys()
    if not isinstance(config, ConfigDict) or dict(config_lib.flatten(config)).keys() != known:
        raise UserError(f"{path}: get_config() must return tsm_jax.config.default(), changed")
    return config
