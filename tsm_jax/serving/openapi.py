"""The OpenAPI description of the service."""

from __future__ import annotations

from typing import Any

from tsm_jax.deploy.artifact import CLIPS, STREAM
from tsm_jax.serving.gate import STREAM_PATH
from tsm_jax.serving.limits import REFUSALS

# What a prediction is never answered.
_OF_STREAMS = (
    "forbidden",
    "idle",
    "wrong_kind",
    "upgrade_required",
    "unreadable_frame",
    "stopping",
)

_STRING, _NUMBER, _INTEGER = {"type": "string"}, {"type": "number"}, {"type": "integer"}


def describe(
    version: str,
    options: dict[str, dict[str, Any]],
    *,
    token: bool,
    num_classes: int,
    follows: bool = False,
) -> dict[str, Any]:
    """The description, OpenAPI 3.1.

    Args:
        version: of the package.
        options: schemas of those of a prediction.
        token: whether a bearer token is needed.
        num_classes: K.
        follows: whether the model is for streams. OpenAPI cannot describe what goes over a
            WebSocket; what its address answers to other requests is there.
    """
    secured: dict[str, Any] = {"security": [{"token": []}]} if token else {}
    refused = ["unauthorized"] if token else []
    predict = {
        "summary": "Names the action in a video",
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
                    "schema": _object(file={"type": "string", "format": "binary"}),
                    "encoding": {"file": {"contentType": "application/octet-stream"}},
                },
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
                "video/*": {"schema": {"type": "string", "format": "binary"}},
            },
        },
        "responses": {
            "200": _json("The answer", {"$ref": "#/components/schemas/Answer"}),
            **_errors(
                *(
                    code
                    for code in REFUSALS
                    if code not in ("unauthorized", "not_found", *_OF_STREAMS)
                )
            ),
            **_errors(*refused),
        },
        **secured,
    }
    stream = {
        "summary": "Names the action in a stream, frame by frame, over a WebSocket",
        "description": "Binary messages are JPEG pictures; answers are JSON. See docs/serving.md.",
        "operationId": "stream",
        "responses": _errors("upgrade_required", "internal", *refused),
        **secured,
    }
    model = {
        "summary": "The network, its classes and the limits",
        "operationId": "model",
        "responses": {
            "200": _json("The model", {"$ref": "#/components/schemas/Model"}),
            **_errors("internal", *refused),
        },
        **secured,
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "tsm serve", "version": version},
        "paths": {
            **({STREAM_PATH: {"get": stream}} if follows else {"/v1/predict": {"post": predict}}),
            "/v1/model": {"get": model},
            "/healthz": {"get": _probe("Whether the process is alive", "alive")},
            "/readyz": {"get": _probe("Whether the network is loaded", "ready", "not_ready")},
            "/metrics": {
                "get": {
                    "summary": "Figures for Prometheus",
                    "operationId": "metrics",
                    "responses": {
                        "200": _content("Figures", "text/plain", _STRING),
                        **_errors("internal", *refused),
                    },
                    **secured,
                }
            },
        },
        "components": {
            "schemas": _schemas(num_classes),
            **(
                {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}}
                if token
                else {}
            ),
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
    """Answers by status; one may stand for several codes."""
    found: dict[str, list[str]] = {}
    for code in codes:
        status, about = REFUSALS[code]
        found.setdefault(str(status), []).append(f"`{code}`: {about}")
    return {
        status: _json(" ".join(about), {"$ref": "#/components/schemas/Error"})
        for status, about in found.items()
    }


def _probe(summary: str, status: str, *codes: str) -> dict[str, Any]:
    return {
        "summary": summary,
        "operationId": status,
        "responses": {
            "200": _json("Yes", _object(status={"const": status})),
            **_errors("internal", *codes),
        },
    }
