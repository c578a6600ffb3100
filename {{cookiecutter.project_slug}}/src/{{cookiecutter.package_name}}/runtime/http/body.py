"""The body of a request: read only when a handler reads it, and never more than is allowed.

aiohttp's connection puts what arrives into a StreamReader. Handlers get a Body in its place, which
takes from it block by block: so each way of reading, `read()`, `post()`, `multipart()` and
`content`, has the same bounds on size, time and what a compressed body may become. What no handler
reads is never decompressed.

What is wrong with a body is its client's mistake. The exceptions are those of aiohttp and json, so
that handlers may catch them; where none does, the answer is the 4xx that `mistake()` tells.
"""

import asyncio
import codecs
import json
import re
import sys
import zlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, Protocol, TypeVar

from aiohttp import BodyPartReader, MultipartReader, hdrs, web
from aiohttp.helpers import DEFAULT_CHUNK_SIZE, reify
from aiohttp.http_exceptions import LineTooLong
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestPayloadError
from multidict import CIMultiDictProxy, MultiDictProxy
from yarl import URL

BLOCK = 2**16  # bytes that are decompressed at a time
LEAST_RATE = 500  # bytes a second that a body comes with, after its first BODY_TIMEOUT
# what a chunked body may carry besides its data, which is sizes of chunks, extensions, trailers
# (some of it may be data of the last block that came, which is not parsed yet)
OVERHEAD = 2**16 + 2**18  # bytes, and an eighth of the data: chunks of 48 bytes may go on for ever
MEMBERS = 100  # that a compressed body may consist of, and one more for each 4 KiB

F = TypeVar("F", bound=Callable[..., Any])


def max_body(size: int) -> Callable[[F], F]:
    """Mark a handler or a View that takes bodies of up to `size` bytes, whatever MAX_BODY is."""

    def mark(handler: F) -> F:
        handler.max_body = size  # type: ignore[attr-defined]
        return handler

    return mark


def blame(error: Exception, detail: str, status: int = 400) -> None:
    """Note on an exception that it is a mistake of the client's."""
    error.mistake = status, detail  # type: ignore[attr-defined]


def mistake(error: BaseException | None) -> tuple[int, str] | None:
    """Status and detail of an exception that a client's mistake has made."""
    return getattr(error, "mistake", None)


@contextmanager
def blaming(detail: str) -> Iterator[None]:
    """Whatever is raised inside is the client's mistake."""
    try:
        yield
    except (web.HTTPException, OSError):
        raise
    except Exception as error:
        if mistake(error) is None:
            blame(error, detail)
        raise


# by name, so that no client has a module imported; all of them are loaded by now
_CHARSETS = {
    alias: codecs.lookup(name).name
    for name, aliases in {
        "utf-8": "utf-8 utf8",
        "ascii": "us-ascii ascii",
        "latin-1": "iso-8859-1 latin1 latin-1",
        "cp1252": "windows-1252 cp1252",
        "iso8859-15": "iso-8859-15",
        "utf-16": "utf-16",
    }.items()
    for alias in aliases.split()
}


def charset(name: str) -> str:
    """The codec of a charset that a client names.

    Raises:
        web.HTTPUnsupportedMediaType: if it is none of those that we know.
    """
    try:
        return _CHARSETS[name.strip().lower()]
    except KeyError:
        raise web.HTTPUnsupportedMediaType(text="unknown charset; send utf-8") from None


class _Decompressor(Protocol):
    """What zlib's, zstd's and brotli's have in common, once they are wrapped."""

    def decompress(self, data: bytes) -> bytes: ...  # at most BLOCK, b"" for more of it
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...


class _Zlib:
    def __init__(self, wbits: int) -> None:
        self._zlib = zlib.decompressobj(wbits)

    def decompress(self, data: bytes) -> bytes:
        return self._zlib.decompress(self._zlib.unconsumed_tail + data, BLOCK)

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data


class _Brotli:
    def __init__(self, brotli: Any) -> None:
        self._brotli = brotli.Decompressor()

    def decompress(self, data: bytes) -> bytes:
        block: bytes = self._brotli.process(data, output_buffer_limit=BLOCK)
        return block

    @property
    def eof(self) -> bool:
        return bool(self._brotli.is_finished())

    unused_data = b""


class _Zstd:
    def __init__(self, zstd: Any) -> None:
        # RFC 9659: a window of at most 8 MB, as it is allocated before anything is decompressed
        options = {zstd.DecompressionParameter.window_log_max: 23}
        self._zstd = zstd.ZstdDecompressor(options=options)

    def decompress(self, data: bytes) -> bytes:
        block: bytes = self._zstd.decompress(data, BLOCK)
        return block

    @property
    def eof(self) -> bool:
        return bool(self._zstd.eof)

    @property
    def unused_data(self) -> bytes:
        unused: bytes = self._zstd.unused_data
        return unused


def _decompressor(coding: str, start: bytes) -> _Decompressor:
    """One for a body that starts so.

    Raises:
        ImportError: if nothing here knows this coding.
    """
    match coding:
        case "gzip":
            return _Zlib(16 + zlib.MAX_WBITS)
        case "deflate":  # some clients leave out the header of zlib
            return _Zlib(zlib.MAX_WBITS if start[0] & 15 == 8 else -zlib.MAX_WBITS)
        case "br":
            import brotli  # type: ignore[import-not-found, unused-ignore]

            return _Brotli(brotli)
        case _:
            if sys.version_info >= (3, 14):
                from compression import zstd
            else:
                from backports import zstd  # type: ignore[import-not-found, unused-ignore]
            return _Zstd(zstd)


class _NoFlowControl:
    """Stands for the connection: what comes is taken only when it is asked for."""

    connected = True

    def pause_reading(self) -> None: ...
    def resume_reading(self, resume_parser: bool = True) -> None: ...


_NO_FLOW_CONTROL: Any = _NoFlowControl()


class Body(StreamReader):
    """What handlers read in place of the `source`, which the connection fills.

    StreamReader calls `_wait()`, which is private, wherever it has nothing left to give.
    """

    __slots__ = (
        "_began",
        "_chunked",
        "_coding",
        "_connection",
        "_data",
        "_decoder",
        "_failure",
        "_members",
        "_overhead",
        "limit",
        "source",
        "timeout",
    )

    def __init__(
        self, source: StreamReader, message: Any, connection: Any, limit: int, timeout: float
    ) -> None:
        super().__init__(_NO_FLOW_CONTROL, DEFAULT_CHUNK_SIZE, loop=connection._loop)
        self.source = source
        self.limit = limit  # of bytes; 0: none
        self.timeout = timeout
        self._connection = connection
        self._began: float | None = None  # to wait for it
        self._chunked: bool = message.chunked
        self._overhead = -source.total_bytes
        self._failure: Exception | None = None
        self._coding: str | None = message.compression
        self._decoder: _Decompressor | None = None
        self._members = 0
        self._data = b""  # not decompressed yet
        if self._coding:
            self.total_compressed_bytes = 0

    async def _wait(self, func_name: str) -> None:
        block = await (self._decompressed() if self._coding else self._next())
        size = self.total_bytes + len(block)
        if 0 < self.limit < size:
            raise too_large(self.limit)
        if block:
            self.feed_data(block)
        else:
            self.feed_eof()

    async def _next(self) -> bytes:
        """What the connection has by now; empty at the end."""
        source = self.source
        data = source.read_nowait()
        if self._failure:
            raise self._failure
        if data or source.at_eof():
            return data
        now = self._loop.time()
        if self._began is None:
            self._began = now
        latest = self._began + self.timeout + source.total_bytes / LEAST_RATE
        try:
            async with asyncio.timeout_at(min(now + self.timeout, latest)):
                data = await source.readany()
        except TimeoutError:
            if self._connection.transport is None:
                raise
            self.fail(web.HTTPRequestTimeout(text="the body came too slowly"), "body_timeout")
        except RequestPayloadError as error:
            blame(error, "the body cannot be read to its end")
            raise
        if failure := self._failure or self._exception:
            raise failure
        return data

    def fail(self, failure: web.HTTPException, reason: str) -> None:
        """End the connection with this answer to whoever reads."""
        failure.force_close()
        self._failure = failure
        self._connection.closing(reason)
        self._connection.close()
        self.source.feed_eof()  # nobody waits for the rest

    def broken(self, why: str) -> None:
        """The connection cannot make sense of it any further."""
        why = why.partition(":\n")[0]
        self.fail(web.HTTPBadRequest(text=f"the body cannot be read: {why}"), "framing")

    def arrived(self, size: int) -> None:
        """The connection has received so many bytes more."""
        if not self._chunked:
            return
        self._overhead += size
        data = self.source.total_bytes
        if self._overhead - data > OVERHEAD + data // 8:
            self.fail(
                web.HTTPBadRequest(text="the body has more chunk framing than data"), "framing"
            )

    async def _decompressed(self) -> bytes:
        """A block of at most BLOCK bytes; empty at the end."""
        while True:
            block = b""
            if self._decoder is not None:
                block = self._decompress(self._decoder)
            if block:
                return block
            if self._data:
                continue
            self._data = await self._next()
            self.total_compressed_bytes = self.source.total_bytes
            if not self._data:
                if self._decoder is not None:
                    self._give_up("ends too early")
                return b""
            if self._decoder is None:
                self._start()

    def _start(self) -> None:
        assert self._coding is not None
        self._members += 1
        if self._members > MEMBERS + self.total_bytes // 4096:
            self._give_up(f"has more than {self._members - 1} members")
        try:
            self._decoder = _decompressor(self._coding, self._data)
        except ImportError:
            raise web.HTTPUnsupportedMediaType(
                text=f"Content-Encoding: {self._coding} is not understood here",
                headers={hdrs.ACCEPT_ENCODING: "gzip, deflate"},
            ) from None

    def _decompress(self, decoder: _Decompressor) -> bytes:
        data, self._data = self._data, b""
        try:
            block = decoder.decompress(data)
        except Exception:  # each library has its own
            self._give_up("is damaged")
        if decoder.eof:
            self._data, self._decoder = decoder.unused_data, None
            if self._data:
                self._start()
        return block

    def _give_up(self, why: str) -> NoReturn:
        text = f"the body is not what Content-Encoding: {self._coding} says: it {why}"
        raise web.HTTPBadRequest(text=text)

    def set_exception(self, exc: BaseException, *cause: BaseException) -> None:
        """The connection is lost, or the request over."""
        super().set_exception(exc, *cause)
        self.source.set_exception(exc, *cause)

    async def readuntil(self, separator: bytes = b"\n", *, max_size: int | None = None) -> bytes:
        try:
            return await super().readuntil(separator, max_size=max_size)
        except LineTooLong as error:
            blame(error, "a line of the body is too long")
            raise

    async def readexactly(self, n: int) -> bytes:
        try:
            return await super().readexactly(n)
        except asyncio.IncompleteReadError as error:
            blame(error, "the body is too short")
            raise

    async def wait_eof(self) -> None:
        await self.source.wait_eof()


def too_large(limit: int) -> web.HTTPRequestEntityTooLarge:
    return web.HTTPRequestEntityTooLarge(limit, text=f"the body is over its size of {limit} bytes")


_CHARSET = re.compile(r"\*\d*\*?\s*=\s*\"?([^'\";]*)'")


class _Part(BodyPartReader):
    """A part of a multipart body; what is wrong with it is the client's mistake."""

    def get_charset(self, default: str) -> str:
        return charset(super().get_charset(default))


class _Multipart(MultipartReader):
    """A multipart body; what is wrong with it is the client's mistake."""

    part_reader_cls = _Part
    most_lines = 4000  # around the parts: boundaries, and what comes before the first
    _lines = 0

    async def _readline(self) -> bytes:
        self._lines += 1
        if self._lines > self.most_lines:
            raise web.HTTPRequestEntityTooLarge(0, text="the multipart body has too many parts")
        return await super()._readline()

    async def _read_headers(self) -> CIMultiDictProxy[str]:
        headers = await super()._read_headers()
        # whatever decodes them later imports a module of that name
        for name in _CHARSET.findall(headers.get(hdrs.CONTENT_DISPOSITION, "")):
            charset(name or "utf-8")
        return headers


def _of_the_client(method: F) -> F:
    async def blamed(*arguments: Any, **options: Any) -> Any:
        with blaming("the multipart body is malformed"):
            return await method(*arguments, **options)

    return blamed  # type: ignore[return-value]


for _class, _methods in (
    (_Multipart, "next release fetch_next_part"),
    (_Part, "read read_chunk readline release text json form"),
):
    for _name in _methods.split():
        setattr(_class, _name, _of_the_client(getattr(_class, _name)))


# RFC 3986
HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]+)(:[0-9]{0,5})?").fullmatch


class Request(web.Request):
    """A request whose mistakes are answered with what is wrong."""

    @property
    def charset(self) -> str | None:
        name = super().charset
        return None if name is None else charset(name)

    @reify
    def url(self) -> URL:
        with blaming("the Host of the request is invalid"):
            if not HOST(self.host):
                raise ValueError(f"invalid Host: {self.host!r}")
            return URL.build(scheme=self.scheme, authority=self.host).join(self._rel_url)

    @reify
    def http_range(self) -> slice:
        try:
            return super().http_range
        except ValueError as error:
            blame(error, "the Range of the request is invalid", 416)
            raise

    async def text(self) -> str:
        data = await self.read()
        encoding = self.charset or "utf-8"
        with blaming(f"the body is not {encoding}"):
            return data.decode(encoding)

    async def json(self, *, loads: Callable[[str], Any] = json.loads) -> Any:
        text = await self.text()
        try:
            return loads(text)
        except RecursionError:
            error = json.JSONDecodeError("nested too deeply", text, 0)
            blame(error, "the body is JSON that is nested too deeply")
            raise error from None
        except ValueError as error:
            why = f": {error}" if isinstance(error, json.JSONDecodeError) else ""
            blame(error, f"the body is no JSON that can be read{why}")
            raise

    async def multipart(self) -> MultipartReader:
        if not self.content_type.startswith("multipart/"):
            raise web.HTTPUnsupportedMediaType(text="the body is not multipart; send multipart/…")
        with blaming("the Content-Type has no valid boundary"):
            return _Multipart(
                self._headers,
                self._payload,
                client_max_size=self._client_max_size or sys.maxsize,
                max_field_size=self._protocol.max_field_size,
                max_headers=self._protocol.max_headers,
                max_size_error_cls=web.HTTPRequestEntityTooLarge,
            )

    async def post(self) -> MultiDictProxy[Any]:
        with blaming("the form is malformed"):
            return await super().post()


def admitting(
    handler: Callable[[Any], Awaitable[Any]], resolve: Callable[[Any], Awaitable[Any]]
) -> Callable[[Any], Awaitable[Any]]:
    """The handler, for a request that has a body."""

    async def handle(request: Any) -> Any:
        await _admit(request, resolve)
        return await handler(request)

    return handle


async def _admit(request: Any, resolve: Callable[[Any], Awaitable[Any]]) -> None:
    """Give a request with a body the limit of its route.

    Raises:
        web.HTTPRequestEntityTooLarge: if its Content-Length is over it; nothing is read then, and
            no `100 Continue` sent.
    """
    body: Any = request._payload
    size = request.content_length
    if not body.limit or (size is not None and size <= body.limit):
        return
    match = await resolve(request)
    limit = getattr(match.handler, "max_body", body.limit)
    request._client_max_size = body.limit = limit
    if size is not None and 0 < limit < size:
        request._match_info = match  # under which it is counted
        raise too_large(limit)
