"""HTML from templates that escape what they are given: names of classes and files are foreign."""

from __future__ import annotations

import base64
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(template: str, **values: Any) -> str:
    """The HTML of a file in `templates/`, everything in `values` escaped."""
    environment = Environment(
        loader=PackageLoader("tsm_jax.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda share: "" if share is None else f"{share:.1%}"
    return environment.get_template(template).render(**values)


def data_uri(content: bytes, kind: str) -> str:
    """An address that holds a picture itself.

    Args:
        content: of the file.
        kind: `image/png` or the like.
    """
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
