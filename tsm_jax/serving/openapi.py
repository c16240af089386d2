"""The options of a prediction, in one table for parsing them and for OpenAPI."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, NamedTuple

from tsm_jax.deploy.artifact import CLIPS, STREAM
from tsm_jax.deploy.videos import check_lengths
from tsm_jax.errors import UserError
from tsm_jax.serving.gate import STREAM_PATH
from tsm_jax.serving.limits import REFUSALS, Refused

# Errors that no prediction gets, and the one that it gets only if the service has a token.
_NOT_OF_PREDICTIONS = (
    "unauthorized",
    "not_found",
    "forbidden",
    "idle",
    "wrong_kind",
    "upgrade_required",
    "unreadable_frame",
    "stopping",
)

_STRING, _NUMBER = {"type": "string"}, {"type": "number"}
_FILE = {"type": "string", "format": "binary"}
_TOKEN = {"type": "http", "scheme": "bearer"}


class Options(NamedTuple):
    """Options of a request, see `schemas`; `window` is None unless a timeline is requested."""

    top_k: int
    protocol: str
    window: float | None
    step: float


def schemas(num_classes: int, protocols: list[str], protocol: str) -> dict[str, dict[str, Any]]:
    """Returns the JSON schemas of the options."""
    seconds = {"type": "number", "minimum": 0.1, "maximum": 1000}

    def option(about: str, **schema: Any) -> dict[str, Any]:
        return {**schema, "description": about}

    return {
        "top_k": option(
            "Number of classes in an answer.",
            type="integer",
            minimum=1,
            maximum=num_classes,
            default=min(5, num_classes),
        ),
        "protocol": option(
            "Which views of the video are averaged.",
            type="string",
            enum=protocols,
            default=protocol,
        ),
        "timeline": option(
            "One answer per position of a sliding window.", type="boolean", default=False
        ),
        "window": option(
            "Length of the window in seconds; only with `timeline=true`.", **seconds, default=4.0
        ),
        "step": option(
            "Seconds from one window to the next (half a window); only with `timeline=true`.",
            **seconds,
        ),
    }


def read_options(pairs: Iterable[tuple[str, str]], schemas: dict[str, dict[str, Any]]) -> Options:
    """Parses query parameters, pairs of name and value.

    Raises:
        Refused: an option is unknown, is given twice, or has a value that is not allowed.
    """
    given: dict[str, Any] = {}
    for name, text in pairs:
        if name not in schemas:
            raise _bad(f"there is no option {name[:40]!r}: the options are {', '.join(schemas)}")
        if name in given:
            raise _bad(f"the option {name} is given twice")
        given[name] = _value(name, text, schemas[name])
    timeline = given.get("timeline", False)
    for name in ("window", "step"):
        if name in given and not timeline:
            raise _bad(f"{name} is an option of timelines: add timeline=true")
    values = {name: schema["default"] for name, schema in schemas.items() if "default" in schema}
    values |= given
    try:
        step = check_lengths(values["window"], values.get("step"))
    except UserError as error:
        raise _bad(str(error)) from error
    window = values["window"] if timeline else None
    return Options(values["top_k"], values["protocol"], window, step)


def _value(name: str, text: str, schema: dict[str, Any]) -> Any:
    if schema["type"] == "boolean":
        if text in ("true", "false"):
            return text == "true"
        raise _bad(f"{name} must be true or false")
    if schema["type"] == "string":
        if text in schema["enum"]:
            return text
        raise _bad(f"{name} must be one of {', '.join(schema['enum'])}")
    whole, least, most = schema["type"] == "integer", schema["minimum"], schema["maximum"]
    value = math.nan
    if text.isascii() and len(text) <= 40:
        with suppress(ValueError):
            value = int(text) if whole else float(text)
    if not least <= value <= most:
        what = "a whole number" if whole else "a number"
        raise _bad(f"{name} must be {what} from {least} to {most}")
    return value


def _bad(message: str) -> Refused:
    return Refused("bad_option", message)


def describe(
    version: str,
    options: dict[str, dict[str, Any]],
    *,
    token: bool,
    num_classes: int,
    follows: bool = False,
) -> dict[str, Any]:
    """Returns the OpenAPI 3.1 description.

    Args:
        options: of a prediction, see `schemas`.
        token: whether a bearer token is needed.
        num_classes: K.
        follows: whether the model is for streams. OpenAPI cannot describe the messages of a
            WebSocket, only what its address answers to other requests.
    """
    secured: dict[str, Any] = {"security": [{"token": []}]} if token else {}
    refused = ["unauthorized"] if token else []
    predict = {
        "summary": "Recognizes the action in a video",
        "operationId": "predict",
        "parameters": [
            {
                "name": name,
                "in": "query",
                "description": schema["description"],
                "schema": {key: value for key, value in schema.items() if key != "description"},
            }
            for name, schema in options.items()
        ],
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": _object(file=_FILE),
                    "encoding": {"file": {"contentType": "application/octet-stream"}},
                },
                "application/octet-stream": {"schema": _FILE},
                "video/*": {"schema": _FILE},
            },
        },
        "responses": {
            "200": _json("The answer", {"$ref": "#/components/schemas/Answer"}),
            **_errors(*(code for code in REFUSALS if code not in _NOT_OF_PREDICTIONS)),
            **_errors(*refused),
        },
        **secured,
    }
    stream = {
        "summary": "Recognizes the action in a stream, frame by frame, over a WebSocket",
        "description": "Binary messages are JPEG images; answers are JSON. See docs/serving.md.",
        "operationId": "stream",
        "responses": _errors("upgrade_required", "internal", *refused),
        **secured,
    }
    figures = {"200": _content("Metrics", "text/plain", _STRING), **_errors("internal", *refused)}
    model = {
        "200": _json("The model", {"$ref": "#/components/schemas/Model"}),
        **_errors("internal", *refused),
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "tsm serve", "version": version},
        "paths": {
            **({STREAM_PATH: {"get": stream}} if follows else {"/v1/predict": {"post": predict}}),
            "/v1/model": {
                "get": _read("The network, its classes and the limits", "model", model, secured)
            },
            "/healthz": {"get": _probe("Whether the process is alive", "alive")},
            "/readyz": {"get": _probe("Whether the network is loaded", "ready", "not_ready")},
            "/metrics": {"get": _read("Metrics for Prometheus", "metrics", figures, secured)},
        },
        "components": {
            "schemas": _schemas(num_classes),
            **({"securitySchemes": {"token": _TOKEN}} if token else {}),
        },
    }


def _schemas(num_classes: int) -> dict[str, Any]:
    predictions = {"type": "array", "items": {"$ref": "#/components/schemas/Prediction"}}
    moment = _object(start=_NUMBER, end=_NUMBER, predictions=predictions)
    common = {"id": _STRING, "video": _STRING}
    index = {"type": "integer", "minimum": 0, "maximum": num_classes - 1}
    score = {"type": "number", "minimum": 0, "maximum": 1}
    return {
        "Prediction": _object(index=index, label=_STRING, score=score),
        "Answer": {
            "oneOf": [
                _object(**common, predictions=predictions),
                _object(**common, timeline={"type": "array", "items": moment}),
            ]
        },
        "Model": _object(
            name=_STRING,
            engine={"type": ["string", "null"]},
            precision={"type": ["string", "null"]},
            device={"type": ["string", "null"]},
            kind={"type": "string", "enum": [CLIPS, STREAM]},
            frame_rate=_NUMBER,
            architecture={"type": "object"},
            protocol=_STRING,
            protocols={"type": "array", "items": _STRING},
            labels={"type": "array", "items": _STRING},
            limits={"type": "object", "additionalProperties": _NUMBER},
        ),
        "Error": _object(
            id=_STRING, code={"type": "string", "enum": list(REFUSALS)}, error=_STRING
        ),
    }


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _content(description: str, kind: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {kind: {"schema": schema}}}


def _json(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return _content(description, "application/json", schema)


def _errors(*codes: str) -> dict[str, Any]:
    """Returns responses by status; one status may stand for several codes."""
    found: dict[str, list[str]] = {}
    for code in codes:
        status, about = REFUSALS[code]
        found.setdefault(str(status), []).append(f"`{code}`: {about}")
    return {
        status: _json(" ".join(about), {"$ref": "#/components/schemas/Error"})
        for status, about in found.items()
    }


def _read(
    summary: str, name: str, responses: dict[str, Any], secured: dict[str, Any]
) -> dict[str, Any]:
    return {"summary": summary, "operationId": name, "responses": responses, **secured}


def _probe(summary: str, status: str, *codes: str) -> dict[str, Any]:
    yes = _json("Yes", _object(status={"const": status}))
    return _read(summary, status, {"200": yes, **_errors("internal", *codes)}, {})
