"""Counts the modules of this package that a command loads, and their lines.

python benchmarks/loaded_modules.py -m tsm_jax.train --config configs/quickstart.py

This is what a reader of the command has to open. The command runs to its end, so modules that are
imported late are counted as well.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

# Not -X importtime, which leaves out what importlib.import_module imports.
_MARK = "loaded: "
_RUN = f"""
import atexit, runpy, sys
atexit.register(lambda: [
    print(f"\\n{_MARK}{{name}}", end="", file=sys.stderr)
    for name in sys.modules if name.partition(".")[0] == "tsm_jax"
])
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


def loaded_modules(module: str, arguments: list[str]) -> list[str]:
    """Returns the modules of `tsm_jax` that `python -m module` imports, in order of loading."""
    finished = subprocess.run(
        [sys.executable, "-c", _RUN, module, *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    lines = finished.stderr.splitlines()
    if finished.returncode:
        raise SystemExit("\n".join(line for line in lines if not line.startswith(_MARK)))
    names = [line.removeprefix(_MARK) for line in lines if line.startswith(_MARK)]
    return [*names, module]  # it runs as __main__ and is not listed


def lines_of(module: str) -> tuple[str, int]:
    """Returns the path of a module's file and its number of lines."""
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None, module
    with open(spec.origin, encoding="utf-8") as file:
        return os.path.relpath(spec.origin), sum(1 for _ in file)


def main() -> None:
    if sys.argv[1:2] != ["-m"] or len(sys.argv) < 3:
        raise SystemExit(__doc__)
    modules = loaded_modules(sys.argv[2], sys.argv[3:])
    counted = sorted(lines_of(module) for module in set(modules))
    for path, lines in counted:
        print(f"{lines:5}  {path}")
    print(f"{len(counted)} modules, {sum(lines for _, lines in counted)} lines")


if __name__ == "__main__":
    main()
