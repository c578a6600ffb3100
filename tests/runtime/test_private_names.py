"""What is private of the libraries is listed, with what it stands for, and still there."""

import ast
import inspect
import pkgutil
import re
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from overlay import CODE, HAS_JOBS, PACKAGE
from private_names import PRIVATE

RUNTIME = CODE / PACKAGE / "runtime"
LISTED = {name for names in PRIVATE.values() for name in names}
PLACES = [place for place in PRIVATE if HAS_JOBS or not place.startswith("streaq")]


def has(owner: Any, name: str) -> bool:
    """Whether a class, or what its code makes of an instance, has this name."""
    if hasattr(owner, name) or not isinstance(owner, type):
        return hasattr(owner, name)
    for one in owner.__mro__:
        with suppress(OSError, TypeError):  # it is written in C, or made at run time
            if re.search(rf"\bself\.{name}\b[^=\n(]*=", inspect.getsource(one)):
                return True
    return False


@pytest.mark.parametrize("place", PLACES)
def test_the_library_has_it(place: str) -> None:
    module, _, name = place.partition(":")
    library = module.split(".")[0]
    owner: Any = import_module(module)
    owner = getattr(owner, name) if name else owner
    missing = [
        f"{library} {version(library)} has no {place}.{private}: it stood for {meaning}"
        for private, meaning in PRIVATE[place].items()
        if not has(owner, private)
    ]
    assert not missing, "\n".join(missing)


def accesses(tree: ast.AST) -> Iterator[str]:
    """The names behind a dot, and those that getattr gets."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=name):
                yield name
            case ast.Call(ast.Name("getattr"), [_, ast.Constant(str(name)), *_]):
                yield name


def made(tree: ast.Module) -> set[str]:
    """The names that a module gives to something of its own."""
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                found.add(node.name)
            case ast.Attribute(ast.Name("self"), name, ast.Store()) | ast.Name(name, ast.Store()):
                found.add(name)
            case ast.Assign([ast.Name("__slots__")], value):
                found |= {str(name) for name in ast.literal_eval(value)}
    return found


@pytest.mark.parametrize("file", sorted(RUNTIME.rglob("*.py")), ids=lambda f: f.stem)
def test_nothing_private_is_used_that_is_not_listed(file: Path) -> None:
    tree = ast.parse(file.read_text())
    private = {name for name in accesses(tree) if re.match(r"_(?!_)", name)}
    assert private - made(tree) <= LISTED


def modules() -> Iterator[ModuleType]:
    for found in pkgutil.walk_packages([str(RUNTIME)], f"{PACKAGE}.runtime."):
        if found.name.endswith(".testing") and not find_spec("pytest_aiohttp"):
            continue
        yield import_module(found.name)


def test_no_subclass_meets_a_private_name_that_is_not_listed() -> None:
    """A name of a subclass of ours may be its base's too, on purpose or not."""
    libraries = {place.split(".")[0] for place in PRIVATE}
    for module in modules():
        tree = ast.parse(Path(str(module.__file__)).read_text())
        written = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
        for ours in vars(module).values():
            if not isinstance(ours, type) or ours.__module__ != module.__name__:
                continue
            bases = [b for b in ours.__mro__ if b.__module__.split(".")[0] in libraries]
            if not bases or ours.__name__ not in written:
                continue
            used = {*accesses(written[ours.__name__]), *vars(ours)}
            for base in bases:
                met = {n for n in used if re.match(r"_(?!_|abc_|is_protocol)", n) and has(base, n)}
                assert met <= LISTED, f"{ours} uses {met - LISTED} of {base}"


def test_what_is_listed_is_used() -> None:
    text = "".join(file.read_text() for file in RUNTIME.rglob("*.py"))
    listed = {name for place in PLACES for name in PRIVATE[place]}
    assert not [name for name in sorted(listed) if not re.search(rf"\b{name}\b", text)]
