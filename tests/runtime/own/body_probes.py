"""Endpoints that read their bodies in every way there is, and say how much came."""

import logging
import zlib

from aiohttp import BodyPartReader, web

from .runtime import max_body

routes = web.RouteTableDef()


def size(number: int) -> web.Response:
    return web.json_response({"size": number})


@routes.post("/body/read")
async def read(request: web.Request) -> web.Response:
    number = len(await request.read())
    logging.getLogger("probe").info("read %d", number)
    return size(number)


@routes.post("/body/large")
@max_body(2**23)
async def large(request: web.Request) -> web.Response:
    data = await request.read()
    return web.json_response({"size": len(data), "crc": zlib.crc32(data)})


@routes.view("/body/view")
@max_body(2**23)
class Large(web.View):
    async def post(self) -> web.Response:
        return size(len(await self.request.read()))


@routes.post("/body/text")
async def text(request: web.Request) -> web.Response:
    return size(len(await request.text()))


@routes.post("/body/json")
async def json(request: web.Request) -> web.Response:
    return web.json_response({"json": await request.json()})


@routes.post("/body/post")
async def post(request: web.Request) -> web.Response:
    form = await request.post()
    return web.json_response({name: str(value)[:80] for name, value in form.items()})


@routes.post("/body/multipart")
async def multipart(request: web.Request) -> web.Response:
    number = 0
    async for part in await request.multipart():
        assert isinstance(part, BodyPartReader)
        number += len(await part.read(decode=True))
    return size(number)


@routes.post("/body/chunked")
async def chunked(request: web.Request) -> web.Response:
    number = 0
    async for chunk in request.content.iter_chunked(1000):
        number += len(chunk)
    return size(number)


@routes.post("/body/any")
async def in_pieces(request: web.Request) -> web.Response:
    number = 0
    async for chunk in request.content.iter_any():
        number += len(chunk)
    return size(number)


@routes.post("/body/chunks")
async def chunks(request: web.Request) -> web.Response:
    number = 0
    async for chunk, _ in request.content.iter_chunks():
        number += len(chunk)
    return size(number)


@routes.post("/body/lines")
async def lines(request: web.Request) -> web.Response:
    number = 0
    async for line in request.content:
        number += len(line)
    return size(number)


@routes.post("/body/exactly")
async def exactly(request: web.Request) -> web.Response:
    return size(len(await request.content.readexactly(10)))


@routes.route("*", "/body/ignored")
async def ignored(request: web.Request) -> web.Response:
    return web.json_response({})


@routes.get("/body/url")
async def url(request: web.Request) -> web.Response:
    return web.json_response({"url": str(request.url)})


@routes.get("/body/range")
async def http_range(request: web.Request) -> web.Response:
    return web.json_response({"range": str(request.http_range)})


@routes.get("/body/answer/{size}")
async def answer(request: web.Request) -> web.Response:
    return web.Response(body=bytes(int(request.match_info["size"])))


@routes.get("/body/client")
async def client(request: web.Request) -> web.Response:
    said = {"remote": request.remote, "scheme": request.scheme, "host": request.host}
    return web.json_response(said)
