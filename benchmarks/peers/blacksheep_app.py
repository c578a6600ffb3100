"""BlackSheep on granian; it recommends nothing for metrics: prometheus_client by hand."""

from typing import Any

from blacksheep import Application, get, json
from telemetry import LEVEL, greet, index, recording, tuned

app: Any = Application()


@get("/")
async def index_view():  # type: ignore[no-untyped-def]
    return json(index())


@get("/greet/{name}")
async def greet_view(name: str):  # type: ignore[no-untyped-def]
    return json(greet(name))


if LEVEL in ("metrics", "full"):
    app = recording(app)
if LEVEL == "full":
    from asgi_correlation_id import CorrelationIdMiddleware

    app = CorrelationIdMiddleware(app)
if LEVEL == "tuned":
    app = tuned(app)
