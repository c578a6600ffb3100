"""What a task is: a plain function whose parameters and result are typed, and fit in JSON."""

import inspect
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

F = TypeVar("F", bound=Callable[..., object])
Check = Callable[[object], bool]

log = logging.getLogger(__name__)

_SCALARS: dict[Any, Any] = {NoneType: NoneType, bool: bool, int: int, float: (int, float), str: str}


def _check(hint: Any) -> Check:
    """A test for values of this type, nested ones included."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return lambda value: True
    if hint in _SCALARS:
        kind = _SCALARS[hint]  # Python counts True as an int, JSON does not
        return lambda value: isinstance(value, kind) and (isinstance(value, bool) <= (kind is bool))
    if origin in (Union, UnionType):
        options = [_check(arg) for arg in args]
        return lambda value: any(option(value) for option in options)
    if origin is list:
        item = _check(args[0])
        return lambda value: isinstance(value, list) and all(map(item, value))
    if origin is dict and args[0] is str:
        key, item = map(_check, args)
        return lambda value: (
            isinstance(value, dict) and all(map(key, value)) and all(map(item, value.values()))
        )
    raise TypeError(
        f"{inspect.formatannotation(hint)} does not fit in JSON; give None, bool, int, float, str, "
        "list[...], dict[str, ...], a union of these, or Any"
    )


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
    """A registered function: checks what goes in and what comes out."""

    name: str
    function: Callable[..., object]
    signature: inspect.Signature
    checks: dict[str, Check]

    def arguments(self, /, *args: object, **kwargs: object) -> dict[str, object]:
        """The arguments by name.

        Raises:
            TypeError: when they do not fit the signature.
        """
        try:
            arguments = self.signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(f"{self.name}: {error}") from None
        for name, value in arguments.items():
            if not self.checks[name](value):
                expected = self.signature.parameters[name]
                raise TypeError(f"{self.name}: {value!r:.100} does not fit {expected}")
        return arguments

    def run(self, arguments: dict[str, object]) -> object:
        """Call the function.

        Raises:
            TypeError: when the result is not what the function promises.
        """
        result = self.function(**arguments)
        if not self.checks["return"](result):
            raise TypeError(f"{self.name} returned {result!r:.100}, which its signature denies")
        return result

    def answer(self, arguments: dict[str, object]) -> tuple[int, str]:
        """Call the function, and say as HTTP does what became of it: a status, and some JSON."""
        try:
            return 200, json.dumps({"result": self.run(arguments)}, allow_nan=False)
        except RefusedError as refusal:
            return 422, json.dumps({"status": refusal.status, "text": refusal.text})
        except Exception as error:
            log.exception("%s failed", self.name)
            return 500, json.dumps({"type": type(error).__qualname__, "message": str(error)})


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
        signature, hints = inspect.signature(function), get_type_hints(function)
        for parameter in signature.parameters.values():
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                raise TypeError(f"{parameter} cannot be passed by name")
        if untyped := {*signature.parameters, "return"} - hints.keys():
            raise TypeError(f"no type is given for {', '.join(sorted(untyped))}")
        checks = {what: _check(hint) for what, hint in hints.items()}
    except TypeError as error:
        raise TypeError(f"task {function.__module__}.{function.__qualname__}: {error}") from None
    tasks[name] = Task(name, function, signature, checks)
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
