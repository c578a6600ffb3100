"""FastAPI on uvicorn: prometheus-fastapi-instrumentator, asgi-correlation-id, a JSON log."""

from typing import Any

from fastapi import FastAPI
from telemetry import LEVEL, greet, index, tuned

app: Any = FastAPI()


@app.get("/")
async def index_view() -> dict[str, object]:
    return index()


@app.get("/greet/{name}")
async def greet_view(name: str) -> dict[str, object]:
    return greet(name)


if LEVEL in ("metrics", "full"):
    from prometheus_fastapi_instrumentator import Instrumentator

    Instrumentator().instrument(app)
if LEVEL == "full":
    from asgi_correlation_id import CorrelationIdMiddleware

    app.add_middleware(CorrelationIdMiddleware)
if LEVEL == "tuned":
    app = tuned(app)
