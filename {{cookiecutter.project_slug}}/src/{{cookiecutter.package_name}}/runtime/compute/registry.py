"""What a task is: a plain function whose parameters and result are typed, and go between processes.

msgspec writes and reads them, as MessagePack between the service's own processes, as JSON for
others, and checks them against their types.
"""

import inspect
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, NoReturn, TypeVar, Union, get_type_hints
from uuid import UUID

import msgspec

F = TypeVar("F", bound=Callable[..., object])
M = TypeVar("M")

MSGPACK, JSON = "application/vnd.msgpack", "application/json"
# what is no text in Python, as it is in JSON
NATIVE = (bytes, bytearray, datetime, date, time, timedelta, UUID, Decimal)

log = logging.getLogger(__name__)


def plain(value: object) -> Any:
    """The same in what JSON has: bytes are base64, times ISO 8601, Structs objects.

    Raises:
        TypeError: when something in it has no form there.
        ValueError: when there is a NaN or an infinity in it.
    """
    made = msgspec.to_builtins(value, str_keys=True)
    json.dumps(made, allow_nan=False)
    return made


def write(message: object, media_type: str) -> tuple[bytes, str]:
    """`message`, and its media type: JSON where it is not for MessagePack.

    Raises:
        TypeError: when something in it has no form there.
        ValueError: when it is for JSON, which has no NaN and no infinity.
    """
    if media_type == MSGPACK:
        try:
            return msgspec.msgpack.encode(message), MSGPACK
        except OverflowError:
            pass  # an integer of more than 64 bits, which JSON has
    return json.dumps(plain(message)).encode(), JSON


def read(body: bytes | bytearray, media_type: str, kind: type[M]) -> M:
    """What was written.

    Raises:
        ValueError: when it is not, or does not fit `kind`.
    """
    decode = msgspec.msgpack.decode if media_type == MSGPACK else msgspec.json.decode
    try:
        return decode(body, type=kind)
    except RecursionError as error:
        raise ValueError(f"nested too deeply: {error}") from None


# of a task, as HTTP puts it: a status; the body and its media type
Answer = tuple[int, tuple[bytes, str]]


class Refusal(msgspec.Struct):
    """The answer of a task that raised RefusedError."""

    status: int
    text: str


class Failure(msgspec.Struct, omit_defaults=True):
    """Any other answer but a result; `type` is the name of the class that the task raised."""

    message: str
    type: str = ""


class RefusedError(Exception):
    """Raised by a task on purpose: an answer for the client, with a status from 400 to 599.

    The text of any other exception is for the log alone.
    """

    def __init__(self, status: int, text: str) -> None:
        """
        Raises:
            ValueError: when it is no status of an error.
        """
        if not 400 <= status <= 599:
            raise ValueError(f"RefusedError({status}): give a status from 400 to 599")
        super().__init__(text)
        self.status, self.text = status, text


@dataclass(frozen=True)
class Task:
    """A registered function; what goes in and what comes out is checked against its types."""

    name: str
    function: Callable[..., object]
    signature: inspect.Signature
    parameters: type[msgspec.Struct]
    result: type[Any]

    def arguments(self, /, *args: object, **kwargs: object) -> msgspec.Struct:
        """The arguments by name.

        Raises:
            TypeError: when they do not fit the signature.
        """
        try:
            bound = self.signature.bind(*args, **kwargs).arguments
            return msgspec.convert(bound, self.parameters, builtin_types=NATIVE)
        except (TypeError, msgspec.ValidationError) as error:
            raise TypeError(f"{self.name}: {error}") from None

    def revived(self, arguments: dict[str, object]) -> dict[str, Any]:
        """The arguments of which these were made by `plain`.

        Raises:
            TypeError: when they do not fit the signature.
        """
        try:
            return by_name(msgspec.convert(arguments, self.parameters))
        except msgspec.ValidationError as error:
            raise TypeError(f"{self.name}: {error}") from None

    def run(self, arguments: msgspec.Struct) -> object:
        """Call the function.

        Raises:
            TypeError: when the result is not what the function promises.
        """
        result = self.function(**by_name(arguments))
        try:
            return msgspec.convert({"result": result}, self.result, builtin_types=NATIVE)
        except msgspec.ValidationError as error:
            raise TypeError(f"{self.name} returned {result!r:.100}: {error}") from None

    def answer(self, arguments: msgspec.Struct, media_type: str) -> Answer:
        """Call the function, and say what became of it."""
        try:
            return 200, write(self.run(arguments), media_type)
        except RefusedError as refusal:
            return 422, write(Refusal(refusal.status, refusal.text), media_type)
        except Exception as error:
            log.exception("%s failed", self.name)
            text = str(error).encode(errors="backslashreplace").decode()
            return 500, write(Failure(text, type(error).__qualname__), media_type)


def by_name(arguments: msgspec.Struct) -> dict[str, Any]:
    """The arguments that were given."""
    given = msgspec.structs.asdict(arguments).items()
    return {name: value for name, value in given if value is not msgspec.UNSET}


def _refuse(kind: type) -> NoReturn:
    raise TypeError(
        f"{inspect.formatannotation(kind)} does not go between processes; give what JSON has, "
        "bytes, a dataclass, msgspec.Struct, TypedDict, NamedTuple, Enum, date or time, UUID, "
        "Decimal, tuple or set, or Any"
    )


def _struct(name: str, kinds: dict[str, Any], optional: frozenset[str]) -> type[msgspec.Struct]:
    """A type for messages with these fields.

    Raises:
        TypeError: when there is no message for one of them.
    """
    made = msgspec.defstruct(
        name,
        [
            (field, Union[kind, msgspec.UnsetType], msgspec.UNSET)  # noqa: UP007
            if field in optional
            else (field, kind)
            for field, kind in kinds.items()
        ],
        kw_only=True,
        forbid_unknown_fields=True,
    )
    msgspec.json.schema(made, schema_hook=_refuse)  # looks at all that is in it
    return made


tasks: dict[str, Task] = {}


def task(function: F) -> F:
    """Make `function` a task, known by its name. It stays a plain function to all who call it.

    Raises:
        TypeError: when it cannot be one.
    """
    name = function.__name__
    try:
        if name in tasks:
            raise TypeError(f"{tasks[name].function.__module__} has a task of that name already")
        if not inspect.isfunction(function) or inspect.iscoroutinefunction(function):
            raise TypeError("it is no plain `def`, and runs where there is no event loop")
        signature = inspect.signature(function)
        hints = get_type_hints(function, include_extras=True)
        for parameter in signature.parameters.values():
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                raise TypeError(f"{parameter} cannot be passed by name")
        if untyped := {*signature.parameters, "return"} - hints.keys():
            raise TypeError(f"no type is given for {', '.join(sorted(untyped))}")
        result = _struct(name, {"result": hints.pop("return")}, frozenset())
        optional = {p.name for p in signature.parameters.values() if p.default is not p.empty}
        parameters = _struct(name, hints, frozenset(optional))
    except TypeError as error:
        raise TypeError(f"task {function.__module__}.{function.__qualname__}: {error}") from None
    tasks[name] = Task(name, function, signature, parameters, result)
    return function


def find(function: Callable[..., object]) -> Task:
    """The task that `function` was made.

    Raises:
        TypeError: when it was made none.
    """
    found = tasks.get(function.__name__)
    if found is None or found.function is not function:
        raise TypeError(f"{function.__qualname__} is no task; mark it with @task")
    return found
