"""Counts the modules of this package that a command loads, and their lines.

python benchmarks/loaded_modules.py -m tsm_jax.train --config configs/quickstart.py

This is what a reader of the command has to open. The command runs to its end, so modules that are
imported late are counted as well.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec

# A line of `-X importtime` on stderr: "import time: <self> | <cumulative> | <indented name>".
_LINE = re.compile(r"^import time: +\d+ \| +\d+ \| +(tsm_jax[\w.]*)$")


def loaded_modules(command: list[str]) -> list[str]:
    """Returns the modules of `tsm_jax` that a Python command imports, in order of loading."""
    finished = subprocess.run(
        [sys.executable, "-X", "importtime", *command],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    if finished.returncode:
        rest = [line for line in finished.stderr.splitlines() if not line.startswith("import time")]
        raise SystemExit("\n".join(rest))
    matches = map(_LINE.match, finished.stderr.splitlines())
    names = list(dict.fromkeys(match[1] for match in matches if match))
    if command[:1] == ["-m"]:
        names.append(command[1])  # it runs as __main__ and is not listed
    return names


def lines_of(module: str) -> tuple[str, int]:
    """Returns the path of a module's file and its number of lines."""
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None, module
    with open(spec.origin, encoding="utf-8") as file:
        return os.path.relpath(spec.origin), sum(1 for _ in file)


def main() -> None:
    counted = sorted(lines_of(module) for module in set(loaded_modules(sys.argv[1:])))
    for path, lines in counted:
        print(f"{lines:5}  {path}")
    print(f"{len(counted)} modules, {sum(lines for _, lines in counted)} lines")


if __name__ == "__main__":
    main()
