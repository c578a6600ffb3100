"""Handlers that say by their annotations what they take and give; in this process."""
# mypy: disable-error-code="untyped-decorator, misc, empty-body"
# (the runtime is imported by the package's name)

import asyncio
import functools
import io
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib import import_module
from typing import Annotated, Any, NoReturn

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient
from overlay import PACKAGE

runtime: Any = import_module(f"{PACKAGE}.runtime")
views: Any = import_module(f"{PACKAGE}.typed_views")
Server: Any = import_module(f"{PACKAGE}.runtime.testing").Server


class Answer:
    def __init__(self, response: Any, body: bytes) -> None:
        self.status: int = response.status
        self.type: str = response.content_type
        self.body = body

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)


def ask(method: str, path: str, data: Any = None, *, routes: Any = views.routes) -> Answer:
    """What these routes answer; data: JSON, where it is not bytes."""

    async def request() -> Answer:
        app = web.Application()
        app.add_routes(routes)
        async with TestClient(Server(app)) as client:
            body = data if isinstance(data, bytes) else msgspec.json.encode(data)
            sent = None if data is None else io.BytesIO(body)
            response = await client.request(method, path, data=sent)
            return Answer(response, await response.read())

    return asyncio.run(request())


def mistakes(answer: Answer) -> dict[str, str]:
    """The places of what was wrong, and what it was."""
    problem = answer.json
    assert (answer.status, answer.type) == (422, "application/problem+json")
    assert problem["request_id"]
    assert problem["status"] == 422
    for one in problem["errors"]:
        assert f"{one['pointer']}: {one['detail']}" in problem["detail"]
    return {one["pointer"]: one["detail"] for one in problem["errors"]}


def test_path_query_and_body_come_as_what_they_are_declared() -> None:
    book = {"title": "Emma", "authors": [{"name": "Jane Austen", "born": "1775-12-16"}]}
    answer = ask("POST", "/typed/shelves/7/books?notify=true", book)
    assert (answer.status, answer.type) == (201, "application/json")
    whole = {"language": "en", "pages/read": 0, "marks": {}}
    assert answer.json == book | whole


def test_a_query_has_defaults_lists_enums_and_times() -> None:
    found = ask("GET", "/typed/shelves/7/books").json
    assert found["shelf"] == 7
    assert found["options"] == {
        "path": "/typed/shelves/7/books",
        **dict.fromkeys(["language", "from", "isbn"]),
        "limit": 10,
        "tags": [],
        "order": "title",
        "weight": 1.0,
    }
    uuid = "12345678-1234-5678-1234-567812345678"
    query = "limit=3&tags=a&tags=b&language=fr&from=2026-01-02"
    found = ask("GET", f"/typed/shelves/1/books?{query}&order=pages&weight=2&isbn={uuid}").json
    assert found["options"] == {
        "path": "/typed/shelves/1/books",
        "from": "2026-01-02",
        "limit": 3,
        "tags": ["a", "b"],
        "language": "fr",
        "order": "pages",
        "weight": 2.0,
        "isbn": uuid,
    }


def test_times_come_with_their_zones() -> None:
    routes = runtime.Routes()

    @routes.get("/")
    async def look(at: datetime, longest: timedelta = timedelta(hours=1)) -> datetime:
        return at + longest

    assert ask("GET", "/?at=2026-01-02T03:04:05Z", routes=routes).json == "2026-01-02T04:04:05Z"
    assert ask("GET", "/?at=2026-01-02T03:04:05%2B02:00&longest=PT1M", routes=routes).json == (
        "2026-01-02T03:05:05+02:00"
    )
    wrong = mistakes(ask("GET", "/?at=then&longest=long", routes=routes))
    assert wrong == {
        "/query/at": "Invalid RFC3339 encoded datetime",
        "/query/longest": "Invalid ISO8601 duration",
    }


def test_a_text_is_never_none() -> None:
    wrong = mistakes(ask("GET", "/typed/shelves/1/books?language=null&isbn=null"))
    assert wrong.keys() == {"/query/language", "/query/isbn"}


def test_all_that_is_wrong_is_said_at_once() -> None:
    query = "limit=0&tags=a&language=it&weight=heavy&order=x&isbn=1"
    assert mistakes(ask("GET", f"/typed/shelves/top/books?{query}")) == {
        "/path/shelf": "Expected `int`, got 'top'",
        "/query/limit": "Expected `int` >= 1",
        "/query/language": "Invalid enum value 'it'",
        "/query/weight": "Expected `float`, got 'heavy'",
        "/query/order": "Invalid enum value 'x'",
        "/query/isbn": "Invalid UUID",
    }
    missing = mistakes(ask("GET", "/typed/required"))
    assert missing == {"/query/number": "is missing", "/query/when": "is missing"}
    twice = mistakes(ask("GET", "/typed/required?number=1&number=2&when=2026-01-01"))
    assert twice == {"/query/number": "Expected `int`, got `array`"}
    both = mistakes(ask("POST", "/typed/shelves/top/books", {"title": 5}))
    assert both.keys() == {"/path/shelf", "/body/title"}


@pytest.mark.parametrize(
    ("book", "pointer"),
    [
        ([], "/body"),
        ({}, "/body"),
        ({"title": ""}, "/body/title"),
        ({"title": "Emma", "authors": [{"name": "Jane"}, {"name": 5}]}, "/body/authors/1/name"),
        ({"title": "Emma", "pages/read": "x"}, "/body/pages~1read"),
        ({"title": "Emma", "marks": {"good": "x"}}, "/body/marks"),
    ],
)
def test_a_wrong_body_is_told_with_its_place(book: Any, pointer: str) -> None:
    assert list(mistakes(ask("POST", "/typed/shelves/7/books", book))) == [pointer]


@pytest.mark.parametrize(
    ("body", "words"),
    [(b"", "empty"), (b"{", "truncated"), (b'{"title": "\xff"}', "utf-8"), (b"nope", "malformed")],
)
def test_what_is_no_json_is_400(body: bytes, words: str) -> None:
    answer = ask("POST", "/typed/shelves/7/books", body)
    assert (answer.status, answer.type) == (400, "application/problem+json")
    assert answer.json["detail"].startswith("the body is no JSON")
    assert words in answer.json["detail"]


def test_json_that_is_nested_too_deeply_is_400() -> None:
    routes = runtime.Routes()

    @routes.post("/")
    async def take(body: dict[str, Any]) -> None: ...

    assert ask("POST", "/", b'{"a":' * 100_000, routes=routes).status == 400


def test_bodies_may_be_lists_left_out_or_too_large() -> None:
    assert ask("PUT", "/typed/books", [{"title": "Emma"}]).json == {"Emma": 0}
    wrong = ask("PUT", "/typed/books", [{"title": "Emma"}, {"title": 1}])
    assert list(mistakes(wrong)) == ["/body/1/title"]
    assert ask("PATCH", "/typed/book").json is None
    assert ask("PATCH", "/typed/book", {"title": "Emma"}).json["title"] == "Emma"
    large = {"title": "Emma", "authors": [{"name": "x" * 2**20}]}
    assert ask("POST", "/typed/shelves/7/books", large).status == 201  # by @max_body
    assert ask("PUT", "/typed/books", [large]).status == 413


def test_answers_may_be_nothing_and_responses() -> None:
    nothing = ask("DELETE", "/typed/books/Emma")
    assert (nothing.status, nothing.body) == (204, b"")
    assert ask("GET", "/typed/required?number=304&when=2026-01-01").status == 304
    answer = ask("GET", "/typed/required?number=3&when=2026-01-01")
    assert answer.json == {"number": 3, "year": 2026}
    conflict = ask("POST", "/typed/shelves/0/books", {"title": "Emma"})
    assert (conflict.status, conflict.json["detail"]) == (409, "the shelf is full")


def test_a_dataclass_is_a_body_too() -> None:
    routes = runtime.Routes()

    @dataclass
    class Point:
        x: int
        y: int = 0

    @routes.post("/")
    async def move(point: Point) -> Point:
        return Point(point.y, point.x)

    assert ask("POST", "/", {"x": 1}, routes=routes).json == {"x": 0, "y": 1}


def test_a_handler_stays_the_function_that_it_was() -> None:
    book = asyncio.run(views.add(7, views.Book("Emma")))
    assert book.title == "Emma"


def test_plain_handlers_stay_plain() -> None:
    routes = runtime.Routes()

    @routes.get("/plain")
    async def plain(request: web.Request) -> web.StreamResponse:
        return web.Response()

    @routes.get("/untyped")
    async def untyped(request):  # type: ignore[no-untyped-def]
        return web.Response()

    @routes.get("/never")
    async def never(req: web.Request) -> NoReturn:
        raise web.HTTPGone

    @routes.view("/view")
    class View(web.View):
        async def get(self) -> web.Response:
            return web.Response()

    assert [route.handler for route in routes] == [plain, untyped, never, View]


def test_a_decorator_that_says_what_it_wraps_is_seen_through() -> None:
    routes = runtime.Routes()

    def loud(handler: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(handler)
        async def louder(*args: Any, **options: Any) -> Any:
            said: str = await handler(*args, **options)
            return said.upper()

        return louder

    @routes.get("/{word}")
    @loud
    async def say(word: str, times: int = 1) -> str:
        return word * times

    assert ask("GET", "/hey?times=2", routes=routes).json == "HEYHEY"


class Stranger:
    """What JSON does not know."""


async def two_bodies(one: views.Book, other: views.Book) -> None: ...
async def with_body(book: views.Book) -> None: ...
async def untyped_one(request: web.Request, name) -> None: ...  # type: ignore[no-untyped-def]
async def by_place(name: str, /) -> None: ...
async def any_number(*names: str) -> None: ...
async def stranger(one: Stranger) -> None: ...
async def strange_answer() -> Stranger: ...
async def list_in_path(name: list[str]) -> None: ...
async def with_name(name: views.Book) -> None: ...
async def nested(names: list[list[str]]) -> None: ...
async def no_success() -> Annotated[int, 404]: ...
async def unknown(name: "Nobody") -> None: ...  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    ("method", "handler", "words"),
    [
        ("POST", two_bodies, "other would be the body, but one is it"),
        ("GET", with_body, "book would be the body, but GET has none"),
        ("GET", untyped_one, "name: give it a type"),
        ("GET", by_place, "name: str: give it a type, and let it be passed by name"),
        ("GET", any_number, "names: str: give it a type, and let it be passed by name"),
        ("GET", stranger, "is not supported"),
        ("GET", strange_answer, "is not supported"),
        ("GET", list_in_path, "name: list[str] fits in no path"),
        ("POST", with_name, f"name: {PACKAGE}.typed_views.Book fits in no path"),
        ("GET", nested, "names: list[list[str]] fits in no query"),
        ("GET", no_success, "404 is no status of success"),
        ("GET", unknown, "name 'Nobody' is not defined"),
    ],
)
def test_a_wrong_annotation_is_refused_at_the_start(
    method: str, handler: Callable[..., Any], words: str
) -> None:
    with pytest.raises(TypeError) as refused:
        runtime.Routes().route(method, "/{name}")(handler)
    assert str(refused.value).startswith(f"{method} /{{name}}, {__name__}.{handler.__name__}: ")
    assert words.lower() in str(refused.value).lower()
