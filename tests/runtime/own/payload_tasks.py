"""Tasks that take and give more than JSON has, added to a copy of the package under test."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Annotated, Any

import msgspec

from .runtime import task


class Kind(Enum):
    PLAIN = "plain"
    MIRRORED = "mirrored"


@dataclass
class Picture:
    pixels: bytes
    width: int


class Framed(msgspec.Struct):
    picture: Picture
    kind: Kind
    taken: datetime


@task
def echo(data: bytes) -> bytes:
    return data


@task
def measure(data: memoryview) -> int:
    """Reads the bytes where they came, without a copy."""
    return len(data)


@task
def frame(picture: Picture, taken: datetime, kind: Kind = Kind.PLAIN) -> Framed:
    if kind is Kind.MIRRORED:
        picture = Picture(picture.pixels[::-1], picture.width)
    return Framed(picture, kind, taken + timedelta(days=1))


@task
def factorial(number: Annotated[int, msgspec.Meta(ge=0, le=1000)]) -> int:
    result = 1
    for factor in range(2, number + 1):
        result *= factor
    return result


@task
def same(value: Any) -> Any:
    return value


@task
def endless() -> float:
    return float("inf")
