"""Endpoints whose annotations say what they take and give: a few shelves of books, in memory."""

from datetime import date
from enum import Enum
from typing import Annotated, Literal
from uuid import UUID

from aiohttp import web
from msgspec import Meta, Struct, field

from .runtime import Routes, compute, max_body
from .tasks import brew, primes

routes = Routes()

Title = Annotated[str, Meta(min_length=1, max_length=100, examples=["Emma"])]


class Language(Enum):
    ENGLISH = "en"
    FRENCH = "fr"


class Author(Struct):
    """Who wrote it."""

    name: str
    born: date | None = None


class Book(Struct):
    """A book, as it stands on a shelf."""

    title: Title
    authors: Annotated[list[Author], Meta(max_length=10)] = []
    language: Language = Language.ENGLISH
    pages_read: int = field(default=0, name="pages/read")
    marks: dict[str, int] = {}


class Found(Struct):
    shelf: int
    options: dict[str, object]


@routes.post("/typed/shelves/{shelf}/books")
@max_body(2**21)
async def add(shelf: int, book: Book, notify: bool = False) -> Annotated[Book, 201]:
    """Put a book on a shelf.

    It stands there until the process ends.
    """
    if shelf == 0:
        raise web.HTTPConflict(text="the shelf is full")
    return book


@routes.get("/typed/shelves/{shelf}/books")
async def find(
    request: web.Request,
    shelf: int,
    limit: Annotated[int, Meta(ge=1, le=100, description="how many")] = 10,
    tags: list[str] = [],  # noqa: B006
    language: Language | None = None,
    from_: date | None = None,
    order: Literal["title", "pages"] = "title",
    weight: float = 1.0,
    isbn: UUID | None = None,
) -> Found:
    """Look for books."""
    options = {"limit": limit, "tags": tags, "language": language}
    options |= {"from": from_, "order": order, "weight": weight, "isbn": isbn}
    return Found(shelf, {**options, "path": request.path})


@routes.put("/typed/books")
async def replace(books: list[Book]) -> dict[str, int]:
    """Replace all books."""
    return {book.title: len(book.authors) for book in books}


@routes.patch("/typed/book")
async def change(book: Book | None = None) -> Book | None:
    """Change a book, or leave it."""
    return book


@routes.delete("/typed/books/{title}")
async def remove(title: Title) -> None:
    """Take a book away."""


@routes.get("/typed/required")
async def required(number: int, when: date) -> web.Response | dict[str, int]:
    """What is required, and may be a response."""
    return web.Response(status=304) if number == 304 else {"number": number, "year": when.year}


@routes.get("/typed/primes")
async def count(limit: Annotated[int, Meta(ge=0, le=10_000)]) -> int:
    """How many primes are there up to this number?"""
    return await compute.run(primes, limit)


@routes.get("/typed/refused")
async def refused() -> int:
    """What its task does not want."""
    return await compute.run(brew)
