"""The Application's routes as OpenAPI 3.1 describes them, and a page to try them on.

All comes from the code: annotations, docstrings, the errors that handlers raise themselves
(`raise web.HTTPConflict(text="...")`), and those of the tasks that they call.
"""

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from http.client import responses
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

import msgspec
from aiohttp import hdrs, web
from msgspec import NODEFAULT

from ..compute import registry
from ..parts import service
from .problem import PROBLEM, Problem

if TYPE_CHECKING:
    from .typed import Call

PAGE = Path(__file__).with_name("docs.html").read_text()
# what the page does is in it, and it asks nobody but this port
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; frame-ancestors 'none'"
)
JSON = "application/json"
Schema = Callable[[Any], dict[str, Any]]  # of a type
POOL = {  # what may become of a task besides its result
    500: "the task failed",
    503: "the compute pool is full or away; Retry-After says when to come again",
    504: "the task did not end in time",
}


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


def sent(hint: Any) -> Any:
    """The type of a parameter as a client sends it: what may be None is left out then."""
    if get_origin(hint) not in (Union, UnionType):
        return hint
    return Union[tuple(one for one in get_args(hint) if one is not NoneType)]  # noqa: UP007


def _raised(function: Callable[..., Any]) -> Iterator[tuple[int, str]]:
    """Status and text of the errors that a function raises in its own lines."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, SyntaxError):
        return  # there is no source of it
    for node in ast.walk(tree):
        match node:
            case ast.Raise(exc=ast.Call(ast.Attribute(attr=name) | ast.Name(id=name)) as call):
                given = [*call.args, *(word.value for word in call.keywords if word.arg == "text")]
                values = [one.value for one in given if isinstance(one, ast.Constant)]
            case ast.Raise(exc=ast.Attribute(attr=name) | ast.Name(id=name)):
                values = []
            case _:
                continue
        kind = getattr(web, name, None)
        status = kind.status_code if kind and issubclass(kind, web.HTTPException) else 0
        if name == registry.RefusedError.__name__:
            status = next((one for one in values if isinstance(one, int)), 0)
        if status >= 400:
            yield status, next((one for one in values if isinstance(one, str)), "")


def _called(handler: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """The tasks that a handler names."""
    function = inspect.unwrap(handler)
    code, names = getattr(function, "__code__", None), getattr(function, "__globals__", {})
    tasks = {task.function for task in registry.tasks.values()}
    for name in code.co_names if code else ():
        if inspect.isfunction(names.get(name)) and names[name] in tasks:
            yield names[name]


def _errors(handler: Callable[..., Any], call: "Call | None") -> dict[int, str]:
    """The statuses that may be answered when something is wrong, and when."""
    found: dict[int, set[str]] = {}
    if call and call.body:
        found |= {400: {"the body is no JSON"}, 413: {"the body is too large"}}
    if call and (call.body or call.parameters):
        found[422] = {"what is given is wrong; `errors` says where"}
    tasks = [*_called(handler)]
    for status, text in POOL.items() if tasks else ():
        found[status] = {text}
    for function in (inspect.unwrap(handler), *tasks):
        for status, text in _raised(function):
            found.setdefault(status, set()).update({text} - {""})
    return {s: "; ".join(sorted(found[s])) or responses.get(s, "Error") for s in sorted(found)}


def _content(kind: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"content": {kind: {"schema": schema}}}


def _parameters(resource: web.AbstractResource, call: "Call | None", schema: Schema) -> list[Any]:
    pattern = resource.get_info().get("pattern")
    untyped = dict.fromkeys(pattern.groupindex if pattern else ())
    found = []
    for one in call.parameters if call else ():
        untyped.pop(one.key, None)
        required, its = one.default is NODEFAULT or one.place == "path", schema(one.hint)
        if not required and one.default is not None:
            its = {**its, "default": msgspec.to_builtins(one.default)}
        found.append({"name": one.key, "in": one.place, "required": required, "schema": its})
    text = {"in": "path", "required": True, "schema": {"type": "string"}}
    return [*({"name": name, **text} for name in untyped), *found]


def _responses(handler: Callable[..., Any], call: "Call | None", schema: Schema) -> dict[str, Any]:
    status = str(call.status) if call and (call.answers or call.status != 200) else "2XX"
    success: dict[str, Any] = {"description": responses.get(int(status[0] + "00"), "")}
    if call and call.answers:
        kinds = [schema(one) for one in call.answers]
        success |= _content(JSON, kinds[0] if len(kinds) == 1 else {"anyOf": kinds})
    problem = _content(PROBLEM, schema(Problem))
    errors = {str(s): {"description": t, **problem} for s, t in _errors(handler, call).items()}
    return {status: success, **errors, "default": {"description": "any other error", **problem}}


def _operation(route: web.AbstractRoute, handler: Callable[..., Any], schema: Schema) -> Any:
    call: Call | None = getattr(handler, "call", None)
    summary, _, description = (inspect.getdoc(handler) or "").partition("\n")
    operation: dict[str, Any] = {"summary": summary, "description": description.strip()}
    if call and call.body:
        content = _content(JSON, schema(call.body.hint))
        operation["requestBody"] = {"required": call.body.default is NODEFAULT, **content}
    assert route.resource is not None
    operation["parameters"] = _parameters(route.resource, call, schema)
    return {name: value for name, value in operation.items() if value} | {
        "responses": _responses(handler, call, schema)
    }


def _handlers(route: web.AbstractRoute) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The methods of a route that are worth telling, and what handles them."""
    handler = route.handler
    for method in sorted(hdrs.METH_ALL - {hdrs.METH_CONNECT, hdrs.METH_HEAD}):
        if route.method == method:
            yield method, handler
        elif inspect.isclass(handler) and hasattr(handler, method.lower()):
            yield method, getattr(handler, method.lower())


def describe(app: web.Application) -> dict[str, Any]:
    """The OpenAPI document of the routes that an Application has."""
    routes = [
        (route, *one)
        for route in app.router.routes()
        if not isinstance(route.resource, web.StaticResource | None)
        for one in _handlers(route)
    ]
    calls: list[Call] = [h.call for _, _, h in routes if hasattr(h, "call")]
    hints: list[Any] = [Problem, *(hint for call in calls for hint in call.hints)]
    found, components = schemas(hints)
    paths: dict[str, Any] = {}
    for route, method, handler in routes:
        assert route.resource is not None
        operations = paths.setdefault(route.resource.canonical, {})
        operation = _operation(route, handler, lambda hint: found[hints.index(hint)])
        operations.setdefault(method.lower(), operation)
    name, version = service()
    return {
        "openapi": "3.1.0",
        "info": {"title": name, "version": version},
        "paths": paths,
        "components": {"schemas": components},
    }


def add_to(app: web.Application) -> None:
    """Have an Application answer /openapi.json and /docs, about the routes that it has by now."""
    document = msgspec.json.encode(describe(app))

    async def describe_it(request: web.Request) -> web.Response:
        return web.Response(body=document, content_type=JSON)

    async def show(request: web.Request) -> web.Response:
        headers = {"Content-Security-Policy": POLICY}
        return web.Response(text=PAGE, content_type="text/html", headers=headers)

    app.router.add_get("/openapi.json", describe_it)
    app.router.add_get("/docs", show)
