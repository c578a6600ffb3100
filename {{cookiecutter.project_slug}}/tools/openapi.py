"""Requests made up from /openapi.json of the service under load, for the locustfile."""

import json
import os
from collections.abc import Callable
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, urlencode
from urllib.request import urlopen

Schema = dict[str, Any]
METHODS = ("get", "post", "put", "patch", "delete")
DEEPEST = 8  # schemas may name themselves


def calls_of_the_service() -> list[Callable[[Any], None]]:
    """A task of Locust's for each route described; none where the service describes nothing."""
    try:
        with urlopen(f"{os.environ['LOCUST_HOST'].rstrip('/')}/openapi.json", timeout=10) as answer:
            document = json.load(answer)
    except (KeyError, HTTPError, ValueError):
        return []
    return list(calls(document))


def calls(document: Schema) -> list[Callable[[Any], None]]:
    """A task for each operation of an OpenAPI document."""
    return [
        task(document, path, method, item, item[method])
        for path, item in document.get("paths", {}).items()
        for method in METHODS
        if method in item
    ]


def task(
    document: Schema, path: str, method: str, item: Schema, operation: Schema
) -> Callable[[Any], None]:
    at, query, headers = path, {}, {}
    for parameter in [*item.get("parameters", []), *operation.get("parameters", [])]:
        parameter = resolve(document, parameter)
        value = parameter.get("example", example(document, parameter.get("schema", {})))
        match parameter["in"]:
            case "path":
                at = at.replace(f"{{{parameter['name']}}}", quote(str(value), safe=""))
            case "query" if parameter.get("required"):
                query[parameter["name"]] = value
            case "header" if parameter.get("required"):
                headers[parameter["name"]] = str(value)
    content = resolve(document, operation.get("requestBody", {})).get("content", {})
    media = content.get("application/json")
    body = {} if media is None else {"json": example(document, media.get("schema", {}))}
    expected = {int(status) for status in operation.get("responses", {}) if status.isdigit()}

    def call(user: Any) -> None:
        """What the document names is no failure: a made-up id may well be a 404."""
        with user.client.request(
            method.upper(),
            f"{at}?{urlencode(query)}" if query else at,
            headers=headers,
            name=path,
            catch_response=True,
            **body,
        ) as response:
            if response.status_code in expected and response.status_code < 500:
                response.success()

    return call


def resolve(document: Schema, schema: Schema) -> Schema:
    """The schema that a $ref names."""
    while "$ref" in schema:
        target: Any = document
        for part in schema["$ref"].removeprefix("#/").split("/"):
            target = target[part.replace("~1", "/").replace("~0", "~")]
        schema = target
    return schema


def example(document: Schema, schema: Schema, depth: int = 0) -> Any:
    """The smallest value that a schema allows, or the one that it names itself."""
    schema = resolve(document, schema)
    if depth > DEEPEST:
        return None
    for key in ("example", "default", "const"):
        if key in schema:
            return schema[key]
    for key in ("examples", "enum"):
        if schema.get(key):
            return schema[key][0]
    for key in ("oneOf", "anyOf"):
        if schema.get(key):
            return example(document, schema[key][0], depth + 1)
    if "allOf" in schema:
        parts = [example(document, part, depth + 1) for part in schema["allOf"]]
        return {k: v for part in parts if isinstance(part, dict) for k, v in part.items()}
    kind = schema.get("type")
    match kind[0] if isinstance(kind, list) else kind:
        case "object":
            return {
                name: example(document, schema.get("properties", {}).get(name, {}), depth + 1)
                for name in schema.get("required", [])
            }
        case "array":
            item = schema.get("items", {})
            return [example(document, item, depth + 1) for _ in range(schema.get("minItems", 0))]
        case "integer" | "number":
            least = schema.get("minimum", schema.get("exclusiveMinimum", 0))
            step = schema.get("multipleOf", 1)
            return least + step if "exclusiveMinimum" in schema else least
        case "boolean":
            return True
        case "null":
            return None
    return text(schema)


FORMATS = {
    "date": "2026-01-31",
    "date-time": "2026-01-31T12:00:00Z",
    "time": "12:00:00Z",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "email": "ada@example.com",
    "uri": "https://example.com/",
}


def text(schema: Schema) -> str:
    """A pattern is not followed: name an example of your own beside it."""
    made: str = FORMATS.get(schema.get("format", ""), "x" * max(1, schema.get("minLength", 1)))
    return made[: schema.get("maxLength", len(made))]
