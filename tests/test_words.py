"""Every command in a page is run: here, as written, or by another test; or it is said why not."""

import ast
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
from conftest import ROOT, Answers, require, run, wait_for
from test_answers import DEFAULT, RICHEST
from test_ci import free_port

BIN = Path(sys.executable).parent
BUILT: Answers = {"job_queue": "redis"}  # has every page, and the names that it has by default

# These serve until Ctrl-C.
SERVE = [
    "make demo",
    "make dev",
    "PYTHONASYNCIODEBUG=1 make dev",
    "make run",
    "python -m my_service jobs",
    "WEB_CONCURRENCY=1 .venv/bin/python -m memray run --follow-fork --output memory.bin"
    " -m my_service",
]
HERE = [
    *SERVE,
    "pipx run cookiecutter gh:org/aiohttp-mp-template",
    "cd my-service",
    ".venv/bin/uvx pre-commit install",
    "make",
    "curl http://localhost:8080/",
    "curl http://localhost:8080/greet/you",
    "curl http://localhost:8080/primes/1000000",
    "curl http://localhost:8081/metrics",
    """curl --unix-socket /path/of/compute.sock http://compute/primes -d '{"limit": 1000}'""",
    'PID=$(pgrep -of "python -m my_service")',
    ".venv/bin/uvx py-spy record --subprocesses --duration 30 --output cpu.svg --pid $PID",
    ".venv/bin/uvx py-spy dump --pid $(pgrep -P $PID | tail -1)",
    ".venv/bin/uv pip install memray",
    ".venv/bin/python -m memray flamegraph --output most.html memory.bin.PID",
    ".venv/bin/python -m memray flamegraph --leaks --output left.html memory.bin.PID",
    "make clean install",
    "curl -X POST http://localhost:8080/primes/1000000",
    "curl http://localhost:8080/jobs/3f0c…",
    "python -m my_service jobs dead",
    "git diff --cached",
]

# The test that runs it, or what in CI does: its words are there.
ELSEWHERE = {
    "make install": ".github/workflows/ci.yml",
    "make lint": ".github/workflows/ci.yml",
    "make test": ".ci/run",
    "make soak": ".ci/run",
    "make audit": "tests/test_ci.py::test_audit_fails_for_a_vulnerability",
    "make lock": "tests/test_dependencies.py::test_lock_changes_nothing_that_the_template_pins",
    "make upgrade": "tests/test_dependencies.py::test_lock_keeps_and_upgrade_takes_the_newest",
    "make release": "tests/test_release.py::test_a_release_is_tagged",
    "make image TAG=1.2.3": "tests/test_image.py::test_says_what_it_is",
    "make deploy TAG=1.2.3": "tests/test_manifests.py::test_make_deploy_names_the_image",
    "make undeploy": "tests/test_optional_manifests.py::test_make_undeploy_removes_every_kind",
    "make lint check-lock check-manifests test": "tests/test_ci.py::test_every_line_runs",
    "make load": "tests/test_load.py::test_load",
    "make load USERS=500 SECONDS=120": "tests/test_load.py::test_load",
    "make load URL=http://localhost:8080": "tests/test_load.py::test_load",
    "make tune": "tests/test_load.py::test_tune",
    "make update": "tests/test_update.py::test_an_update_keeps_both_sides",
    "make lock install": "tests/test_first_hour.py::test_what_is_left_of_the_tests_passes",
    ".venv/bin/uv add --frozen 'httpx >=0.28,<1'": (
        "tests/test_first_hour.py::test_what_is_left_of_the_tests_passes"
    ),
    "curl http://localhost:8080/convert/100": (
        "tests/runtime/test_moving_in.py::test_it_answers_as_it_did"
    ),
    'python -c "from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())"': (
        "tests/runtime/test_recipes.py::test_sessions"
    ),
    "python -m my_service jobs retry 3f0c…": (
        "tests/runtime/test_jobs.py::test_a_job_that_fails_is_tried_again_a_little_later"
    ),
    "docker build -t my-service .": "tests/test_image.py::test_says_what_it_is",
    "python -m PACKAGE check": "tests/test_first_hour.py::test_the_secret_is_not_shown",
    "python -m my_service compute": (
        "tests/runtime/test_start.py::test_a_compute_socket_that_cannot_be"
    ),
}

CLUSTER = "needs a cluster"
REGISTRY = "needs a registry"
EXPLAINED = {
    "docker push my-service:1.2.3": REGISTRY,
    "docker compose up": REGISTRY,
    "kubectl apply -k k8s/monitoring": CLUSTER,
    "kubectl logs -l app.kubernetes.io/name=my-service -c web --tail=-1 "
    """| jq -cR 'fromjson? | objects | select(.status >= 500 or .aborted == "error")'""": CLUSTER,
}

# The first line of a block that is not for a shell.
NO_COMMANDS = [
    "await broadcast.publish(channel, data)",
    "components: [k8s/compute]",
    "CREATE TABLE visits (page text PRIMARY KEY, count bigint NOT NULL)",
]
HISTORY = {"CHANGELOG.md", "docs/decisions.md"}  # what is named there, nobody is to type

Bake = Callable[..., Path]


def pages(folder: Path) -> dict[str, str]:
    """The pages of the template or of a project, by name."""
    found = {str(file.relative_to(folder)): file for file in sorted(folder.rglob("*.md"))}
    return {
        name: file.read_text()
        for name, file in found.items()
        if not name.startswith((".venv/", "benchmarks/", "{{"))
    }


def commands(page: str) -> list[str]:
    """What the blocks of a page have for a shell, in order; a comment too that has its own line."""
    found: list[str] = []
    fenced = r"^```(?P<kind>.*)\n(?P<fenced>(?s:.*?))^```$"
    for block in re.finditer(rf"{fenced}|(?<=\n\n)(?P<plain>(?:    .*\n)+)", page, re.M):
        if block["plain"]:
            lines = [line[4:] for line in block["plain"].splitlines()]
            if lines[0].startswith(" ") or lines[0].split("   #")[0].strip() in NO_COMMANDS:
                continue  # a drawing, or another language
        elif block["kind"] in ("sh", "bash", "console"):
            lines = block["fenced"].splitlines()
        else:
            continue
        if any(line.startswith("$ ") for line in lines):  # the others are what it says
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        text = re.sub(r"\\\n\s*", "", "\n".join(lines))
        found += [re.sub(r"\s+# .*", "", line) for line in text.splitlines() if line.strip()]
    return found


def named(page: str) -> set[str]:
    """The commands in a page's sentences and tables: a program and what it is told."""
    programs = r"make|curl|docker|git|kind|kubectl|podman|python|uvx?|\.venv/bin/\S+"
    inline = re.findall(r"`((?:[A-Z_]+=\S+ )*(?:" + programs + r") [^`]+)`", page)
    return {re.sub(r"\s+", " ", command) for command in inline}


@pytest.fixture(scope="module")
def everywhere(template: Path, bake: Bake) -> list[str]:
    """All pages; those of a project as if it had the names that it has by default."""
    texts = [text for name, text in pages(template).items() if name not in HISTORY]
    for answers in (DEFAULT, RICHEST):
        project = bake(**answers)
        (package,) = (project / "src").iterdir()
        texts += [
            text.replace(project.name, "my-service").replace(package.name, "my_service")
            for text in pages(project).values()
        ]
    return texts


def test_every_command_is_run_or_explained(everywhere: list[str]) -> None:
    given = {command for page in everywhere for command in commands(page) if command[0] != "#"}
    told = [*HERE, *ELSEWHERE, *EXPLAINED]
    assert len(told) == len(set(told)), "each has one place"
    assert given - set(told) == set(), "name it in HERE, ELSEWHERE or EXPLAINED"
    in_sentences = {command for page in everywhere for command in named(page)}
    assert set(told) - given - in_sentences == set(), "no page has it any more"


@pytest.mark.parametrize("command", ELSEWHERE)
def test_what_is_said_to_run_it_does(command: str) -> None:
    file, _, name = ELSEWHERE[command].partition("::")
    source = (ROOT / file).read_text()
    if name:
        functions = (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef))
        assert name in {function.name for function in functions}
    short = re.sub(r"""'.*'|\S*…|https?://[^/]*/|"(?=\w)|(?<=\w)[."].*""", "", command)
    words = {re.sub(r"=.*|.*/uv", "", word) for word in short.split() if word[0] != "-"}
    words -= {"", "curl", "python", "my_service", "PACKAGE"}
    assert words
    for word in words:
        assert re.search(rf"\b{word}\b", source), f"{word} is not in {file}"


def test_every_target_in_a_sentence_exists(everywhere: list[str], bake: Bake) -> None:
    makefiles = "".join((folder / "Makefile").read_text() for folder in (ROOT, bake(**BUILT)))
    for command in {command for page in everywhere for command in named(page)}:
        if command.startswith("make "):
            for word in command.split()[1:]:
                name, is_variable, _ = word.partition("=")
                found = f"$({name})" if is_variable else f"\n{name}:"
                assert found in makefiles, command


# Where pgrep finds nobody else's service. What is started there ends with the shell.
ALONE = ["unshare", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"]
END = "this is the end of what it said"


class Reader:
    """Somebody at a terminal, who starts what serves in another one."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.admin = f"http://127.0.0.1:{environment['ADMIN_PORT']}"
        self.log = folder / "service.log"
        self.shell = subprocess.Popen(
            [*ALONE, "bash"],
            cwd=folder,
            env={key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"}
            | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.serving = False
        self.run("set -m")
        self.run('curl() { command curl --silent --show-error --fail-with-body "$@"; }')

    def run(self, command: str) -> str:
        """What the command says; it must succeed."""
        assert self.shell.stdin
        assert self.shell.stdout
        self.shell.stdin.write(f'{{ {command}\n}} </dev/null; echo "\n$? {END}"\n')
        self.shell.stdin.flush()
        said = ""
        for line in self.shell.stdout:
            if line.endswith(f" {END}\n"):
                assert line.startswith("0 "), f"{command}\n{said}"
                return said
            said += line
        raise AssertionError(f"{command}\n{said}\nThe shell ended.")

    def start(self, command: str) -> None:
        """Until it serves."""
        self.run(f"{{ {command}\n}} >{self.log} 2>&1 & SERVICE=$!")
        self.serving = True
        wait_for(self.ready, 200)

    def ready(self) -> bool:
        self.run(f'kill -0 "$SERVICE" || {{ cat {self.log}; false; }}')
        try:
            with urlopen(f"{self.admin}/readyz", timeout=30) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    def stop(self) -> None:
        """With Ctrl-C."""
        if self.serving:
            self.run('kill -INT -- "-$SERVICE"; wait "$SERVICE"; true')
            self.serving = False

    def leave(self) -> None:
        self.shell.communicate(timeout=60)


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """What the pages leave to the reader, and ports that are free here."""
    if subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine gives nobody processes of their own")
    redis_port = free_port()
    answers = tmp_path / "answers.yaml"
    answers.write_text(json.dumps({"default_context": BUILT}))
    with tempfile.TemporaryDirectory() as short:  # a socket's path has 107 bytes at most
        redis = subprocess.Popen(
            [require("redis-server"), "--port", redis_port, "--save", "", "--dir", short],
            stdout=subprocess.DEVNULL,
        )
        try:
            yield {
                "PATH": f"{BIN}:{os.environ['PATH']}",
                "PORT": free_port(),
                "ADMIN_PORT": free_port(),
                "WEB_CONCURRENCY": "1",
                "LAME_DUCK": "0",
                "COMPUTE_URL": f"unix:{short}/compute.sock",
                "REDIS_URL": f"redis://127.0.0.1:{redis_port}/0",
                "COOKIECUTTER_CONFIG": str(answers),
            }
        finally:
            redis.terminate()
            redis.wait(60)


@pytest.mark.timeout(900)
def test_every_command_runs(template: Path, environment: dict[str, str], tmp_path: Path) -> None:
    """In the order of its page. What serves starts once, and wherever a page presumes it."""
    clone = tmp_path / "aiohttp-mp-template"
    run("cp", "-r", template, clone, cwd=tmp_path)
    run("git", "init", "--quiet", cwd=clone)
    (clone / ".venv").symlink_to(BIN.parent)  # `make install` was typed before
    os.utime(clone / "requirements-dev.txt", (0, 0))
    project = tmp_path / "my-service"
    stands_for = {
        "pipx run cookiecutter gh:org/aiohttp-mp-template": (
            f"cd .. && yes '' | uvx cookiecutter {clone}"
        ),
        "localhost:8080": f"localhost:{environment['PORT']}",
        "localhost:8081": f"localhost:{environment['ADMIN_PORT']}",
        "/path/of/compute.sock": environment["COMPUTE_URL"].removeprefix("unix:"),
        "--duration 30": "--duration 1",
    }
    left = set(HERE)

    def type_in(page: str) -> None:
        for command in commands(page):
            if command.startswith("#") and "Ctrl-C" in command:
                reader.run(f"curl http://localhost:{environment['PORT']}/primes/1000")
                reader.stop()
                measured = max(project.glob("memory.bin.*"), key=lambda file: file.stat().st_size)
                stands_for["memory.bin.PID"] = measured.name
            if command not in HERE:
                continue
            typed = re.sub("^python ", ".venv/bin/python ", command)
            for written, meant in stands_for.items():
                typed = typed.replace(written, meant)
            if command in SERVE:
                reader.stop()
                if command in left:
                    left.remove(command)
                    reader.start(typed)
                continue
            left.discard(command)
            if not reader.serving and command.startswith(("curl", "PID=")):
                reader.start("make run")
            said = reader.run(typed)
            if command.startswith("curl -X POST"):
                stands_for["3f0c…"] = json.loads(said)["id"]

    reader = Reader(clone, **environment)
    try:
        for name in ("CONTRIBUTING.md", "README.md"):
            type_in((clone / name).read_text())
        for page in pages(project).values():
            type_in(page)
        reader.stop()
    finally:
        reader.leave()
    assert not left
