"""Damages valid weight files at random and checks that reading them remains harmless.

    python benchmarks/fuzz_checkpoints.py --format paddle --cases 100000 --seed 0
    python benchmarks/fuzz_checkpoints.py --format torch --cases 100000 --seed 0
    python benchmarks/fuzz_checkpoints.py --format safetensors --cases 100000 --seed 0
    python benchmarks/fuzz_checkpoints.py --format names --cases 100000 --seed 0

`names` does not damage files but changes the names, shapes and dtypes of a network's tensors.

Every case must result in a dictionary of plain values or a one-line `UserError`, within a few
seconds and a bounded growth of memory. No other exception and no event reported by Python's audit
hooks (import, exec, process, socket, another file) is allowed. The first case that violates this is
kept in a file whose name is printed. Prints one line of JSON. Requires Linux, and PyTorch for its
formats.
"""

from __future__ import annotations

import argparse
import io
import json
import pickle
import pickletools
import random
import re
import signal
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save

from tsm_jax.errors import UserError
from tsm_jax.models.architecture import Architecture
from tsm_jax.models.network import build_network
from tsm_jax.weights.closed_pickle import TORCH_MAGIC
from tsm_jax.weights.paddle_names import from_paddle
from tsm_jax.weights.paddle_pickle import read_paddle
from tsm_jax.weights.pickle_values import Opaque
from tsm_jax.weights.torch_file import read_safetensors, read_torch
from tsm_jax.weights.torch_names import IMAGE, MIT, MMACTION2, from_torch, to_torch

GOLDENS = Path(__file__).parent.parent / "tests" / "weights" / "goldens"
SECONDS_PER_CASE = 5  # CPU time; the limit of wall-clock time is ten times as long
MAX_GROWTH = 200e6
HARMLESS_EVENTS = ("builtins.id",)

PLAIN = (str, int, float, bool, type(None), bytes, np.generic, Opaque)
OPCODES = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]
# Fragments of attacks and of extreme values, inserted between the instructions of a valid file.
SNIPPETS = [
    b"cos\nsystem\n",
    b"cbuiltins\neval\n",
    b"cnumpy\nndarray\n",
    b"cnumpy\ndtype\n",
    b"c_codecs\nencode\n",
    b"cbuiltins\ntuple\n",
    b"c__builtin__\nbytes\n",
    b"ccollections\nOrderedDict\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch\nFloatStorage\n",
    b"cargparse\nNamespace\n",
    b"Q",
    b"cnumpy.core.multiarray\nscalar\n",
    b"cnumpy.core.numeric\n_frombuffer\n",
    b"(S'touch /tmp/fuzz'\nios\nsystem\n",
    b"X\x02\x00\x00\x00idX\x06\x00\x00\x00latin1\x86R",
    b"\x8d\xff\xff\xff\xff\xff\xff\x00\x00",
    b"]\x94(h\x00h\x00h\x00e",
    b"(" * 100,
    b"\x85" * 100,
    b"h\x00" * 50,
    b"\x80\x02",
]
INTEGERS = [0, 1, 2, 0x7F, 0x80, 0xFF, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63]


class Hang(BaseException):
    """A case took too long. Not an `Exception`, so that no handler catches it."""


class Violation(BaseException):
    """Something happened that reading a file must not cause."""


class Watch:
    """Inside `with watch:`, every audited event except opening `path` is an error."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self._active = False
        sys.addaudithook(self._hook)

    def __enter__(self) -> None:
        limit_time(SECONDS_PER_CASE)
        self._active = True

    def __exit__(self, *_: object) -> None:
        self._active = False
        limit_time(0)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        is_reading = event == "open" and str(arguments[0]) == self._path
        if self._active and not is_reading and event not in HARMLESS_EVENTS:
            self._active = False
            raise Violation(f"{event} {arguments!r:.200}")

    def check_itself(self) -> None:
        """Checks that an attack on Python's own pickle is detected."""
        try:
            with self:
                pickle.loads(b"cposix\nlistdir\nX\x01\x00\x00\x00/\x85R.")
        except Violation:
            return
        raise AssertionError("the audit hook did not detect an attack")


def paddle_files() -> list[bytes]:
    """Returns small valid files: some written by Paddle, and one per pickle protocol."""
    arrays = {
        "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
        "transposed": np.arange(24.0).reshape(2, 3, 4).transpose(1, 0, 2),
        "scalar": np.float32(1),
        "inner": [{"a": (1, 2.5, None, True, "text", b"bytes", 2**40)}],
        "half": np.ones(3, np.float16),
    }
    made = [pickle.dumps(arrays, protocol) for protocol in (2, 3, 4, 5)]
    real = [path.read_bytes() for path in sorted(GOLDENS.glob("*.pd*"))]
    return made + real


def torch_files() -> list[bytes]:
    """Returns small checkpoints in both formats of PyTorch, and a compressed zip archive."""
    import torch  # pyright: ignore[reportMissingImports]

    base = torch.arange(24.0)
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1, momentum=0.9)
    layer(torch.randn(2, 3)).sum().backward()
    optimizer.step()
    checkpoints: list[dict[str, Any]] = [
        {"epoch": 3, "state_dict": layer.state_dict(), "optimizer": optimizer.state_dict()},
        {
            "views": [base[2:8].view(2, 3), base[::2], torch.ones(3, 1).expand(3, 4)],
            "bfloat16": torch.ones(3).bfloat16(),
            "uint16": torch.arange(3).to(torch.uint16),
            "bool": torch.tensor([True]),
            "parameter": torch.nn.Parameter(torch.ones(2)),
            "meta": {"args": argparse.Namespace(lr=0.1), "top1": np.float64(5), "n": np.ones(3)},
        },
    ]
    files = []
    for checkpoint in checkpoints:
        for is_zip in (True, False):
            file = io.BytesIO()
            torch.save(checkpoint, file, _use_new_zipfile_serialization=is_zip)
            files.append(file.getvalue())
    return [*files, zipped(members(files[0]), zipfile.ZIP_DEFLATED)]


def safetensors_files() -> list[bytes]:
    values = {"a": np.ones((2, 3), np.float32), "b": np.ones(3, np.float16), "c": np.array(1)}
    return [save(values), save({"bits": np.ones((4, 1), ml_dtypes.bfloat16), **values})]


def members(archive: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def zipped(contents: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return file.getvalue()


def flip_bits(data: bytearray, rng: random.Random, others: list[bytes]) -> None:
    for _ in range(rng.choice((1, 1, 2, 8))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def overwrite(data: bytearray, rng: random.Random, others: list[bytes]) -> None:
    data[rng.randrange(len(data))] = rng.randrange(256)


def cut_off(data: bytearray, rng: random.Random, others: list[bytes]) -> None:
    del data[rng.randrange(len(data)) :]


def delete(data: bytearray, rng: random.Random, others: list[bytes]) -> None:
    start = rng.randrange(len(data))
    del data[start : start + rng.randrange(1, 40)]


def splice(data: bytearray, rng: random.Random, others: list[bytes]) -> None:
    """Inserts instructions of this or another file, or overwrites some with them."""
    donor = rng.choice(others)
    cuts = boundaries(donor)
    start, end = sorted((rng.choice(cuts), rng.choice(cuts)))
    place = rng.choice(boundaries(bytes(data)))
    data[place : place + rng.choice((0, end - start))] = donor[start:end]


def insert_instruction(data: bytearray, rng: random.Random, others: list[bytes]) -> None:
    place = rng.choice(boundaries(bytes(data)))
    argument = rng.randbytes(rng.choice((0, 0, 1, 4, 8)))
    data[place:place] = rng.choice((rng.choice(OPCODES) + argument, rng.choice(SNIPPETS)))


def edit_number(data: bytearray, rng: random.Random, others: list[bytes]) -> None:
    """Replaces a length, an index or an integer with an extreme or random value."""
    place = rng.choice(boundaries(bytes(data))) + 1
    width = rng.choice((1, 2, 4, 8))
    value = rng.choice((*INTEGERS, rng.getrandbits(64))) % 2 ** (8 * width)
    data[place : place + width] = value.to_bytes(width, "little")


MUTATIONS: list[Callable[[bytearray, random.Random, list[bytes]], None]] = [
    flip_bits,
    overwrite,
    cut_off,
    delete,
    splice,
    insert_instruction,
    edit_number,
]
_BOUNDARIES: dict[bytes, list[int]] = {}


def boundaries(data: bytes) -> list[int]:
    """Returns where instructions start; all positions if the data is not a valid pickle."""
    if data not in _BOUNDARIES:
        try:
            return [position for _, _, position in pickletools.genops(data) if position is not None]
        except Exception:
            return list(range(max(len(data), 1)))
    return _BOUNDARIES[data]


def mutated(rng: random.Random, files: list[bytes]) -> bytes:
    """Returns a damaged file.

    In a zip archive, either the whole file is damaged or only its pickle, with a correct checksum.
    """
    whole = rng.choice(files)
    if not whole.startswith(b"PK") or rng.random() < 0.3:
        return damaged(whole, rng, files)
    contents = members(whole)
    name = next(name for name in contents if name.endswith("data.pkl"))
    pickles = [contents[name], *(file for file in files if not file.startswith(b"PK"))]
    contents[name] = damaged(contents[name], rng, pickles)
    return zipped(contents)


def damaged(whole: bytes, rng: random.Random, files: list[bytes]) -> bytes:
    if whole.startswith(TORCH_MAGIC):  # mostly damage what follows the common header
        start = rng.choice((0, 150, 150, 150))
        return whole[:start] + changed(whole[start:], rng, files)
    return changed(whole, rng, files)


def changed(whole: bytes, rng: random.Random, files: list[bytes]) -> bytes:
    data = bytearray(whole)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if data:
            rng.choice(MUTATIONS)(data, rng, files)
    return bytes(data)


def check_plain(value: Any) -> None:
    if isinstance(value, np.ndarray):
        assert value.dtype.kind in "biufc" and value.dtype.isnative
    elif isinstance(value, (dict, list, tuple)):
        for child in value.values() if isinstance(value, dict) else value:
            check_plain(child)
    else:
        assert isinstance(value, PLAIN), type(value)


def read_paddle_file(path: Path) -> None:
    content = read_paddle(path)
    check_plain(content)
    try:
        from_paddle(content)
    except UserError as error:
        one_line(error)


def read_torch_file(path: Path) -> None:
    tree = read_torch(path)
    check_plain(tree)
    for state in (tree, tree.get("state_dict")):
        try:
            from_torch(state if isinstance(state, dict) else {})
        except UserError as error:
            one_line(error)


def read_safetensors_file(path: Path) -> None:
    check_plain(read_safetensors(str(path)))


FORMATS = {
    "paddle": (paddle_files, read_paddle_file),
    "torch": (torch_files, read_torch_file),
    "safetensors": (safetensors_files, read_safetensors_file),
}


def run_case(path: Path, read: Callable[[Path], None]) -> str:
    """Returns `read`, or the kind of refusal."""
    try:
        read(path)
    except UserError as error:
        reason = one_line(error).rpartition(" weight file: ")[2]
        return re.split(r"['\"\d(]", reason)[0][:60]
    return "read"


def one_line(error: UserError) -> str:
    assert str(error).isprintable(), "the message is not a single printable line"
    return str(error)


def peak_memory() -> int:
    """Returns the peak memory in bytes; unlike getrusage's maximum, it is not inherited."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if "VmHWM" in line)


def limit_time(seconds: float) -> None:
    """Limits the time from now on; 0 removes the limit.

    Wall-clock time alone would report hangs on a busy machine, so CPU time is limited as well.
    """
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, 10 * seconds)


def on_alarm(signum: int, frame: Any) -> None:
    raise Hang(f"a case took more than {SECONDS_PER_CASE} s")


def fuzz(name: str, cases: int, seed: int, folder: Path) -> dict[str, Any]:
    make, read = FORMATS[name]
    files = make()
    _BOUNDARIES.update({data: boundaries(data) for data in files})
    path, rng = folder / "case", random.Random(seed)
    for data in files:  # before watching starts, so that late imports are done
        path.write_bytes(data)
        assert run_case(path, read) == "read"
    watch = Watch(path)
    watch.check_itself()
    outcomes: Counter[str] = Counter()
    slowest, start, memory = 0.0, time.perf_counter(), peak_memory()
    for case in range(cases):
        data = mutated(rng, files)
        path.write_bytes(data)
        began = time.perf_counter()
        try:
            with watch:
                outcome = run_case(path, read)
        except BaseException:
            kept = Path(tempfile.gettempdir()) / f"fuzz_{name}_seed{seed}_case{case}"
            kept.write_bytes(data)
            print(f"case {case} of seed {seed} failed; see {kept}", file=sys.stderr)
            raise
        outcomes[outcome] += 1
        slowest = max(slowest, time.perf_counter() - began)
    growth = peak_memory() - memory
    assert growth < MAX_GROWTH, growth
    return {
        "format": name,
        "cases": cases,
        "seed": seed,
        "read": outcomes.pop("read"),
        "refused": outcomes.total(),
        "kinds_of_refusal": len(outcomes),
        "most_frequent": dict(outcomes.most_common(12)),
        "slowest_ms": round(1000 * slowest, 1),
        "peak_growth_mb": round(growth / 1e6, 1),
        "seconds": round(time.perf_counter() - start, 1),
    }


def networks() -> list[dict[str, Any]]:
    """Returns state dicts of small networks under the names of every family."""
    found: list[dict[str, Any]] = []
    for backbone, family, shift in (
        ("resnet18", MIT, "future_first"),
        ("resnet50", MMACTION2, "future_first"),
        ("mobilenet_v2", MIT, "future_first"),
        ("mobilenet_v2", IMAGE, "none"),
    ):
        architecture = Architecture(backbone, 3, 8, width=8, shift=shift)
        network = build_network(architecture, "float32")
        shapes = {**network.param_shapes, **network.batch_stat_shapes}
        ours = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
        found.append(to_torch(ours, architecture, family))
    return found


STRANGE: list[Any] = [
    np.float32(1),
    np.ones(3, np.uint16),
    np.full((2, 2), np.nan, np.float32),
    np.ones((0, 3), np.float32),
    np.ones((1,) * 9, np.float32),
    np.ones((2**12, 3, 7, 7), bool),
    np.broadcast_to(np.float32(1), (2**20, 10)),
    "text",
    None,
    {"a": 1},
]


def renamed(state: dict[str, Any], rng: random.Random, all_names: list[str]) -> dict[str, Any]:
    state = dict(state)
    for _ in range(rng.choice((1, 1, 2, 5))):
        name = rng.choice([*state, "x"])
        other = rng.choice(all_names)
        cut = rng.randrange(len(name) + 1)
        match rng.randrange(7):
            case 0:
                state.pop(name, None)
            case 1:
                state[other] = state.get(name)
            case 2:
                state[name] = rng.choice(STRANGE)
            case 3:
                state[
                    name[:cut] + rng.choice((".net", "module.", "\n", "\x1b[31m", "é")) + name[cut:]
                ] = state.pop(name, None)
            case 4:
                state = {name[rng.choice((0, 7, 11)) :]: value for name, value in state.items()}
            case 5:
                state = {f"module.{name}": value for name, value in state.items()}
            case 6:
                state[name] = rng.choice(list(state.values()) or [None])
    return state


def fuzz_names(cases: int, seed: int) -> dict[str, Any]:
    states, rng = networks(), random.Random(seed)
    all_names = [name for state in states for name in state]
    for state in states:
        from_torch(state)
    outcomes: Counter[str] = Counter()
    memory, start = peak_memory(), time.perf_counter()
    for _ in range(cases):
        state = renamed(rng.choice(states), rng, all_names)
        limit_time(SECONDS_PER_CASE)
        try:
            weights, _ = from_torch(state)
            check_plain(weights)
            outcomes["read"] += 1
        except UserError as error:
            outcomes[re.split(r"['\"\d(]", one_line(error))[0][:60]] += 1
    limit_time(0)
    assert peak_memory() - memory < MAX_GROWTH
    return {
        "format": "names",
        "cases": cases,
        "seed": seed,
        "read": outcomes.pop("read"),
        "refused": outcomes.total(),
        "most_frequent": dict(outcomes.most_common(12)),
        "peak_growth_mb": round((peak_memory() - memory) / 1e6, 1),
        "seconds": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--format", choices=(*FORMATS, "names"), required=True)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for alarm in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(alarm, on_alarm)
    if arguments.format == "names":
        print(json.dumps(fuzz_names(arguments.cases, arguments.seed)))
        return
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(fuzz(arguments.format, arguments.cases, arguments.seed, Path(folder))))


if __name__ == "__main__":
    main()
