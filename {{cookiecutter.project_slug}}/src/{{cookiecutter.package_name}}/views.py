"""Yours: the endpoints. The examples: a path parameter, a validated body, CPU-heavy work."""

import os
from typing import Annotated

from aiohttp import web
from msgspec import Meta, Struct

from .runtime import Routes, compute, service
from .settings import SETTINGS
from .tasks import primes

routes = Routes()

Name = Annotated[str, Meta(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]+$")]


class Person(Struct):
    name: Name


class Greeting(Struct):
    greeting: str


class Primes(Struct):
    limit: int
    count: int


@routes.get("/")
async def index(request: web.Request) -> web.Response:
    """What answers, and in which process."""
    name, version = service()
    return web.json_response({"service": name, "version": version, "worker": os.getpid()})


@routes.get("/greet/{name}")
async def greet(request: web.Request, name: Name) -> Greeting:
    """Greet someone."""
    return Greeting(request.app[SETTINGS].greeting.replace("{name}", name))


@routes.post("/greet")
async def greet_body(request: web.Request, person: Person) -> Greeting:
    """Greet someone whose name is in a body."""
    return await greet(request, person.name)


@routes.get(r"/primes/{limit:\d{1,7}}")
async def count_primes(limit: int) -> Primes:
    """How many primes are there up to and including this number?"""
    return Primes(limit, await compute.run(primes, limit))
