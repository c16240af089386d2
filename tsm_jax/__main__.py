"""The command `tsm`: every verb of the package in one place.

tsm train quickstart
"""

from __future__ import annotations

import difflib
import importlib
import os
import shutil
import sys
import textwrap
from typing import NoReturn

# A module each, and one line; the order is that of a project.
VERBS = {
    "prepare": "download, list, check, extract and pack videos",
    "recipes": "list what can be trained; `tsm recipe NAME` prints one",
    "probe": "see in minutes what a linear classifier reaches, before training",
    "train": "train a recipe, or continue its run",
    "evaluate": "measure weights on a validation list",
    "predict": "name the action in videos",
    "stream": "name the action in a camera or a video, frame by frame",
    "serve": "answer HTTP with the actions in videos that are sent",
    "export": "write a folder that runs in jax, ONNX Runtime or OpenVINO",
    "convert": "turn published weights into a model directory, or back",
    "push": "put a model on the Hugging Face Hub",
    "benchmark": "measure reading, the training step, and prediction by engine",
}
_SYNONYMS = {"recipe": "recipes"}


def main() -> NoReturn:
    """Runs `tsm VERB ...`; `tsm VERB --help` is that verb's own help."""
    if "_ARGCOMPLETE" in os.environ:
        _complete()
    verb, *arguments = sys.argv[1:] or ["--help"]
    if verb in ("-h", "--help", "help"):
        print(_help())
        sys.exit(0)
    if verb == "--version":
        from tsm_jax import __version__

        print(f"tsm-jax {__version__}")
        sys.exit(0)
    verb = _SYNONYMS.get(verb, verb)
    if verb not in VERBS:
        close = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean `tsm {close[0]}`?" if close else f"the verbs are {', '.join(VERBS)}"
        print(f"error: there is no verb {verb}: {hint}", file=sys.stderr)
        sys.exit(1)
    _run(verb, arguments)


def _run(verb: str, arguments: list[str]) -> NoReturn:
    from tsm_jax import cli  # here: the help must not wait for anything

    cli.run(importlib.import_module(f"tsm_jax.{verb}").main, arguments)


def _help() -> str:
    width = max(shutil.get_terminal_size().columns, 40)
    indent = max(map(len, VERBS)) + 4

    def filled(text: str, subsequent_indent: str = "") -> str:
        return textwrap.fill(
            text, width, subsequent_indent=subsequent_indent, break_on_hyphens=False
        )

    return "\n".join(
        [
            "usage: tsm VERB [--help] ...",
            "",
            filled("Video action recognition with the Temporal Shift Module."),
            "",
            "verbs:",
            *(filled(f"  {verb:{indent - 2}}{VERBS[verb]}", " " * indent) for verb in VERBS),
            "",
            filled(
                "`tsm VERB --help` tells more, with an example; `tsm --version` the version."
                " `python -m tsm_jax.VERB` is the same."
            ),
            "",
            "completion in bash and zsh:",
            '  eval "$(register-python-argcomplete tsm)"',
            "",
            "example:",
            "  tsm train quickstart",
        ]
    )


def _complete() -> None:
    """Tells the shell what could come next: a verb here, all else by the verb's own parser."""
    line = os.environ["COMP_LINE"]
    words = (line + "_" * line.endswith(" ")).split()  # the last one is being typed
    verb = _SYNONYMS.get(words[1], words[1]) if len(words) > 2 else ""
    if verb in VERBS:
        os.environ["_ARGCOMPLETE"] = "2"  # the verb takes the place of the program
        _run(verb, words[2:-1])
    import argparse

    import argcomplete

    parser = argparse.ArgumentParser()
    parser.add_argument("--version", action="store_true")
    parser.add_argument("verb", choices=VERBS)
    argcomplete.autocomplete(parser)


if __name__ == "__main__":
    main()
