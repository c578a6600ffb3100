"""The admin application: probes, metrics and a page of the processes, on a port of its own.

Every worker serves it.
"""

import asyncio
import gzip
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from aiohttp import web
from aiohttp.web_request import BaseRequest

from ..metrics.exposition import scrape
from ..settings import Settings
from . import bounds

PAGE = Path(__file__).with_name("page.html").read_text()
# what the page does is in it, and it asks nobody but this port
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; frame-ancestors 'none'"
)
# a client that takes it with any weight but 0
GZIP = re.compile(r"(?:^|,)\s*gzip\s*(?:$|,|;(?!\s*q=0(?:\.0*)?\s*(?:$|,)))", re.I).search


OWN: web.AppKey[list[web.AbstractRouteDef]] = web.AppKey("admin_routes", list)
SERVED = web.AppKey("served", web.Application)
RESOURCES: web.AppKey[set[web.AbstractResource | None]] = web.AppKey("resources", set)


def add_admin_routes(app: web.Application, routes: Iterable[web.AbstractRouteDef]) -> None:
    """Add routes of one's own to the admin port. In their handlers, `request.app` is `app`.

    They are not counted, not in the access log, and have none of the middlewares of `app`.
    """
    app.setdefault(OWN, []).extend(routes)


class Pool(Protocol):
    """What the probes ask of the process model."""

    @property
    def trouble(self) -> str: ...  # why it is not ready; empty when it is


class Runner(bounds.Runner):
    """Serves the admin application without the ways in by which libraries trace requests.

    They hook into every Application; but nobody looks for a trace of a probe or a scrape.
    """

    def __init__(self, app: web.Application, **options: Any) -> None:
        super().__init__(app, bounds.ADMIN, **options)

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()

        async def handle(request: BaseRequest) -> web.StreamResponse:
            assert isinstance(request, web.Request)
            if request._version not in bounds.VERSIONS:
                return await bounds.refuse_version(request)
            request._match_info = match = await self.app.router.resolve(request)
            if match.route.resource in self.app.get(RESOURCES, ()):
                match.add_app(self.app[SERVED])
            return await match.handler(request)

        server.request_handler = handle
        return server


def create_admin(
    pool: Pool, settings: Settings, served: web.Application | None = None
) -> web.Application:
    """Build the admin application of a worker.

    Any worker answers for all of them: a scrape sums over the processes, and readiness is that of
    the pool. A worker that is recycled does not make the pod unready.

    Args:
        served: the Application beside it, which may have routes for here.

    Raises:
        ValueError: when one of these is taken.
    """

    async def alive(request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def ready(request: web.Request) -> web.Response:
        trouble = pool.trouble
        return web.Response(status=503 if trouble else 200, text=f"{trouble or 'ok'}\n")

    async def page(request: web.Request) -> web.Response:
        headers = {"Content-Security-Policy": POLICY}
        return web.Response(text=PAGE, content_type="text/html", headers=headers)

    async def metrics(request: web.Request) -> web.Response:
        accept, encodings = (request.headers.get(h, "") for h in ("Accept", "Accept-Encoding"))
        names = frozenset(request.query.getall("name[]", ()))
        packed = GZIP(encodings) is not None

        def show() -> tuple[bytes, str]:
            body, content_type = scrape(accept, names)
            return gzip.compress(body, 1) if packed else body, content_type

        body, content_type = await asyncio.to_thread(show)
        response = web.Response(body=body, headers={"Content-Type": content_type})
        response.headers["Vary"] = "Accept, Accept-Encoding"
        if packed:
            response.headers["Content-Encoding"] = "gzip"
        return response

    app = web.Application()
    app.add_routes(
        [
            web.get("/livez", alive),
            web.get("/readyz", ready),
            web.get("/startupz", alive),
            web.get("/metrics", metrics),
        ]
    )
    if settings.admin_page:
        app.router.add_get("/", page)
    if served is not None:
        ours = {resource.canonical for resource in app.router.resources()}
        own = served.get(OWN, [])
        for route in own:
            if isinstance(route, web.RouteDef) and route.path in ours:
                raise ValueError(f"{route.path} is taken on the admin port; give another path")
        app[SERVED], app[RESOURCES] = served, {route.resource for route in app.add_routes(own)}
    return app
