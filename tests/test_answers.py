"""Every supported set of answers generates a sound project; every other is refused in words."""

import hashlib
import itertools
import json
import os
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, Answers, Cookiecutter, run

OPTIONS = {
    "job_queue": ("none", "redis"),
    "ci": ("github", "gitlab", "none"),
    "python_version": ("3.13", "3.14", "3.12"),
}

# Answers that people may well give and that formats, shells and names could trip over.
AWKWARD: dict[str, Answers] = {
    "quotes": {
        "project_name": """O'Connor's "Best" Service""",
        "description": """It's "quoted", 'twice', and `ticked`""",
        "author": """Miles "Tails" O'Brien""",
    },
    "backslashes": {"description": r"C:\new\table\u0041 \" \' \\", "author": "back\\slash\\"},
    "yaml and toml": {
        "project_name": "Service: the #1 [beta]",
        "description": "# no: comment, - no list, {no: map} & no *anchor | > % @ ! ? = ~",
        "author": "key: value # trailing",
    },
    "unicode": {
        "project_name": "Grüße für Übermüdete",
        "description": "Écoute 日本語, العربية, \u200bzero width and \N{NO-BREAK SPACE}wide",
        "author": "José Ñandú 李小龙",
    },
    "emoji": {"project_name": "Rocket 🚀", "description": "👩‍💻 → 🎉", "author": "🦊"},
    "words of yaml": {
        "project_name": "no",
        "project_slug": "on",
        "package_name": "null",
        "description": "yes",
        "author": "1.0",
        "image": "off",
    },
    "digits only": {
        "project_name": "007",
        "project_slug": "007",
        "package_name": "bond",
        "description": "1e3",
        "author": "0x10",
        "cpu_limit": "0.1",
        "memory_limit": "120Mi",
    },
    "longest": {"project_slug": "a" + "-b" * 31, "image": "x" * 255, "description": "word " * 60},
    "shortest": {"project_name": "X", "project_slug": "x", "package_name": "x", "author": "X"},
    "registry with port": {
        "image": "registry.example.com:5000/team/sub.group/my_service__x-1",
        "cpu_limit": "1500m",
        "memory_limit": "1Gi",
    },
    "markup and shell": {
        "project_name": "<b>Bold</b> & *starred* $(id) `id`",
        "description": "$HOME ${HOME} $$ %s %(x)s {0} <script>alert(1)</script> | [a](b)",
        "author": "Robert'); DROP TABLE students;--",
    },
    "hyphens": {"project_slug": "a--b", "package_name": "a__b", "memory_limit": "1.5Gi"},
}

DEFAULT: Answers = {}
RICHEST: Answers = {"job_queue": "redis", "ci": "gitlab", **AWKWARD["quotes"]}

SUPPORTED_COMBINATIONS: dict[str, Answers] = {
    "-".join(values): dict(zip(OPTIONS, values, strict=True))
    for values in itertools.product(*OPTIONS.values())
}
SUPPORTED_COMBINATIONS |= AWKWARD | {"richest": RICHEST}

# answer: what the message says is wrong with it
REFUSED: dict[tuple[str, str], str] = {
    ("project_slug", "My_Service"): "is no DNS label",
    ("project_slug", "-service"): "is no DNS label",
    ("project_slug", "a" * 64): "is no DNS label",
    ("project_slug", "team/service"): "is no DNS label",
    ("project_slug", "gunicorn"): "is the name of something that the project needs",
    ("package_name", "my-service"): "is no lower-case Python name",
    ("package_name", "3d"): "is no lower-case Python name",
    ("package_name", "größe"): "is no lower-case Python name",
    ("package_name", "class"): "is a Python keyword",
    ("package_name", "calendar"): "would hide a module of Python's standard library",
    ("package_name", "compression"): "would hide a module of Python's standard library",
    ("package_name", "aiohttp"): "would hide something that the project needs",
    ("package_name", "tests"): "would hide something that the project needs",
    ("image", "my-service:1.0"): "is no image repository",
    ("image", "Team/service"): "is no image repository",
    ("image", "https://registry.example.com/service"): "is no image repository",
    ("image", f"service@sha256:{'0' * 64}"): "is no image repository",
    ("cpu_limit", "two"): "is no CPU quantity of Kubernetes",
    ("cpu_limit", "-1"): "is no CPU quantity of Kubernetes",
    ("cpu_limit", "1.5m"): "is no CPU quantity of Kubernetes",
    ("cpu_limit", "50m"): "is too small to run one worker",
    ("cpu_limit", "0"): "is too small to run one worker",
    ("memory_limit", "512MB"): "is no memory quantity of Kubernetes",
    ("memory_limit", "1g"): "is no memory quantity of Kubernetes",
    ("memory_limit", "512m"): "is no memory quantity of Kubernetes",
    ("memory_limit", "512"): "is too small to run one worker",
    ("memory_limit", "119Mi"): "is too small to run one worker",
    ("project_name", " "): "is not one line of text",
    ("description", "two\nlines"): "is not one line of text",
    ("author", "bell\a"): "is not one line of text",
}
EXAMPLES = {
    "project_name": "My Service",
    "project_slug": "my-service",
    "package_name": "my_service",
    "description": "Greets people.",
    "author": "Ada Lovelace",
    "image": "my-service or registry.example.com:5000/team/my-service",
    "cpu_limit": "2, 1.5 or 1500m",
    "memory_limit": "512Mi or 1Gi",
}

Bake = Callable[..., Path]
TypeCheck = Callable[[Path], None]


def files(project: Path) -> list[Path]:
    """What was generated, without what was made in it later."""
    listed = run("git", "ls-files", "-z", cwd=project)
    return [project / name for name in listed.split("\0") if name]


@pytest.fixture(scope="session")
def tools(installed: Bake) -> Path:
    """The linters and every dependency, as the richest project pins them."""
    return installed(**RICHEST) / ".venv" / "bin"


@pytest.fixture(scope="session")
def type_check(tools: Path, tmp_path_factory: pytest.TempPathFactory) -> TypeCheck:
    """mypy, once for each distinct set of Python files."""
    cache = tmp_path_factory.mktemp("mypy")
    seen = set()

    def type_check(project: Path) -> None:
        sources = hashlib.sha256()
        for file in files(project):
            if file.suffix == ".py":
                sources.update(file.name.encode() + file.read_bytes())
        if sources.digest() not in seen:
            run(tools / "mypy", "--cache-dir", cache, cwd=project)
            seen.add(sources.digest())

    return type_check


# what these pages say of Redis holds without the option
REDIS_ANYWAY = {"moving-in.md", "recipes.md", "second-day.md"}


@pytest.mark.parametrize("name", SUPPORTED_COMBINATIONS)
def test_generates(name: str, bake: Bake) -> None:
    answers = SUPPORTED_COMBINATIONS[name]
    project = bake(**answers)
    for file in files(project):
        text = file.read_text()
        relative = file.relative_to(project)
        assert "{%" not in text, relative
        assert "cookiecutter." not in f"{relative} {text}", relative
        # The braces of Python, GitHub and Prometheus are their own.
        if file.suffix != ".py" and not {".github", "monitoring"} & set(relative.parts):
            assert "{{" not in text, relative
        if answers.get("job_queue") != "redis" and file.name not in REDIS_ANYWAY:
            assert not re.search("redis|streaq", f"{relative} {text}", re.IGNORECASE), relative
        match file.suffix:
            case ".yaml" | ".yml":
                for document in yaml.safe_load_all(text):
                    named = document.get("metadata", {})
                    for name in (named.get("name", ""), *named.get("labels", {}).values()):
                        assert isinstance(name, str), f"{relative} must quote {name}"
            case ".toml":
                tomllib.loads(text)
            case ".json":
                json.loads(text)
    for folder, below, inside in os.walk(project):
        if ".git" in below:
            below.remove(".git")
        assert below or inside, f"{folder} is empty"


@pytest.mark.parametrize("name", SUPPORTED_COMBINATIONS)
def test_carries_the_answers(name: str, bake: Bake) -> None:
    answers = SUPPORTED_COMBINATIONS[name]
    project = bake(**answers)
    packaging = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    assert packaging["name"] == project.name == answers.get("project_slug", project.name)
    assert packaging["description"] == answers.get("description", packaging["description"])
    assert packaging["authors"] == [{"name": answers.get("author", "Your Name")}]
    (package,) = (project / "src").iterdir()
    assert package.name == answers.get("package_name", package.name)
    readme = (project / "README.md").read_text()
    assert readme.startswith(f"# {answers.get('project_name', 'My Service')}\n")
    ci = answers.get("ci", "github")
    assert (project / ".github" / "workflows" / "ci.yml").exists() == (ci == "github")
    assert (project / ".gitlab-ci.yml").exists() == (ci == "gitlab")
    jobs = answers.get("job_queue") == "redis"
    assert ("streaq" in (project / "requirements.txt").read_text()) == jobs


@pytest.mark.parametrize("name", SUPPORTED_COMBINATIONS)
def test_is_formatted_linted_and_typed(
    name: str, bake: Bake, tools: Path, type_check: TypeCheck
) -> None:
    project = bake(**SUPPORTED_COMBINATIONS[name])
    run(tools / "ruff", "format", "--check", "--no-cache", cwd=project)
    run(tools / "ruff", "check", "--no-cache", cwd=project)
    type_check(project)


@pytest.mark.parametrize(("answer", "why"), REFUSED.items())
def test_refuses(
    answer: tuple[str, str], why: str, cookiecutter: Cookiecutter, tmp_path: Path
) -> None:
    key, value = answer
    # What is derived from a wrong answer would be refused as well.
    sound = {"project_slug": "my-service", "package_name": "my_service", "image": "my-service"}
    done = cookiecutter(tmp_path, sound | {key: value})
    assert done.returncode != 0
    message, _, _ = done.stdout.partition("Traceback")
    assert f"  {key} {value!r} {why}.\n    Rule: " in message
    assert f"    Example: {EXAMPLES[key]}\n" in message
    assert message.count("Rule:") == 1
    assert not list(tmp_path.iterdir())


def test_refuses_all_wrong_answers_at_once(cookiecutter: Cookiecutter, tmp_path: Path) -> None:
    wrong = {key: value for key, value in REFUSED if key != "project_slug"}
    done = cookiecutter(tmp_path, {"project_slug": "Upper"} | wrong)
    assert done.returncode != 0
    assert done.stdout.count("Rule:") == len(EXAMPLES)
    assert not list(tmp_path.iterdir())


def again(message: str) -> str:
    """The command that a refusal gives."""
    (command,) = re.findall(r"^The same answers again.*?\n\n(.*?)\n\n", message, re.M | re.S)
    return str(command)


@pytest.mark.parametrize("name", ["quotes", "backslashes", "unicode", "markup and shell"])
def test_a_refusal_gives_the_command_that_takes_the_same_answers(
    name: str, cookiecutter: Cookiecutter, bake: Bake, tmp_path: Path
) -> None:
    sound = AWKWARD[name] | {"python_version": "3.14", "job_queue": "redis"}
    done = cookiecutter(tmp_path, sound | {"cpu_limit": "two\nor 'three'", "memory_limit": "lots"})
    assert "Nothing else is wrong" in done.stdout
    right = {"cpu_limit": "1500m", "memory_limit": "1Gi"}
    command = again(done.stdout)
    for key, value in right.items():
        command, marks = re.subn(rf"(\s{key}=)'>>> .* <<<'", rf"\g<1>{value}", command)
        assert marks == 1
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    run("sh", "-c", command, cwd=tmp_path, HOME=str(tmp_path), PATH=path)
    (project,) = (folder for folder in tmp_path.iterdir() if not folder.name.startswith("."))
    expected = bake(**sound | right)
    assert {file.relative_to(project): file.read_bytes() for file in files(project)} == {
        file.relative_to(expected): file.read_bytes() for file in files(expected)
    }


@pytest.mark.parametrize("key", EXAMPLES)
def test_a_mark_left_in_is_refused(key: str, cookiecutter: Cookiecutter, tmp_path: Path) -> None:
    sound = {"project_slug": "my-service", "package_name": "my_service", "image": "my-service"}
    left = ">>> something wrong <<<"
    done = cookiecutter(tmp_path, sound | {key: left})
    assert done.returncode != 0
    assert f"{key}='{left}'" in again(done.stdout)


def test_a_refusal_leaves_an_existing_folder_alone(
    cookiecutter: Cookiecutter, tmp_path: Path
) -> None:
    (tmp_path / "my-service").mkdir()
    (tmp_path / "my-service" / "mine").touch()
    assert cookiecutter(tmp_path, {"cpu_limit": "two"}).returncode != 0
    assert [file.name for file in (tmp_path / "my-service").iterdir()] == ["mine"]


def test_every_name_in_the_environment_is_taken(tools: Path) -> None:
    hook = (ROOT / "hooks" / "pre_gen_project.py").read_text()
    taken = re.search(r'TAKEN = """(.*?)"""', hook, re.DOTALL)
    assert taken
    listing = (
        "from importlib.metadata import *; import json;"
        "print(json.dumps([*packages_distributions(), *(d.name for d in distributions())]))"
    )
    names = json.loads(run(tools / "python", "-c", listing, cwd=ROOT))
    names += [command.name for command in tools.iterdir()]
    names = {name.lower().replace("-", "_") for name in names if not name.endswith("-stubs")}
    mine = {"o_connor_s_best_service"}
    possible = {name for name in names - mine if re.fullmatch(r"[a-z][a-z0-9_]*", name)}
    assert possible <= set(taken[1].split())
