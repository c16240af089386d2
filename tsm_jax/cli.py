"""Code shared by all commands: arguments, recipes with overrides, one-line errors."""

from __future__ import annotations

import argparse
import difflib
import io
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from absl import flags
from ml_collections import ConfigDict, config_flags

from tsm_jax import config as config_lib
from tsm_jax.errors import UserError
from tsm_jax.files import check_regular, reason
from tsm_jax.host import enable_compilation_cache
from tsm_jax.terminal import MODULES, launcher, printable, typed

# Set by the shell while it asks the program for completions (argcomplete).
COMPLETING = "_ARGCOMPLETE"
# A wheel installs the recipes inside the package; in a clone they are next to it.
_INSTALLED = Path(__file__).with_name("configs")
RECIPES = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[1] / "configs"


class _Formatter(argparse.HelpFormatter):
    """Wraps text to the width of the terminal, except for indented lines, which are commands."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        lines = text.splitlines()
        return "\n".join(
            line if line.startswith("  ") else fill(line, width, indent) for line in lines
        )


class Parser(argparse.ArgumentParser):
    """An argument parser that raises a one-line UserError (exit code 1) on a mistake.

    The words of an option may be joined by `-` or `_`. The error for an unknown option suggests a
    similar one.
    """

    def __init__(self, command: str, *, description: str, example: str):
        super().__init__(
            prog=typed(command),
            description=description,
            epilog=f"example:\n  {example.replace(MODULES, launcher())}",
            formatter_class=_Formatter,
            allow_abbrev=False,
        )
        self._keys: list[str] = []  # of recipes, if this command accepts one
        self._completes = COMPLETING in os.environ

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[override]
        if self._completes:
            self._complete()
        return super().parse_known_args(self._spelled(args or ()), namespace)

    def parse_args(self, args=None, namespace=None):  # type: ignore[override]
        options, rest = self.parse_known_args(args, namespace)
        self._refuse(rest)
        return options

    def _spelled(self, words: Sequence[str]) -> list[str]:
        """Returns `words` with options spelled with underscores.

        Unknown options are refused here, before argparse complains about missing ones:
        "--output is required" would not help a user who typed --ouput.
        """
        words = [_underscored(word) for word in words]
        known = ("--", *self._option_string_actions)
        self._refuse([w for w in words if w.startswith("--") and w.partition("=")[0] not in known])
        return words

    def _refuse(self, rest: Sequence[str]) -> None:
        """Raises a UserError for the first unknown word, if there are any."""
        if not rest:
            return
        word = rest[0]
        name = word.partition("=")[0]
        options = [option for option in self._option_string_actions if option.startswith("--")]
        close = difflib.get_close_matches(name, options, n=1)
        if not close and (key := closest_key(name.lstrip("-"), self._keys)):
            close = [f"--{key}"]
        hint = f"; did you mean {close[0]}?" if close and word.startswith("-") else ""
        self.error(f"unknown argument {word}{hint}")

    def add_ray(self) -> None:
        """Adds `--ray`."""
        self.add_argument(
            "--ray",
            metavar="ADDRESS",
            help="run on a Ray cluster: HOST:PORT, auto, or local to start one on this machine",
        )

    def add_recipe(self, *, required: bool) -> None:
        """Adds the recipe, given by name or as `--config FILE`, and documents its keys."""
        self._recipe_required = required
        self._keys = [key for key, _ in config_lib.flatten(config_lib.default())]
        argument = self.add_argument(
            "recipe",
            metavar="RECIPE",
            nargs="?",
            help="the name of a recipe (`recipes` lists them) or a Python file of your own",
        )
        complete_with(argument, recipe_names)
        self.add_argument("--config", metavar="FILE", help="same as RECIPE")
        self.add_argument_group(
            "keys of the recipe",
            "Override any key, for example --epochs=5 --model.shift=none; --config.epochs=5 is"
            " equivalent. tsm_jax/config.py documents all keys.",
        )

    def parse_with_recipe(
        self, arguments: Sequence[str]
    ) -> tuple[argparse.Namespace, ConfigDict | None]:
        """Parses the arguments and loads the recipe with its overrides, if one is given.

        Raises:
            UserError: an argument or key is unknown, a value has the wrong type, or the recipe
                does not exist.
        """
        if self._completes:
            self._complete()
        own, overrides = self._split(arguments)
        known, rest = self.parse_known_intermixed_args(own)
        self._refuse(rest)
        if known.recipe and known.config:
            self.error(f"two recipes given, {known.recipe} and {known.config}: give only one")
        recipe = known.recipe or known.config
        if recipe is None:
            if self._recipe_required:
                self.error(f"no recipe given: `{typed('recipes')}` lists them")
            if overrides:
                self.error(f"{overrides[0]} requires a recipe")
            return known, None
        return known, load_recipe(recipe, overrides)

    def _split(self, arguments: Sequence[str]) -> tuple[list[str], list[str]]:
        """Splits `arguments` into this parser's own and recipe overrides (`--KEY=VALUE`)."""
        own, overrides = [], []
        words = iter(arguments)
        for word in words:
            name, equals, value = _underscored(word).partition("=")
            is_own = not name.startswith("--") or name in ("--", *self._option_string_actions)
            if is_own or not ("." in name or name[2:] in self._keys):
                own.append(word)
                continue
            if not equals:
                value = next(words, "--")
                if value.startswith("--"):
                    raise UserError(f"{name}: write it as {name}=VALUE")
            overrides.append(f"{name}={value}")
        return own, overrides

    def _complete(self) -> None:
        """Prints completions and exits."""
        import argcomplete

        self._completes = False  # argcomplete calls this parser, too
        for key in self._keys:
            self.add_argument(f"--{key}", help=argparse.SUPPRESS)
        argcomplete.autocomplete(self, always_complete_options=False, print_suppressed=True)


def complete_with(argument: argparse.Action, words: Callable[[], list[str]]) -> None:
    """Sets the words that the shell offers as completions of an argument."""
    argument.completer = lambda **_: words()  # type: ignore[attr-defined]


def _underscored(word: str) -> str:
    """Turns `--val-share=0.2` into `--val_share=0.2`."""
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value if word.startswith("--") else word


def recipe_names() -> list[str]:
    """Returns the names of the recipes in the package, sorted."""
    return sorted(path.stem for path in RECIPES.glob("[!_]*.py"))


def recipe_path(recipe: str) -> str:
    """Returns the path of a recipe, given by its name in the package or as a path.

    Raises:
        UserError: no such recipe or file exists.
    """
    known = recipe_names()
    if recipe in known:
        return str(RECIPES / f"{recipe}.py")
    if os.path.exists(recipe):
        check_regular(recipe, "the recipe")
        return recipe
    stem = os.path.splitext(os.path.basename(recipe))[0]
    close = difflib.get_close_matches(stem, known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise UserError(f"no recipe named {recipe}: {hint}`{typed('recipes')}` lists all")


def load_recipe(recipe: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Loads and validates a recipe.

    Args:
        recipe: the name of a recipe in the package, or the path of a Python file that defines
            `get_config()`.
        overrides: strings of the form `--config.KEY=VALUE` or `--KEY=VALUE`.

    Raises:
        UserError: the recipe does not exist, or a key or value is not valid.
    """
    path = recipe_path(recipe)
    unchanged = _apply(path, ())
    keys = [key for key, _ in config_lib.flatten(unchanged)]
    for override in overrides:
        key, equals, value = _key(override).partition("=")
        if key not in keys:
            start = override.partition(key)[0]  # --config. or --, as it was typed
            close = closest_key(key, keys)
            hint = f"did you mean {start}{close}?" if close else "tsm_jax/config.py lists the keys"
            hint = config_lib.OLD_KEYS.get(key, hint).format(value=value)
            raise UserError(f"{override}: unknown key; {hint}")
        if not equals:
            raise UserError(f"{override}: write it as {override}=VALUE")
    config = _apply(path, [f"--config.{_key(override)}" for override in overrides])
    config_lib.validate(config)
    if not config.workdir:
        config.workdir = config_lib.default_workdir(path, unchanged, config)
    return config


def recipe_of(config: ConfigDict | str | os.PathLike[str]) -> ConfigDict:
    """Returns the validated recipe for the argument of `tsm_jax.train` and `tsm_jax.evaluate`.

    Raises:
        UserError: as for `load_recipe`, or a changed value is not allowed.
    """
    if isinstance(config, str | os.PathLike):
        return load_recipe(os.fspath(config))
    config_lib.validate(config)
    if not config.workdir:
        raise UserError("config.workdir is empty: set it to the folder for this run")
    return config


def _key(override: str) -> str:
    return override.removeprefix("--").removeprefix("config.")


def closest_key(word: str, keys: Sequence[str]) -> str | None:
    """Returns the key that was probably meant: one whose last part is `word`, or a similar one."""
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
    except Exception as error:  # a recipe is the user's own code and may raise anything
        what = "" if isinstance(error, flags.Error) else f"{type(error).__name__}: "
        raise UserError(f"{path}: {what}{' '.join(str(error).split())}") from error
    known = dict(config_lib.flatten(config_lib.default())).keys()
    if not isinstance(config, ConfigDict) or dict(config_lib.flatten(config)).keys() != known:
        raise UserError(
            f"{path}: get_config() must return tsm_jax.config.default() with changed values"
        )
    return config


def choose(
    command: str,
    commands: Mapping[str, Callable[[Sequence[str]], None]],
    arguments: Sequence[str],
    *,
    description: str,
    example: str,
) -> None:
    """Runs the subcommand of a verb that the first argument names."""
    parser = Parser(command, description=description, example=example)
    parser.add_argument("command", metavar="COMMAND", choices=commands, help=", ".join(commands))
    if COMPLETING in os.environ and arguments and arguments[0] in commands:
        os.environ[COMPLETING] = "3"  # words before those that its own parser completes, plus one
        chosen = arguments[0]
    else:
        chosen = parser.parse_args(arguments[:1]).command
    commands[chosen](arguments[1:])


def make_callable(module: str, function: Callable[..., object]) -> None:
    """Makes a module callable, so that `tsm_jax.train(config)` works although it is a module."""

    class Command(ModuleType):
        __call__ = staticmethod(function)

    sys.modules[module].__class__ = Command


def run(
    command: Callable[[Sequence[str]], None], arguments: Sequence[str] | None = None
) -> NoReturn:
    """Runs the `main` of a verb; a UserError becomes one line `error: ...` and exit code 1."""
    enable_compilation_cache()
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    # Messages of Orbax and jax are meant for their developers; their failures are raised as well.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    if isinstance(sys.stdout, io.TextIOWrapper):  # for names that its encoding cannot represent
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
    """Returns the exit code after standard output failed: disk full, or the reader has exited.

    Raises:
        OSError: `error` has another cause.
    """
    try:
        print(flush=True)  # fails as well if standard output is the cause
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes at exit
    else:
        raise error
    if not isinstance(error, BrokenPipeError):
        print(f"error: cannot write to standard output: {reason(error)}", file=sys.stderr)
    return 1
