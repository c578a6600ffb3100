"""Handlers whose annotations say what they take and what they give.

    @routes.post("/shelves/{shelf}/books")
    async def add(shelf: int, book: Book, notify: bool = False) -> Annotated[Book, 201]: ...

A parameter is the request (by name or type), a variable of the path (by name), the body (a Struct,
or a list or dict of them), or else one of the query; `from_` is `?from=`. What comes back is sent
as JSON, None as a 204. Handlers of aiohttp's own kind, of a request to a response, are left alone.
"""

import inspect
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import is_dataclass
from functools import wraps
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar, get_args, get_origin

import msgspec
from aiohttp import hdrs, web
from msgspec import NODEFAULT, DecodeError, Struct, ValidationError, field

from .openapi import JSON, schemas, sent
from .problem import Mistake, mistake, refusal

F = TypeVar("F", bound=Callable[..., Any])
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_encode = msgspec.json.Encoder().encode


class Parameter(NamedTuple):
    """What a handler takes besides the request."""

    name: str
    key: str  # its name in the request
    hint: Any
    default: Any  # NODEFAULT: it is required
    place: str  # path, query or body
    several: bool  # whether the query may have it more than once


def _classes(hint: Any) -> Iterator[type]:
    """The classes of which a type is made."""
    hint = getattr(hint, "__value__", hint)  # of `type Name = ...`
    if isinstance(one := get_origin(hint) or hint, type):
        yield one
    for argument in get_args(hint):
        yield from _classes(argument)


def _is_object(one: type) -> bool:
    return is_dataclass(one) or typing.is_typeddict(one) or issubclass(one, Struct | Mapping)


def _is_list(one: type) -> bool:
    return issubclass(one, Collection) and not issubclass(one, str | bytes)


class Call:
    """What a handler takes and gives. Raises TypeError where an annotation says what cannot be."""

    def __init__(self, handler: Callable[..., Any], method: str, path: str) -> None:
        self.request, self.status = "", 200  # the parameter's name, the answer's status
        self.body: Parameter | None = None
        self.parameters: list[Parameter] = []  # the others
        self.answers: list[Any] = []  # the types of what is sent as JSON
        variables = web.DynamicResource(path).get_info()["pattern"].groupindex
        hints = typing.get_type_hints(handler, include_extras=True)
        for name, parameter in inspect.signature(handler).parameters.items():
            classes = [*_classes(hints.get(name))]
            if name == "request" or (classes and issubclass(classes[0], web.BaseRequest)):
                self.request = name
            elif name not in hints or parameter.kind not in _BY_NAME:
                raise TypeError(f"{parameter}: give it a type, and let it be passed by name")
            else:
                key, several = name.removesuffix("_"), any(map(_is_list, classes))
                place = "body" if any(map(_is_object, classes)) else "query"
                place = "path" if key in variables else place
                default = NODEFAULT if parameter.default is parameter.empty else parameter.default
                hint = hints[name] if place == "body" else sent(hints[name])
                self._take(Parameter(name, key, hint, default, place, several), method)
        self._give(hints.get("return", web.Response))
        self.hints = [*self.answers, *(p.hint for p in (self.body, *self.parameters) if p)]
        schemas(self.hints)
        fields = [(p.name, p.hint, field(default=p.default, name=p.key)) for p in self.parameters]
        self._values = msgspec.defstruct("Values", fields, kw_only=True)
        self._decode = msgspec.json.Decoder(self.body.hint if self.body else Any).decode

    def _take(self, one: Parameter, method: str) -> None:
        if one.place != "body":
            classes = [*_classes(one.hint)]
            lists, what = sum(map(_is_list, classes)), inspect.formatannotation(one.hint)
            if any(map(_is_object, classes)) or lists > (one.place == "query"):
                raise TypeError(f"{one.name}: {what} fits in no {one.place}")
            self.parameters.append(one)
        elif self.body or method in (hdrs.METH_GET, hdrs.METH_HEAD):
            why = f"{self.body.name} is it" if self.body else f"{method} has none"
            raise TypeError(f"{one.name} would be the body, but {why}")
        else:
            self.body = one

    def _give(self, hint: Any) -> None:
        for option in get_args(hint) if get_origin(hint) in (typing.Union, UnionType) else (hint,):
            one = option
            if get_origin(option) is Annotated and isinstance(get_args(option)[1], int):
                one, self.status = get_args(option)[:2]
            if not any(issubclass(c, web.StreamResponse) for c in _classes(one)):
                self.answers += () if one is typing.NoReturn else (one,)
        if self.answers == [NoneType]:
            self.answers, self.status = [], 204 if self.status == 200 else self.status
        if self.status not in range(200, 300):
            raise TypeError(f"{self.status} is no status of success")

    def _given(self, request: web.Request, mistakes: list[Mistake]) -> dict[str, Any]:
        """The values from path and query; what is wrong with them is added to `mistakes`."""
        query, texts = request.query, dict[str, Any](request.match_info)
        for one in self.parameters:
            if one.place == "query" and (values := query.getall(one.key, None)):
                texts[one.key] = values if one.several or len(values) > 1 else values[0]
        try:
            return msgspec.structs.asdict(msgspec.convert(texts, self._values, strict=False))
        except ValidationError:
            for one in self.parameters:  # each by itself, to find all that is wrong
                text = texts.get(one.key)
                try:
                    if text is not None:
                        msgspec.convert(text, one.hint, strict=False)
                    elif one.default is NODEFAULT:
                        raise ValueError("is missing")
                except ValueError as error:
                    mistakes.append(mistake(f"/{one.place}/{one.key}", error, text))
            return {}

    async def arguments(self, request: web.Request) -> dict[str, Any]:
        """Those of the handler. Raises web.HTTPException where they are wrong."""
        arguments: dict[str, Any] = {self.request: request} if self.request else {}
        mistakes: list[Mistake] = []
        if self.parameters:
            arguments |= self._given(request, mistakes)
        if self.body and ((data := await request.read()) or self.body.default is NODEFAULT):
            try:
                arguments[self.body.name] = self._decode(data)
            except ValidationError as error:
                mistakes.append(mistake("/body", error))
            except (DecodeError, UnicodeDecodeError, RecursionError) as error:
                why = f"that can be read: {error}" if data else "but empty"
                raise web.HTTPBadRequest(text=f"the body is no JSON {why}") from None
        if mistakes:
            raise refusal(mistakes)
        return arguments

    def response(self, result: Any) -> web.StreamResponse:
        if isinstance(result, web.StreamResponse):
            return result
        if result is None and not self.answers:
            return web.Response(status=self.status)
        return web.Response(body=_encode(result), status=self.status, content_type=JSON)


class Routes(web.RouteTableDef):
    """aiohttp's table of routes, for handlers that may be typed."""

    def route(self, method: str, path: str, **options: Any) -> Callable[[F], F]:
        """
        Raises:
            TypeError: when the annotations of a handler say what cannot be.
        """
        add: Callable[[Any], Any] = super().route(method, path, **options)

        def decorate(handler: F) -> F:
            add(_typed(handler, method, path))
            return handler

        return decorate

    if TYPE_CHECKING:  # aiohttp's own know plain handlers only

        def _verb(self, path: str, **options: Any) -> Callable[[F], F]: ...

        head = get = post = put = patch = delete = options = _verb


def _typed(handler: Any, method: str, path: str) -> Any:
    """The handler as aiohttp calls it."""
    if not inspect.iscoroutinefunction(handler) or not getattr(handler, "__annotations__", None):
        return handler
    try:
        call = Call(handler, method, path)
    except (TypeError, NameError) as error:
        where, why = f"{handler.__module__}.{handler.__qualname__}", str(error).rpartition("\n")[2]
        raise TypeError(f"{method} {path}, {where}: {why}") from None
    if call.request and not (call.parameters or call.body or call.answers or call.status != 200):
        return handler

    @wraps(handler)
    async def respond(request: web.Request) -> web.StreamResponse:
        return call.response(await handler(**await call.arguments(request)))

    respond.call = call  # type: ignore[attr-defined]
    return respond
