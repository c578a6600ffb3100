"""The two pools: what they listen on, what their workers load, how long they have.

The libraries and the platform are imported here, before the fork, so that the workers share their
memory. The application is imported in the workers only: so SIGHUP loads new code, and code that
does not import takes no management process down.
"""

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from importlib import import_module
from typing import Any
from wsgiref.types import WSGIApplication

from aiohttp import web

from .. import preload, ready, schedule
from ..broadcast import hub
from ..compute import server as compute
from ..http import admin, bounds, edge, openapi, proxies
from ..metrics import catalogue, slots
from ..parts import Parts
from ..settings import Settings
from . import limits
from .arbiter import Pool
from .scoreboard import Scoreboard
from .task_worker import TaskWorker
from .worker import Served, WebWorker


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


Context = Callable[[web.Application], AsyncIterator[None]]


def web_pool(
    settings: Settings,
    parts: Parts,
    contexts: Callable[[Any], list[Context]],
    claim: schedule.Claim,
    pools: int = 1,
) -> Pool:
    """Workers that serve the public port and the admin port.

    Args:
        contexts: what every worker holds open around the user's Application, with these settings.
        claim: asks whether this pod takes a turn of scheduled work.
        pools: how many there are within the same memory limit.
    """
    import_module(settings.event_loop)
    held = contexts(settings)
    limited = bounds.Bounds.of(settings, limits.concurrency(settings, pools=pools).number)
    trusted = settings.trusted_proxies
    seen_through = proxies.Proxies(trusted, settings.proxy_headers) if trusted else None

    def load() -> Callable[[Scoreboard], Awaitable[Served]]:
        create_app = parts.load_create_app()

        async def build(scoreboard: Scoreboard) -> Served:
            application = await create_app()
            application[preload.PRELOADED] = preload.preloaded()
            if settings.api_docs:
                openapi.add_to(application)
            for place, context in enumerate(held):
                application.cleanup_ctx.insert(place, context)
            readiness = ready.Readiness(
                application,
                scoreboard,
                interval=settings.ready_interval,
                patience=settings.ready_timeout,
            )
            return Served(
                edge.Runner(application, limited, seen_through),
                admin.create_admin(readiness, settings, application),
                readiness,
                schedule.Schedule(application, claim),
                hub.sockets,
            )

        return build

    return Pool(
        name="web",
        options={
            "bind": [
                _address(settings.host, settings.port),
                _address(settings.admin_host, settings.admin_port),
            ],
            "worker_class": WebWorker,
            "backlog": settings.backlog,
            "max_requests": settings.max_requests,
            "max_requests_jitter": settings.max_requests // 5,
        },
        load=load,
        count=partial(limits.web_workers, pools=pools),
        timeout=settings.worker_timeout,
        budget=settings.lame_duck + settings.graceful_timeout,
        workers=catalogue.WORKERS,
        exits=catalogue.WORKER_EXITS,
    )


def compute_pool(settings: Settings, parts: Parts, pools: int = 1) -> Pool:
    """Sync workers: an idle one takes a connection, which is a task."""

    def load() -> Callable[[Callable[[], None]], WSGIApplication]:
        parts.load_tasks()
        catalogue.WORKER_INFO.labels(slots.label(), "compute").set(1)
        return partial(compute.application, settings.compute_timeout)

    url = settings.compute_url or ""
    # http://… names the Service in front of the pool, not what a process can listen on
    bind = url if url.startswith("unix:") else _address(settings.host, settings.port)
    return Pool(
        name="compute",
        options={
            "bind": bind,
            "worker_class": TaskWorker,
            "backlog": settings.compute_backlog,
            "max_requests": settings.compute_max_tasks,
            "max_requests_jitter": settings.compute_max_tasks // 5,
            "timeout": math.ceil(settings.compute_timeout) + 1,
            "on_starting": compute.on_starting,
            "post_fork": compute.post_fork,
        },
        load=load,
        count=partial(limits.compute_workers, pools=pools),
        # a task is stopped at its deadline from inside; this is for code that lets nothing in
        timeout=settings.compute_timeout + 1,
        budget=settings.graceful_timeout,
        workers=catalogue.COMPUTE_WORKERS,
        exits=catalogue.COMPUTE_WORKER_EXITS,
    )
