"""Compiles a recipe's training step for a GPU or TPU without having one.

    pip install "jax[tpu]"
    python benchmarks/compile_ahead.py --platform tpu --topology v5e:2x2 \
        --config configs/tsm_k400_frames.py --config.batch_size=64
    pip install "jax[cuda12]"
    python benchmarks/compile_ahead.py --platform cuda --topology 1x1x8 \
        --config configs/tsm_k400_frames.py
    python benchmarks/compile_ahead.py --platform cuda --program predict \
        --config configs/tsm_k400_frames.py

XLA compiles on the CPU and nothing is run. With two cores, a ResNet-50 takes one minute for a GPU
and more than eight for a TPU. Prints lines of JSON:

- the planned memory of a device;
- the bytes that its kernels read and write, and for a TPU the cycles that its compiler estimates;
- the bytes that devices send one another;
- bytes and cycles of the most expensive operations of the model.

Operands and results are counted in full, so a kernel that reads only a part of an operand counts
too much, and caches are ignored.

On a real GPU, kernels are selected by timing, which is impossible here. In a training step, matrix
products are those of cuBLAS, and convolutions those of cuDNN without a chosen algorithm.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    # There is no GPU: do not query the versions of its driver, and do not time kernels.
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
    "XLA_FLAGS": "--xla_gpu_autotune_level=0",
    # There is no TPU: do not query the metadata server for its type.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}

# The values of NVIDIA's data sheet and of cudaDeviceProp that XLA needs.
_H200 = """
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  device_memory_size: 150000000000
  memory_bandwidth: 4800000000000
  l2_cache_size: 62914560
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}
platform_name: "CUDA"
device_description_str: "NVIDIA H200"
runtime_version { major: 12 minor: 9 patch: 0 }
dnn_version_info { major: 9 minor: 10 patch: 0 }
"""

_BYTES = {"f32": 4, "bf16": 2, "s32": 4, "u32": 4, "u8": 1, "pred": 1, "s64": 8, "u64": 8}
_COLLECTIVE = re.compile(r"(all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)")
_NO_KERNEL = ("parameter", "constant", "bitcast", "tuple", "get-tuple-element", "after-all")


class Kernel(NamedTuple):
    """An instruction of the compiled program.

    Attributes:
        kind: name of the HLO instruction, or target of a custom call.
        operation: name of the traced operation of the model.
        result: types and shapes of the results.
        bytes: bytes read and written.
        cycles: estimate of the compiler; 0 if there is none.
    """

    kind: str
    operation: str
    result: str
    bytes: int
    cycles: int


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True)
    parser.add_argument("--platform", choices=("cuda", "tpu"), required=True)
    parser.add_argument(
        "--topology", help="TPU slice (default: v5e:2x2) or 1x1xN for N GPUs (1x1x1)"
    )
    parser.add_argument(
        "--program",
        choices=("train", "predict"),
        default="train",
        help="the training step or the logits of a clip (default: train)",
    )
    parser.add_argument("--hlo", metavar="FILE", help="write the compiled program to this file")
    options, overrides = parser.parse_known_args()
    os.environ.update(_ENVIRONMENT)  # before jax is imported

    compiled, clips, seconds = compile_step(options, overrides)
    print_json("compiled", seconds=round(seconds, 1))
    memory = compiled.memory_analysis()
    print_json(
        "memory of a device",
        arguments_mb=round(memory.argument_size_in_bytes / 1e6),
        activations_mb=round(memory.temp_size_in_bytes / 1e6),
        activations_mb_per_clip=round(memory.temp_size_in_bytes / 1e6 / clips, 1),
    )
    text = compiled.as_text()
    if options.hlo:
        with open(options.hlo, "w", encoding="utf-8") as file:
            file.write(text)
    report(list(kernels(text)), clips)


def compile_step(options: argparse.Namespace, overrides: list[str]) -> tuple[Any, float, float]:
    """Returns the compiled step, the clips per device and the seconds that compiling took."""
    import jax
    from jax.experimental import topologies

    from tsm_jax import cli
    from tsm_jax.assemble.network import build_steps
    from tsm_jax.config import make_plan
    from tsm_jax.measure.step import random_batch
    from tsm_jax.training.mesh import check_batch, make_mesh, replicated, split_by_clips
    from tsm_jax.training.state import abstract_state

    if options.platform == "cuda":
        topology = topologies.get_topology_desc(
            platform="cuda", target_config=_H200, topology=options.topology or "1x1x1"
        )
    else:
        topology = topologies.get_topology_desc(options.topology or "v5e:2x2", platform="tpu")
    config = cli.load_recipe(options.config, overrides)
    if config.dtype == "auto":
        config.dtype = "bfloat16"  # the value of `auto` on GPU and TPU
    mesh = make_mesh(topology.devices)
    check_batch(config.batch_size, config.model.batch_norm_group, mesh)
    steps = build_steps(config, make_plan(config, config.batch_size * 1000), mesh)
    state = abstract_state(steps.network, steps.optimizer, mesh)
    batch = {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=split_by_clips(mesh))
        for name, array in random_batch(config).items()
    }
    step: Any = steps.train_step
    arguments, clips = (state, batch), config.batch_size / mesh.size
    if options.program == "predict":
        shape = (1, *batch["video"].shape[2:])
        video = jax.ShapeDtypeStruct(shape, "float32", sharding=replicated(mesh))
        step, clips = jax.jit(steps.network.apply), 1
        arguments = (state.params, state.batch_stats, video)
    lowered = step.trace(*arguments).lower(lowering_platforms=(options.platform,))
    started = time.perf_counter()
    return lowered.compile(), clips, time.perf_counter() - started


def kernels(text: str) -> Iterator[Kernel]:
    """Yields the kernels of the main program of an HLO text, without the bodies of its loops."""
    main_program = text[text.index("\nENTRY") :]
    main_program = main_program[: main_program.index("\n}")]
    shapes = {}
    for line in main_program.splitlines():
        parsed = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$", line)
        if parsed is None:
            continue
        name, result, kind, rest = parsed.groups()
        shapes[name] = result
        if kind in _NO_KERNEL or kind.endswith("-done"):
            continue
        operands = re.findall(r"%([\w.\-]+)", rest.split("), ")[0])
        operation = re.search(r'op_name="([^"]*)"', line)
        cycles = re.search(r'"estimated_cycles":"?(\d+)', line)
        target = re.search(r'custom_call_target="([^"]*)"', line)
        yield Kernel(
            kind=target[1] if target else kind,
            operation=operation[1] if operation else "",
            result=result,
            bytes=_size(result) + sum(_size(shapes.get(operand, "")) for operand in operands),
            cycles=int(cycles[1]) if cycles else 0,
        )


def _size(shape: str) -> int:
    """Returns the bytes of a shape. Arrays of s8, the scratch space of products, count as 0."""
    total = 0
    for dtype, dimensions in re.findall(r"(\w+)\[([\d,]*)\]", shape):
        size = _BYTES.get(dtype, 0)
        for number in filter(None, dimensions.split(",")):
            size *= int(number)
        total += size
    return total


def report(found: list[Kernel], clips: float) -> None:
    total = sum(kernel.bytes for kernel in found)
    cycles = sum(kernel.cycles for kernel in found)
    print_json(
        "step of a device",
        kernels=len(found),
        gigabytes=round(total / 1e9, 1),
        megabytes_per_clip=round(total / 1e6 / clips),
        **({"megacycles": round(cycles / 1e6, 1)} if cycles else {}),
    )
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    times: Counter[str] = Counter()
    sent = [kernel for kernel in found if _COLLECTIVE.match(kernel.kind)]
    for kind in sorted({kernel.kind for kernel in sent}):
        results = [_size(kernel.result) for kernel in sent if kernel.kind == kind]
        megabytes = round(sum(results) / 1e6, 2)
        print_json("sent", kind=kind, operations=len(results), megabytes=megabytes)
    for kernel in found:
        if kernel in sent:
            continue
        name = f"{kernel.kind} {re.sub(r'[0-9]+', '#', kernel.operation)}"
        counts[name] += 1
        sizes[name] += kernel.bytes
        times[name] += kernel.cycles
    for name, _ in (times if cycles else sizes).most_common(15):
        print_json(
            "operation",
            name=name,
            kernels=counts[name],
            gigabytes=round(sizes[name] / 1e9, 2),
            **({"megacycles": round(times[name] / 1e6, 2)} if cycles else {}),
        )


def print_json(measure: str, **values: Any) -> None:
    print(json.dumps({"measure": measure, **values}), flush=True)


if __name__ == "__main__":
    main()
