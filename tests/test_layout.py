"""What is the user's, what is the runtime's, and which room of it knows which, by their imports."""

import ast
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import Answers, run
from test_answers import DEFAULT, RICHEST

RUNTIME = "runtime"
LINES_OF_TESTS = 400

# room: the other rooms that it may know
ROOMS = {
    "metrics": set(),
    "compute": {"metrics"},
    "broadcast": {"metrics", "jobs"},
    "http": {"metrics", "compute"},
    "process": {"metrics", "compute", "http", "broadcast"},
    "jobs": {"metrics", "compute", "process"},
}
# library: the rooms that may know it
LIBRARIES = {"gunicorn": {"process"}, "streaq": {"jobs"}, "coredis": {"jobs", "broadcast"}}


class Import(NamedTuple):
    """`from where import name`; for `import where` there is no name."""

    where: str  # from the package on, or the full name of another one's module
    name: str
    own: bool  # of this package


class Module(NamedTuple):
    name: str  # from the package on: `runtime.http.edge`
    tree: ast.Module
    imports: list[Import]

    @property
    def room(self) -> str:
        parts = self.name.split(".")
        return parts[1] if parts[0] == RUNTIME and len(parts) > 1 and parts[1] in ROOMS else ""

    @property
    def is_runtime(self) -> bool:
        return f"{self.name}.".startswith(f"{RUNTIME}.")


def statements(tree: ast.AST) -> Iterator[ast.AST]:
    """All that runs: not what only a type checker reads."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        yield from statements(node)


def imports(tree: ast.Module, package: list[str], distribution: str) -> Iterator[Import]:
    for node in statements(tree):
        match node:
            case ast.Import(names):
                yield from (Import(alias.name, "", False) for alias in names)
            case ast.ImportFrom(module, names, 0):
                own = (module or "").split(".")[0] == distribution
                yield from (Import(module or "", alias.name, own) for alias in names)
            case ast.ImportFrom(module, names, level):
                base = package[: len(package) - (level or 0) + 1]
                where = ".".join([*base, *filter(None, [module])])
                yield from (Import(where, alias.name, True) for alias in names)


@pytest.fixture(scope="module", params=[DEFAULT, RICHEST], ids=["default", "richest"])
def project(request: pytest.FixtureRequest, bake: Callable[..., Path]) -> Path:
    answers: Answers = request.param
    return bake(**answers)


@pytest.fixture(scope="module")
def modules(project: Path) -> dict[str, Module]:
    (source,) = (project / "src").iterdir()
    found = {}
    for file in source.rglob("*.py"):
        path = file.relative_to(source).with_suffix("")
        is_package = path.name == "__init__"
        package = list(path.parent.parts)
        name = ".".join(package if is_package else path.parts)
        tree = ast.parse(file.read_text())
        found[name] = Module(name, tree, list(imports(tree, package, source.name)))
    return found


def imported(module: Module, modules: dict[str, Module]) -> set[str]:
    """The modules of the package that it imports."""
    names = set()
    for one in module.imports:
        if one.own:
            inner = f"{one.where}.{one.name}".lstrip(".")
            names.add(inner if inner in modules else one.where)
    return names


def test_the_users_modules_know_the_face_of_the_runtime_only(modules: dict[str, Module]) -> None:
    face = set()
    for node in modules[RUNTIME].tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            face = set(ast.literal_eval(node.value))
    assert face
    for module in modules.values():
        for one in module.imports:
            if module.is_runtime or not one.own or not one.where.startswith(RUNTIME):
                continue
            assert one.where == RUNTIME, f"{module.name} reaches into {one.where}"
            assert one.name in face | {"jobs"}, f"{module.name} imports {one.name}"


def test_the_runtime_knows_no_module_of_the_users(modules: dict[str, Module]) -> None:
    users = {name for name, module in modules.items() if not module.is_runtime}
    assert {"", "__main__", "app", "views", "tasks", "settings"} <= users
    for module in modules.values():
        if not module.is_runtime:
            continue
        assert not imported(module, modules) & users, module.name
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "import_module":
                words = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)}
                assert not {str(word).strip(".") for word in words} & (users - {"", "__main__"})


def test_each_room_knows_those_it_may(modules: dict[str, Module]) -> None:
    for module in modules.values():
        if not module.is_runtime:
            continue
        rooms = {modules[name].room for name in imported(module, modules)}
        if module.room:
            assert rooms - {"", module.room} <= ROOMS[module.room], module.name
        libraries = {one.where.split(".")[0] for one in module.imports if not one.own}
        for library, where in LIBRARIES.items():
            assert library not in libraries or module.room in where, f"{module.name}: {library}"
        if module.room == "process":
            calls = {n.attr for n in ast.walk(module.tree) if isinstance(n, ast.Attribute)}
            assert not calls & {"add_routes", "router", "path", "rel_url"}, module.name


def test_no_modules_import_each_other(modules: dict[str, Module]) -> None:
    graph = {name: imported(module, modules) - {name} for name, module in modules.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_the_projects_tests_are_few(project: Path) -> None:
    listed = run("git", "ls-files", "tests", cwd=project).split()
    assert {"tests/conftest.py", "tests/test_service.py", "tests/test_views.py"} < set(listed)
    assert sum(len((project / name).read_text().splitlines()) for name in listed) <= LINES_OF_TESTS
