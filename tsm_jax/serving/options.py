"""Options of a prediction: read from an address, and described for OpenAPI, by one table."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from tsm_jax.deploy.timeline import check_lengths
from tsm_jax.errors import UserError
from tsm_jax.serving.limits import Refused


class Options(NamedTuple):
    """Of a request.

    Attributes:
        top_k: classes in an answer.
        protocol: which views of the video are averaged.
        window, step: seconds of a timeline, `window` None without one.
    """

    top_k: int
    protocol: str
    window: float | None
    step: float


def schemas(num_classes: int, protocols: list[str], protocol: str) -> dict[str, dict[str, Any]]:
    """JSON schemas of the options."""
    seconds = {"type": "number", "minimum": 0.1, "maximum": 1000}
    return {
        "top_k": {
            "type": "integer",
            "minimum": 1,
            "maximum": num_classes,
            "default": min(5, num_classes),
            "description": "Classes in an answer.",
        },
        "protocol": {
            "type": "string",
            "enum": protocols,
            "default": protocol,
            "description": "Which views of the video are averaged.",
        },
        "timeline": {
            "type": "boolean",
            "default": False,
            "description": "Answer for each place of a sliding window.",
        },
        "window": {
            **seconds,
            "default": 4.0,
            "description": "Seconds of the window; with `timeline=true`.",
        },
        "step": {
            **seconds,
            "description": "Seconds from one window to the next, half a window if absent; with"
            " `timeline=true`.",
        },
    }


def read_options(pairs: Iterable[tuple[str, str]], schemas: dict[str, dict[str, Any]]) -> Options:
    """The options in an address.

    Args:
        pairs: names and values.
        schemas: see `schemas`.

    Raises:
        Refused: one is unknown, is there twice, or has a value that is not allowed.
    """
    given: dict[str, Any] = {}
    for name, text in pairs:
        if name not in schemas:
            raise _bad(f"there is no option {name[:40]!r}: there are {', '.join(schemas)}")
        if name in given:
            raise _bad(f"the option {name} is given twice")
        given[name] = _value(name, text, schemas[name])
    timeline = given.get("timeline", False)
    for name in ("window", "step"):
        if name in given and not timeline:
            raise _bad(f"{name} is that of a timeline: give timeline=true, too")
    values = {name: schema["default"] for name, schema in schemas.items() if "default" in schema}
    values |= given
    try:
        step = check_lengths(values["window"], values.get("step"))
    except UserError as error:
        raise _bad(str(error)) from error
    window = values["window"] if timeline else None
    return Options(values["top_k"], values["protocol"], window, step)


def _value(name: str, text: str, schema: dict[str, Any]) -> Any:
    match schema["type"]:
        case "boolean":
            if text in ("true", "false"):
                return text == "true"
            raise _bad(f"{name} must be true or false")
        case "string":
            if text in schema["enum"]:
                return text
            raise _bad(f"{name} must be one of {', '.join(schema['enum'])}")
        case kind:
            return _number(name, text, int if kind == "integer" else float, schema)


def _number(name: str, text: str, kind: type[int] | type[float], schema: dict[str, Any]) -> float:
    least, most = schema["minimum"], schema["maximum"]
    try:
        value = kind(text) if text.isascii() and len(text) <= 40 else None
    except ValueError:
        value = None
    if value is None or not least <= value <= most:
        what = "a whole number" if kind is int else "a number"
        raise _bad(f"{name} must be {what} from {least} to {most}")
    return value


def _bad(message: str) -> Refused:
    return Refused("bad_option", message)
