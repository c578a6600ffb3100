"""The description of the Application's routes, as OpenAPI 3.1 has it."""

from typing import Any

import msgspec


def schemas(hints: list[Any]) -> tuple[tuple[dict[str, Any], ...], dict[str, Any]]:
    """The JSON Schemas of these types, and the named ones that they refer to.

    Raises:
        TypeError: when one of them does not fit in JSON.
    """

    def anything(kind: type) -> dict[str, Any]:
        if kind is object:
            return {"description": "any value"}
        raise NotImplementedError

    return msgspec.json.schema_components(
        hints, schema_hook=anything, ref_template="#/components/schemas/{name}"
    )
