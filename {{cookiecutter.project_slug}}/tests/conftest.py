"""What the tests share. runtime/testing.py gives them `client`, `start_client` and `tasks`."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp.test_utils import TestClient

Client = TestClient[Any, Any]
StartClient = Callable[..., Awaitable[Client]]


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Settings of the service in tests, whatever the shell has."""
    return {"GREETING": "Hello, {name}!"}
