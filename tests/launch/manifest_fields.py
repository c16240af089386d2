"""Whether a manifest has only fields that its kind has, with values of their types."""

from __future__ import annotations


def check(value, schema, path=""):
    """`schema`: a type, a list of one schema, or a dict by name, where None stands for any name."""
    if isinstance(schema, list):
        assert isinstance(value, list), path
        for i, item in enumerate(value):
            check(item, schema[0], f"{path}[{i}]")
    elif isinstance(schema, dict):
        assert isinstance(value, dict), path
        for name, item in value.items():
            assert name in schema or None in schema, f"{path}.{name} is no field"
            check(item, schema.get(name, schema.get(None)), f"{path}.{name}")
    else:
        assert type(value) is schema, f"{path} is {value!r}"
