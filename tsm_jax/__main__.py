"""The `tsm` command, which runs every verb of the package.

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

# Each verb is a module. The order follows a typical project.
VERBS = {
    "prepare": "download, list, check, extract and pack videos",
    "recipes": "list the training recipes; `tsm recipe NAME` prints one",
    "probe": "measure in minutes how far a linear classifier gets, before training",
    "train": "train a recipe, or resume its run",
    "evaluate": "evaluate weights on a validation list",
    "predict": "recognise the action in videos",
    "stream": "recognise actions in a camera stream or a video, frame by frame",
    "serve": "serve predictions for uploaded videos over HTTP",
    "export": "export a model for jax, ONNX Runtime or OpenVINO",
    "convert": "convert published weights to a model directory, or back",
    "push": "upload a model to the Hugging Face Hub",
    "benchmark": "time data loading, the training step, and prediction per engine",
}
_SYNONYMS = {"recipe": "recipes"}


def main() -> NoReturn:
    """Runs `tsm VERB ...`; `tsm VERB --help` prints the help of that verb."""
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
        print(f"error: unknown verb {verb}: {hint}", file=sys.stderr)
        sys.exit(1)
    _run(verb, arguments)


def _run(verb: str, arguments: list[str]) -> NoReturn:
    from tsm_jax import cli  # imported late, so that the help appears at once

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
                "`tsm VERB --help` describes a verb, with an example; `tsm --version` prints the"
                " version. `python -m tsm_jax.VERB` does the same as `tsm VERB`."
            ),
            "",
            "to enable completion in bash and zsh:",
            '  eval "$(register-python-argcomplete tsm)"',
            "",
            "example:",
            "  tsm train quickstart",
        ]
    )


def _complete() -> None:
    """Prints completions for the shell: verbs here, anything else from the verb's own parser."""
    line = os.environ["COMP_LINE"]
    words = (line + "_" * line.endswith(" ")).split()  # the last one is being typed
    verb = _SYNONYMS.get(words[1], words[1]) if len(words) > 2 else ""
    if verb in VERBS:
        os.environ["_ARGCOMPLETE"] = "2"  # the verb takes the place of the program name
        _run(verb, words[2:-1])
    import argparse

    import argcomplete

    parser = argparse.ArgumentParser()
    parser.add_argument("--version", action="store_true")
    parser.add_argument("verb", choices=VERBS)
    argcomplete.autocomplete(parser)


if __name__ == "__main__":
    main()
