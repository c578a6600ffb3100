"""An Application that ends responses in every way that aiohttp knows, for test_statuses.py."""

import asyncio
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

routes = web.RouteTableDef()
REUSED = web.AppKey("reused", web.Response)
FILES = web.AppKey("files", Path)


class Panic(BaseException):
    """As extension modules raise it."""


@routes.get("/ok")
async def ok(request: web.Request) -> web.Response:
    return web.Response(text="ok")


@routes.view("/view")
class View(web.View):
    async def get(self) -> web.Response:
        return web.json_response({"path": self.request.path})


@routes.get(r"/status/{status:\d+}")
async def status(request: web.Request) -> web.Response:
    number = int(request.match_info["status"])
    return web.Response(status=number, text=None if number in (204, 304) else "text")


@routes.get("/reason")
async def reason(request: web.Request) -> web.Response:
    return web.Response(status=418, reason="A Pot", headers={"X-More": "yes"})


@routes.get("/cookies")
async def cookies(request: web.Request) -> web.Response:
    response = web.Response()
    response.set_cookie("a", "1")
    response.set_cookie("b", "2", httponly=True)
    return response


@routes.get(r"/raise/{name}")
async def throw(request: web.Request) -> web.Response:
    error = getattr(web, request.match_info["name"])
    arguments = {
        "HTTPFound": ("/ok",),
        "HTTPMethodNotAllowed": ("GET", ["POST"]),
        "HTTPRequestEntityTooLarge": (1, 2),
    }
    raise error(*arguments.get(request.match_info["name"], ()))


@routes.get("/raise-json")
async def throw_json(request: web.Request) -> web.Response:
    raise web.HTTPConflict(text='{"error": 1}', content_type="application/json")


@routes.get("/raise-text")
async def throw_text(request: web.Request) -> web.Response:
    raise web.HTTPBadRequest(text="what was wrong", headers={"X-More": "yes"})


@routes.get("/raise-undecodable")
async def throw_undecodable(request: web.Request) -> web.Response:
    raise web.HTTPBadRequest(body=b"\xff\xfe", content_type="text/plain")


@routes.get("/raise-unknown-charset")
async def throw_unknown_charset(request: web.Request) -> web.Response:
    raise web.HTTPBadRequest(body=b"x", headers={"Content-Type": "text/plain; charset=nowhere"})


@routes.get("/raise-generator")
async def throw_generator(request: web.Request) -> web.Response:
    raise web.HTTPBadRequest(body=parts(2, fails=False), content_type="text/plain")


@routes.get("/raise-with-length")
async def throw_with_length(request: web.Request) -> web.Response:
    raise web.HTTPBadRequest(text="12345", headers={"Content-Length": "5"})


@routes.get("/return-exception")
async def return_exception(request: web.Request) -> web.StreamResponse:
    return web.HTTPGone()


@routes.get("/none")
async def none(request: web.Request) -> web.Response:
    return None  # type: ignore[return-value]


@routes.get("/text")
async def text(request: web.Request) -> web.Response:
    return "text"  # type: ignore[return-value]


@routes.get("/error")
async def error(request: web.Request) -> web.Response:
    raise ZeroDivisionError("on purpose")


@routes.get("/timeout")
async def timeout(request: web.Request) -> web.Response:
    raise TimeoutError


@routes.get("/cancelled")
async def cancelled(request: web.Request) -> web.Response:
    raise asyncio.CancelledError


@routes.get("/panic")
async def panic(request: web.Request) -> web.Response:
    raise Panic


@routes.get("/bad-header")
async def bad_header(request: web.Request) -> web.Response:
    return web.Response(text="x", headers={"X-Bad": "a\nb"})


@routes.get("/bad-header-prepared")
async def bad_header_prepared(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"X-Bad": "a\nb"})
    await response.prepare(request)
    return response


@routes.get("/signal-raises")
async def signal_raises(request: web.Request) -> web.Response:
    return web.Response(text="x")


async def parts(number: int, *, fails: bool) -> AsyncIterator[bytes]:
    for _ in range(number):
        yield b"part"
        await asyncio.sleep(0.001)
    if fails:
        raise ZeroDivisionError("in a body")


@routes.get(r"/body/{number:\d+}")
async def body(request: web.Request) -> web.Response:
    return web.Response(body=parts(int(request.match_info["number"]), fails=False))


@routes.get(r"/body-fails/{number:\d+}")
async def body_fails(request: web.Request) -> web.Response:
    return web.Response(body=parts(int(request.match_info["number"]), fails=True))


async def streamed(
    request: web.Request, response: web.StreamResponse, number: int = 3
) -> web.StreamResponse:
    await response.prepare(request)
    for _ in range(number):
        await response.write(b"x" * 100)
        await asyncio.sleep(0.001)
    return response


@routes.get("/stream")
async def stream(request: web.Request) -> web.StreamResponse:
    response = await streamed(request, web.StreamResponse(status=202))
    await response.write_eof(b"end")
    return response


@routes.get("/stream-chunked")
async def stream_chunked(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    response.enable_chunked_encoding()
    return await streamed(request, response)


@routes.get("/stream-length")
async def stream_length(request: web.Request) -> web.StreamResponse:
    return await streamed(request, web.StreamResponse(headers={"Content-Length": "300"}))


@routes.get("/stream-short")
async def stream_short(request: web.Request) -> web.StreamResponse:
    return await streamed(request, web.StreamResponse(headers={"Content-Length": "600"}))


@routes.get("/stream-compressed")
async def stream_compressed(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    response.enable_compression()
    return await streamed(request, response)


@routes.get("/stream-fails")
async def stream_fails(request: web.Request) -> web.StreamResponse:
    await streamed(request, web.StreamResponse())
    raise ZeroDivisionError("in the middle")


@routes.get("/stream-panics")
async def stream_panics(request: web.Request) -> web.StreamResponse:
    await streamed(request, web.StreamResponse())
    raise Panic


@routes.get("/stream-then-raise")
async def stream_then_raise(request: web.Request) -> web.StreamResponse:
    await streamed(request, web.StreamResponse())
    raise web.HTTPNotFound


@routes.get("/other-task")
async def other_task(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(status=203)
    await asyncio.create_task(streamed(request, response))
    return response


@routes.get("/clone")
async def clone(request: web.Request) -> web.StreamResponse:
    return await streamed(request.clone(), web.StreamResponse(status=203))


@routes.get("/reused")
async def reused(request: web.Request) -> web.Response:
    return request.app[REUSED]


@routes.get("/prepared")
async def prepared(request: web.Request) -> web.Response:
    response = web.Response(text="prepared")
    await response.prepare(request)
    await response.write_eof()
    return response


@routes.get("/compressed")
async def compressed(request: web.Request) -> web.Response:
    response = web.Response(text="text " * 1000)
    response.enable_compression()
    return response


@routes.get("/big")
async def big(request: web.Request) -> web.Response:
    return web.Response(body=b"x" * 300_000)


@routes.post("/echo")
async def echo(request: web.Request) -> web.Response:
    return web.Response(body=await request.read())


@routes.post("/form")
async def form(request: web.Request) -> web.Response:
    return web.json_response({k: str(v) for k, v in (await request.post()).items()})


@routes.post("/json")
async def from_json(request: web.Request) -> web.Response:
    return web.json_response(await request.json())


@routes.post("/unread")
async def unread(request: web.Request) -> web.Response:
    return web.Response(text="not read")


async def refuse(request: web.Request) -> web.StreamResponse:
    return web.Response(status=403, text="not expected")


async def continue_anyway(request: web.Request) -> None:
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0


@routes.get("/file/{name}")
async def file(request: web.Request) -> web.FileResponse:
    return web.FileResponse(request.app[FILES] / request.match_info["name"])


@routes.get("/file-compressed")
async def file_compressed(request: web.Request) -> web.FileResponse:
    response = web.FileResponse(request.app[FILES] / "text")
    response.enable_compression()
    return response


@routes.get("/socket")
async def socket(request: web.Request) -> web.WebSocketResponse:
    response = web.WebSocketResponse()
    await response.prepare(request)
    async for message in response:
        if message.data == "fail":
            raise ZeroDivisionError("in a websocket")
        await response.send_str(message.data)
    return response


@web.middleware
async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    match request.query.get("middleware"):
        case "raises":
            raise web.HTTPUnauthorized
        case "fails":
            raise ZeroDivisionError("in a middleware")
        case "answers":
            return web.Response(status=203, text="from the middleware")
        case "saves":
            try:
                return await handler(request)
            except web.HTTPException as error:
                return web.Response(text=f"was {error.status}")
    return await handler(request)


async def on_prepare(request: web.Request, response: web.StreamResponse) -> None:
    response.headers["X-Signal"] = "sent"
    if request.path == "/signal-raises":
        raise ZeroDivisionError("in a signal")


def make_files(folder: Path) -> None:
    (folder / "text").write_text("0123456789" * 100)
    (folder / "empty").touch()
    (folder / "large").write_bytes(b"x" * 2_000_000)
    (folder / "page.html").write_text("<p>page</p>")
    (folder / "page.html.gz").write_bytes(gzip.compress(b"<p>page</p>", mtime=0))
    (folder / "folder").mkdir()


def make(files: Path) -> web.Application:
    sub = web.Application(middlewares=[middleware])
    sub.router.add_get("/ok", ok)
    sub.router.add_get("/error", error)
    app = web.Application(middlewares=[middleware], client_max_size=1000)
    app[REUSED] = web.Response(text="once")
    app[FILES] = files
    app.add_routes(routes)
    app.router.add_post("/refused", echo, expect_handler=refuse)
    app.router.add_post("/continued", echo, expect_handler=continue_anyway)
    app.router.add_static("/static", files)
    app.on_response_prepare.append(on_prepare)
    app.add_subapp("/sub", sub)
    return app
