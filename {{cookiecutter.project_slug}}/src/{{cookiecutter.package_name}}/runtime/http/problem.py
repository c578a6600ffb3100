"""The body of an error, as RFC 9457 has it."""

import json
import re
from http.client import responses

import msgspec
from aiohttp import web
from msgspec import Struct

from .. import logs

PROBLEM = "application/problem+json"

_STEP = re.compile(r"\.([^.\[]+)|\[(\d+)\]")


class Mistake(Struct):
    """One mistake in a request."""

    pointer: str  # a JSON Pointer into an object of the path, query and body
    detail: str


class Problem(Struct, omit_defaults=True):
    """What is wrong."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    errors: list[Mistake] = []


def problem(status: int, detail: str, errors: list[Mistake] | None = None) -> str:
    """A Problem as JSON."""
    title = responses.get(status, "Error")
    found = Problem("about:blank", title, status, detail, logs.current_id(), errors or [])
    return json.dumps(msgspec.to_builtins(found))


def mistake(place: str, error: Exception, text: object = None) -> Mistake:
    """What msgspec says is wrong.

    Args:
        place: a JSON Pointer to what it was given.
        text: that, where all that can be given is text.
    """
    detail, _, path = str(error).partition(" - at `")
    if text is not None:
        detail = detail.replace("got `str`", f"got {text!r:.100}")
    for name, number in _STEP.findall(path.rstrip("`").partition("[...]")[0]):
        place += "/" + (number or name.replace("~", "~0").replace("/", "~1"))
    return Mistake(place, detail)


def refusal(mistakes: list[Mistake]) -> web.HTTPException:
    """The answer to a request with these mistakes."""
    detail = "; ".join(f"{one.pointer}: {one.detail}" for one in mistakes)
    text = problem(422, detail, mistakes)
    return web.HTTPUnprocessableEntity(text=text, content_type=PROBLEM)
