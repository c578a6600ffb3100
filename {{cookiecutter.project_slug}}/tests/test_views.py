"""The example endpoints: in this process, with what stands around them in production."""

import pytest
from conftest import Client, StartClient


async def test_index(client: Client) -> None:
    response = await client.get("/")
    assert response.status == 200
    assert (await response.json()).keys() == {"service", "version", "worker"}


async def test_greets_by_path_and_by_body(client: Client) -> None:
    assert await (await client.get("/greet/Zoë")).json() == {"greeting": "Hello, Zoë!"}
    response = await client.post("/greet", json={"name": "Ada"})
    assert await response.json() == {"greeting": "Hello, Ada!"}


async def test_greets_as_the_setting_says(start_client: StartClient) -> None:
    client = await start_client(GREETING="Ahoy, {name}!")
    assert await (await client.get("/greet/Ada")).json() == {"greeting": "Ahoy, Ada!"}


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        (b"{", 400, "the body is no JSON that can be read: Input data was truncated"),
        (b"[]", 422, "/body: Expected `object`, got `array`"),
        (b'{"name": ""}', 422, "/body/name: Expected `str` of length >= 1"),
    ],
)
async def test_says_what_is_wrong(client: Client, body: bytes, status: int, detail: str) -> None:
    response = await client.post("/greet", data=body)
    assert response.status == status
    assert response.content_type == "application/problem+json"
    problem = await response.json()
    assert problem["detail"] == detail
    assert problem["request_id"] == response.headers["X-Request-ID"]


async def test_counts_primes(client: Client) -> None:
    response = await client.get("/primes/100")
    assert await response.json() == {"limit": 100, "count": 25}


async def test_refuses_what_is_no_text(client: Client) -> None:
    for name in (r"\ud800", r"\u0000", r"a\udfffb"):  # halves of characters, and NUL
        response = await client.post("/greet", data=b'{"name": "%s"}' % name.encode())
        assert 400 <= response.status < 500
    assert (await client.get("/greet/%00")).status == 422
