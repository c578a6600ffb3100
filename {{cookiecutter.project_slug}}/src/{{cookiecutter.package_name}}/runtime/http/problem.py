"""The body of an error, as RFC 9457 has it."""

import json
import re
from http.client import responses
from typing import Any

from aiohttp import web

from .. import logs

PROBLEM = "application/problem+json"

_STEP = re.compile(r"\.([^.\[]+)|\[(\d+)\]")


def problem(status: int, detail: str, **more: Any) -> str:
    """As JSON; `more` are members of this kind of error's own."""
    return json.dumps(
        {
            "type": "about:blank",
            "title": responses.get(status, "Error"),
            "status": status,
            "detail": detail,
            "request_id": logs.current_id(),
            **more,
        }
    )


def mistake(place: str, error: Exception, text: object = None) -> dict[str, str]:
    """One mistake in a request: a JSON Pointer to its place, and what msgspec says.

    Args:
        place: a JSON Pointer into an object of the request's path, query and body.
        text: what was given there, where all that can be given is text.
    """
    detail, _, path = str(error).partition(" - at `")
    if text is not None:
        detail = detail.replace("got `str`", f"got {text!r:.100}")
    for name, number in _STEP.findall(path.rstrip("`").partition("[...]")[0]):
        place += "/" + (number or name.replace("~", "~0").replace("/", "~1"))
    return {"pointer": place, "detail": detail}


def refusal(mistakes: list[dict[str, str]]) -> web.HTTPException:
    """The answer to a request with these mistakes."""
    detail = "; ".join(f"{one['pointer']}: {one['detail']}" for one in mistakes)
    text = problem(422, detail, errors=mistakes)
    return web.HTTPUnprocessableEntity(text=text, content_type=PROBLEM)
