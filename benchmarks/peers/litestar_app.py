"""Litestar on granian: its own metrics, asgi-correlation-id, granian's access log."""

from typing import Any

from litestar import Litestar, get
from telemetry import LEVEL, greet, index, tuned


@get("/")
async def index_view() -> dict[str, object]:
    return index()


@get("/greet/{name:str}")
async def greet_view(name: str) -> dict[str, object]:
    return greet(name)


middleware = []
if LEVEL in ("metrics", "full"):
    from litestar.plugins.prometheus import PrometheusConfig

    middleware.append(PrometheusConfig(group_path=True).middleware)
app: Any = Litestar([index_view, greet_view], middleware=middleware)
if LEVEL == "full":
    from asgi_correlation_id import CorrelationIdMiddleware

    app = CorrelationIdMiddleware(app)
if LEVEL == "tuned":
    app = tuned(app)
