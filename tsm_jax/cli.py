"""What all commands share: arguments, recipes with overrides, one-line errors."""

from __future__ import annotations

import argparse
import difflib
import io
import logging
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NoReturn

from absl import flags
from ml_collections import ConfigDict, config_flags

from tsm_jax import config as config_lib
from tsm_jax.errors import UserError
from tsm_jax.files import check_regular, reason
from tsm_jax.host import enable_compilation_cache
from tsm_jax.terminal import printable

OVERRIDES_HELP = "any key of the recipe, for example --config.batch_size=32 (see tsm_jax/config.py)"

_MODULES = "python -m tsm_jax."


def typed(command: str) -> str:
    """A command the way this one was typed: `tsm train` or `python -m tsm_jax.train`."""
    return _launcher() + command


def _launcher() -> str:
    folder, name = os.path.split(sys.argv[0])
    if os.path.splitext(name)[0] == "tsm":
        return "tsm "
    if name == "__main__.py" and os.path.basename(folder) == "tsm_jax":
        return "python -m tsm_jax "
    return _MODULES


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ours: one line, exit code 1."""

    def __init__(self, command: str, *, description: str, example: str):
        super().__init__(
            prog=typed(command),
            description=description,
            epilog=f"example:\n  {example.replace(_MODULES, _launcher())}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")

    def add_recipe(self, *, required: bool) -> None:
        """Adds `--config FILE` and documents `--config.KEY=VALUE`."""
        self.add_argument("--config", metavar="FILE", required=required, help="the recipe")
        self.add_argument("--config.KEY", metavar="VALUE", dest="_", help=OVERRIDES_HELP)

    def parse_with_recipe(
        self, arguments: Sequence[str]
    ) -> tuple[argparse.Namespace, ConfigDict | None]:
        """Parses the arguments and loads the recipe with its overrides, if one is given.

        Raises:
            UserError: an unknown argument or key, a value of another type, no such recipe.
        """
        if arguments and arguments[0].endswith(".py"):
            self.error(f"write it as --config {arguments[0]}")
        known, rest = self.parse_known_args(arguments)
        strangers = [word for word in rest if not word.startswith("--config.")]
        if strangers:
            self.error(f"unknown argument {strangers[0]}")
        if known.config is None:
            if rest:
                self.error(f"{rest[0]} needs --config FILE")
            return known, None
        return known, load_recipe(known.config, rest)


def load_recipe(path: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """The validated recipe of a file.

    Args:
        path: a Python file with `get_config()`.
        overrides: `--config.KEY=VALUE` each.

    Raises:
        UserError: names what is wrong with the path, the key or the value.
    """
    if os.path.exists(path):
        check_regular(path, "the recipe")
    else:
        there = os.path.join("configs", os.path.splitext(os.path.basename(path))[0] + ".py")
        hint = f"did you mean {there}?" if os.path.isfile(there) else "the recipes are in configs/"
        raise UserError(f"there is no recipe {path}: {hint}")
    recipe = _apply(path, ())
    _check_keys(recipe, overrides)
    config = _apply(path, overrides)
    config_lib.validate(config)
    if not config.workdir:
        config.workdir = config_lib.default_workdir(path, recipe, config)
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


def make_callable(module: str, function: Callable[..., object]) -> None:
    """Lets `tsm_jax.train(config)` call a function, although `tsm_jax.train` is a module, too."""

    class Command(ModuleType):
        __call__ = staticmethod(function)

    sys.modules[module].__class__ = Command


def _check_keys(recipe: ConfigDict, overrides: Sequence[str]) -> None:
    keys = [f"--config.{key}" for key, _ in config_lib.flatten(recipe)]
    for override in overrides:
        key, equals, value = override.partition("=")
        if key not in keys:
            close = difflib.get_close_matches(key, keys, n=1)
            hint = f"did you mean {close[0]}?" if close else "tsm_jax/config.py lists the keys"
            hint = config_lib.OLD_KEYS.get(key.removeprefix("--config."), hint).format(value=value)
            raise UserError(f"{override}: there is no such key; {hint}")
        if not equals:
            raise UserError(f"{override}: write it as {override}=VALUE")


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


def run(
    command: Callable[[Sequence[str]], None], arguments: Sequence[str] | None = None
) -> NoReturn:
    """Runs a command; a user's mistake becomes `error: ...` on one line and exit code 1.

    Args:
        command: a verb's `main`.
        arguments: of it; None for those of the process.
    """
    enable_compilation_cache()
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    # Orbax and jax talk to their developers; what fails there is raised as well.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    if isinstance(sys.stdout, io.TextIOWrapper):  # names that its encoding does not have
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = _exit_code(command, sys.argv[1:] if arguments is None else arguments)
        print(end="", flush=True)
    except OSError as error:
        code = _after_stdout_failed(error)
    sys.exit(code)


def _exit_code(command: Callable[[Sequence[str]], None], arguments: Sequence[str]) -> Any:
    try:
        command(arguments)
    except UserError as error:
        print(f"error: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: run the same command again to continue", file=sys.stderr)
        return 130
    except SystemExit as exit_:
        return exit_.code
    return 0


def _after_stdout_failed(error: OSError) -> int:
    """The exit code after the standard output's disk is full or its reader has gone.

    Raises:
        OSError: the error was another one.
    """
    try:
        print(flush=True)  # an empty line, which fails, too
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes at exit
    else:
        raise error
    if not isinstance(error, BrokenPipeError):
        print(f"error: cannot write to the standard output: {reason(error)}", file=sys.stderr)
    return 1
