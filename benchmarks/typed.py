"""What reading and checking a request costs, measured here: make bench NAME=typed

A book comes as JSON and goes out again: with msgspec, with pydantic, and with json alone, which
checks nothing. Then a whole handler that does it: a typed one, and a plain one with
`await request.json()` and `web.json_response()`. All in turns; what counts is the median of the
turns' ratios. pydantic is installed into a folder of its own for this.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "runtime"))
from overlay import PACKAGE, PROJECT

PYDANTIC = "pydantic==2.14.4"
ROUNDS = int(os.environ.get("ROUNDS", "21"))
TIMES = 3000
BODY = json.dumps(
    {
        "title": "Emma",
        "year": 1815,
        "authors": [{"name": "Jane Austen", "mail": None}, {"name": "Anonymous", "mail": "a@b"}],
        "tags": ["novel", "comedy of manners"],
        "price": 7.5,
    }
).encode()


class Author(msgspec.Struct):
    name: str
    mail: str | None = None


class Book(msgspec.Struct):
    title: str
    year: int
    authors: list[Author]
    tags: list[str]
    price: float


def with_msgspec() -> Callable[[], bytes]:
    decode, encode = msgspec.json.Decoder(Book).decode, msgspec.json.Encoder().encode
    return lambda: encode(decode(BODY))


def with_pydantic(folder: str) -> Callable[[], bytes]:
    uv = PROJECT / ".venv" / "bin" / "uv"
    install = [uv, "pip", "install", "--quiet", "--python", sys.executable, "--target", folder]
    subprocess.run([*install, PYDANTIC], check=True)
    sys.path.insert(0, folder)
    pydantic: Any = import_module("pydantic")
    author = pydantic.create_model("Author", name=str, mail=(str | None, None))
    fields = {"title": str, "year": int, "tags": list[str], "price": float}
    book = pydantic.create_model("Book", authors=list[author], **fields)
    read, write = book.__pydantic_validator__.validate_json, book.__pydantic_serializer__.to_json
    return lambda: write(read(BODY))


def handlers() -> tuple[Callable[[], Any], Callable[[], Any]]:
    """What answers a request with its book: a typed handler, and a plain one."""
    routes: Any = import_module(f"{PACKAGE}.runtime").Routes()

    @routes.post("/{shelf}")
    async def typed(shelf: int, book: Book) -> Book:
        return book

    @routes.post("/plain/{shelf}")
    async def plain(request: web.Request) -> web.Response:
        int(request.match_info["shelf"])
        return web.json_response(await request.json())

    request = make_mocked_request("POST", "/1", match_info={"shelf": "1"})
    request._read_bytes = BODY
    one, other = (route.handler for route in routes)
    return lambda: one(request), lambda: other(request)


def seconds(call: Callable[[], Any]) -> float:
    began = time.process_time()
    for _ in range(TIMES):
        call()
    return time.process_time() - began


async def awaited(call: Callable[[], Any]) -> float:
    began = time.process_time()
    for _ in range(TIMES):
        await call()
    return time.process_time() - began


def show(name: str, costs: list[float], base: list[float]) -> None:
    ratios = [one / other for one, other in zip(costs, base, strict=True)]
    microseconds = median(costs) / TIMES * 1e6
    print(f"{name:32} {microseconds:6.2f} us   {median(ratios):5.2f} times the first")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        alone = {
            "msgspec": with_msgspec(),
            PYDANTIC: with_pydantic(folder),
            "json, nothing is checked": lambda: json.dumps(json.loads(BODY)).encode(),
        }
        whole = dict(zip(("typed handler", "plain handler"), handlers(), strict=True))
        costs: dict[str, list[float]] = {name: [] for name in (*alone, *whole)}
        with asyncio.Runner() as runner:
            for turn in range(ROUNDS):
                for name in list(costs)[:: 1 if turn % 2 else -1]:
                    if name in alone:
                        costs[name].append(seconds(alone[name]))
                    else:
                        costs[name].append(runner.run(awaited(whole[name])))
    for group in (alone, whole):
        for name in group:
            show(name, costs[name], costs[next(iter(group))])


if __name__ == "__main__":
    main()
