"""Refuses answers that would break the project later: all of them in one message."""

from __future__ import annotations  # an old Python, too, gets as far as the words for it

import json
import keyword
import os
import re
import shlex
import sys
import unicodedata
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

ANSWERS = json.loads(r"""{{ cookiecutter | tojson }}""")
BY_CRUFT = "_commit" in ANSWERS
OLDEST_COOKIECUTTER = (2, 6)
OLDEST_PYTHON = (3, 10)  # for cookiecutter and this; the project has its own


def is_control(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")


def marked(value: str) -> str:
    """A wrong answer as it stands in the command that takes the answers again."""
    line = "".join(" " if is_control(character) else character for character in value)
    return f">>> {line} <<<"


def is_marked(value: str) -> bool:
    return value.startswith(">>> ") and value.endswith(" <<<")


def the_same_again(wrong: set[str]) -> str:
    """The command that takes the same answers, those in `wrong` marked."""
    given = {
        key: marked(value) if key in wrong and not is_marked(value) else value
        for key, value in ANSWERS.items()
        # Where cookiecutter is too old, lists and dictionaries are no answers.
        if not key.startswith("_") and isinstance(value, str)
    }
    command = ["cruft", "create"] if BY_CRUFT else ["cookiecutter"]
    output = ANSWERS.get("_output_dir", "")
    if output != os.environ.get("PWD", output):
        command += ["--output-dir", output]
    if ANSWERS.get("_checkout"):
        command += ["--checkout", ANSWERS["_checkout"]]
    command += ["--no-input", ANSWERS["_template"]]
    if BY_CRUFT:
        context = json.dumps(given, ensure_ascii=False, indent=4)
        return f"{shlex.join(command)} --extra-context {shlex.quote(context)}"
    answers = (f"{key}={shlex.quote(value)}" for key, value in given.items())
    return " \\\n        ".join([shlex.join(command), *answers])


def refuse(why: str, wrong: set[str]) -> NoReturn:
    what = ": put right what is between >>> and <<<" if wrong else ""
    print(
        f"\nNothing was generated: {why}\n\nNothing else is wrong; a traceback below is only how"
        f" cookiecutter stops.\nThe same answers again{what}\n\n    {the_same_again(wrong)}\n",
        file=sys.stderr,
    )
    sys.exit(1)


if sys.version_info < OLDEST_PYTHON:
    refuse(
        f"cookiecutter runs on Python {sys.version_info[0]}.{sys.version_info[1]} here, and this"
        " template needs 3.10 or newer.\nInstall cookiecutter with a newer one, for example:"
        " pipx install --python python3.13 cookiecutter",
        set(),
    )

from importlib.metadata import PackageNotFoundError, version  # noqa: E402

# Where its metadata is out of reach, it is nobody's old package.
with suppress(PackageNotFoundError):
    if tuple(map(int, version("cookiecutter").split(".")[:2])) < OLDEST_COOKIECUTTER:
        refuse(
            f"this is cookiecutter {version('cookiecutter')}, and this template needs 2.6 or"
            " newer.\nInstall a newer one, for example: pipx install cookiecutter",
            set(),
        )

# What a worker needs, as in the generated settings.py, and the share of the limit for workers.
WORKER_MEMORY = 96 * 2**20
MEMORY_SHARE = 0.8
# A tenth of a CPU takes 3.5 s to start; with less, answers come later than probes wait.
LEAST_MILLICORES = 100

UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
UNITS |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}

# What the project's environment can import, its distributions and commands, with underscores for
# hyphens; then what the dependencies import where it happens to be there, and the project's tests.
TAKEN = """
    aiohappyeyeballs aiohttp aiosignal attr attrs frozenlist gunicorn gunicornc idna multidict
    prometheus_client propcache typing_extensions uvloop yarl
    ast_serialize colorama dmypy execnet flit_core iniconfig librt mypy mypy_extensions mypyc
    packaging pathspec pip pip3 pluggy py pygmentize pygments pytest pytest_aiohttp pytest_asyncio
    pytest_timeout pytest_xdist dotenv python_dotenv
    python python3 pyyaml ruff stubgen stubtest types_gunicorn types_pyyaml uv uvx xdist yaml
    anyio beartype coredis crontab deprecated exceptiongroup streaq typer watchfiles wrapt
    aiodns backports brotli brotlicffi click gevent h2 inotify msgspec orjson pydantic pydantic_core
    redis setproctitle pkg_resources setuptools tornado activate conftest test tests tools
"""
# The standard library of every supported Python, whichever runs this.
STDLIB = set(sys.stdlib_module_names) | {"annotationlib", "compression", "distutils", "imp"}


def refused(key: str, why: str, rule: str, example: str) -> str:
    return f"  {key} {ANSWERS[key]!r} {why}.\n    Rule: {rule}.\n    Example: {example}"


def line_problem(key: str, example: str) -> str | None:
    text = ANSWERS[key]
    if is_marked(text):
        why = "still has its marks"
    elif not text.strip() or any(map(is_control, text)):
        why = "is not one line of text"
    else:
        return None
    return refused(key, why, "one line, not empty, no control characters", example)


def slug_problem() -> str | None:
    slug = ANSWERS["project_slug"]
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", slug):
        why = "is no DNS label"
    elif slug.replace("-", "_") in TAKEN.split():
        why = "is the name of something that the project needs"
    else:
        return None
    return refused(
        "project_slug",
        why,
        "1 to 63 lower-case letters, digits and hyphens, a letter or digit at both ends,"
        " not the name of a dependency or its command",
        "my-service",
    )


def package_problem() -> str | None:
    package = ANSWERS["package_name"]
    if not re.fullmatch(r"[a-z][a-z0-9_]*", package):
        why = "is no lower-case Python name"
    elif keyword.iskeyword(package):
        why = "is a Python keyword"
    elif package in STDLIB:
        why = "would hide a module of Python's standard library"
    elif package in TAKEN.split():
        why = "would hide something that the project needs"
    else:
        return None
    return refused(
        "package_name",
        why,
        "lower-case letters, digits and underscores, a letter first, not a keyword, not the name of"
        " a standard module or a dependency",
        "my_service",
    )


def image_problem() -> str | None:
    host = r"[a-z0-9]+([.-]+[a-z0-9]+)*(:[0-9]{1,5})?"
    part = r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*"
    image = ANSWERS["image"]
    if len(image) <= 255 and re.fullmatch(rf"({host}/)?{part}(/{part})*", image):
        return None
    return refused(
        "image",
        "is no image repository",
        "lower-case letters, digits and . _ - between slashes, optionally a registry with its port"
        " first, no tag and no digest",
        "my-service or registry.example.com:5000/team/my-service",
    )


def cpu_problem() -> str | None:
    limit = ANSWERS["cpu_limit"]
    if not re.fullmatch(r"[0-9]+(\.[0-9]{1,3})?|[0-9]+m", limit):
        why = "is no CPU quantity of Kubernetes"
    elif millicores(limit) < LEAST_MILLICORES:
        why = "is too small to run one worker"
    else:
        return None
    return refused(
        "cpu_limit", why, f"CPUs or millicores, at least {LEAST_MILLICORES}m", "2, 1.5 or 1500m"
    )


def millicores(limit: str) -> float:
    return float(limit[:-1]) if limit.endswith("m") else 1000 * float(limit)


def memory_problem() -> str | None:
    limit = ANSWERS["memory_limit"]
    quantity = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([KMGT]i|[kMGT]|)", limit)
    if not quantity:
        why = "is no memory quantity of Kubernetes"
    elif MEMORY_SHARE * float(quantity[1]) * UNITS[quantity[2]] < WORKER_MEMORY:
        why = "is too small to run one worker"
    else:
        return None
    return refused(
        "memory_limit",
        why,
        f"a number with Mi or Gi, at least {WORKER_MEMORY / MEMORY_SHARE / 2**20:.0f}Mi",
        "512Mi or 1Gi",
    )


def leave_nothing_behind() -> None:
    """A slug with slashes made folders around this one, and cookiecutter removes only this one."""
    project = Path.cwd()
    out = Path(ANSWERS.get("_output_dir", project.parent))
    if out in project.parent.parents:
        with suppress(OSError):
            for folder in (project, *project.parents):
                if folder == out:
                    break
                folder.rmdir()


problems = {
    "project_name": line_problem("project_name", "My Service"),
    "project_slug": slug_problem(),
    "package_name": package_problem(),
    "description": line_problem("description", "Greets people."),
    "author": line_problem("author", "Ada Lovelace"),
    "image": image_problem(),
    "cpu_limit": cpu_problem(),
    "memory_limit": memory_problem(),
}
wrong = {key: problem for key, problem in problems.items() if problem}
if wrong:
    leave_nothing_behind()
    refuse("these answers would not work.\n\n" + "\n".join(wrong.values()), set(wrong))
