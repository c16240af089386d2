"""Tests whether the response time for a wrong token reveals how much of it is correct.

python benchmarks/token_time.py --model inference/TSM --requests 20000

Sends wrong tokens whose first 0, 1, 32 or 63 of 64 digits are correct, in random order, to a
service on this machine. The comparison alone is measured as well, ten times as often. The exit code
is 1 if the times for any of them differ from the times with no correct digit (Mann-Whitney,
p < 0.001).
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable

from scipy.stats import mannwhitneyu
from serve_load import Client, Service, percentile

from tsm_jax.serving.gate import Gate, Metrics

_DIGITS = "0123456789abcdef"
_RIGHT = (0, 1, 32, 63)

_rng = random.Random(0)


def wrong_token(secret: str, right: int) -> str:
    """Returns a token of the same length with exactly `right` correct leading digits."""
    first = _rng.choice(_DIGITS.replace(secret[right], ""))
    rest = (_rng.choice(_DIGITS) for _ in range(len(secret) - right - 1))
    return secret[:right] + first + "".join(rest)


async def alternate(
    attempt: Callable[[str], Awaitable[float]], secret: str, rounds: int
) -> dict[int, list[float]]:
    """Returns the microseconds of each attempt, by the number of correct leading digits."""
    times: dict[int, list[float]] = {right: [] for right in _RIGHT}
    order = [right for _ in range(rounds) for right in _rng.sample(_RIGHT, len(_RIGHT))]
    # Create them in advance: creating a token affects the caches, and thereby its time.
    tokens = [wrong_token(secret, right) for right in order]
    for right, token in zip(order, tokens, strict=True):
        times[right].append(1e6 * await attempt(token))
    return times


def report(name: str, times: dict[int, list[float]]) -> bool:
    alike = True
    for right, values in times.items():
        p = mannwhitneyu(values, times[0]).pvalue
        alike = alike and p >= 0.001
        shown = ", ".join(f"{percentile(values, share):.2f}" for share in (0.1, 0.5, 0.9))
        print(
            f"{name}, {right} correct digits, {len(values)} times: p10, p50, p90 {shown} us;"
            f" same as with 0: p = {p:.2f}",
            flush=True,
        )
    return alike


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", required=True, help="exported folder")
    parser.add_argument("--requests", type=int, default=20000)
    options = parser.parse_args()
    options.engine, options.precision = "auto", "float32"
    secret = random.SystemRandom().randbytes(32).hex()
    gate = Gate(None, Metrics(), secret, (), ())  # pyright: ignore[reportArgumentType]

    async def compare(token: str) -> float:
        headers = [(b"authorization", f"Bearer {token}".encode())]
        scope = {"type": "http", "headers": headers}
        start = time.perf_counter()
        gate._authorized(scope)
        return time.perf_counter() - start

    async def request(token: str) -> float:
        answer = await client.send("/v1/model", token=token)
        assert answer.status == 401, answer
        return answer.seconds

    rounds = options.requests // len(_RIGHT)
    alike = report("comparison", asyncio.run(alternate(compare, secret, 10 * rounds)))
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(secret)
        file.flush()
        service = Service(options, "--token_file", file.name)
    client = Client(service.port)
    try:
        alike = report("request", asyncio.run(alternate(request, secret, rounds))) and alike
    finally:
        service.stop()
    sys.exit(0 if alike else 1)


if __name__ == "__main__":
    main()
