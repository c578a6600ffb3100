"""Starlette on uvicorn: starlette_exporter, asgi-correlation-id, uvicorn's access log as JSON."""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from telemetry import LEVEL, greet, index, tuned


async def index_view(request: Request) -> JSONResponse:
    return JSONResponse(index())


async def greet_view(request: Request) -> JSONResponse:
    return JSONResponse(greet(request.path_params["name"]))


app = Starlette(routes=[Route("/", index_view), Route("/greet/{name}", greet_view)])
if LEVEL in ("metrics", "full"):
    from starlette_exporter import PrometheusMiddleware

    app.add_middleware(PrometheusMiddleware)
if LEVEL == "full":
    from asgi_correlation_id import CorrelationIdMiddleware

    app.add_middleware(CorrelationIdMiddleware)
if LEVEL == "tuned":
    app = tuned(app)
