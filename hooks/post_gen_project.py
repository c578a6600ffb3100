"""Finishes the project: no empty folders, a first commit, what to do next."""

import json
import os
import shlex
import subprocess
from contextlib import suppress
from pathlib import Path

ANSWERS = json.loads(r"""{{ cookiecutter | tojson }}""")
# Only for the first commit of somebody whom git does not know yet.
NOBODY = ("-c", "user.name=cookiecutter", "-c", "user.email=cookiecutter@localhost")


def git(*arguments: str) -> bool:
    return subprocess.run(("git", *arguments), capture_output=True, check=False).returncode == 0


def first_commit() -> None:
    if git("rev-parse", "--git-dir") or not git("init"):
        return
    git("symbolic-ref", "HEAD", "refs/heads/main")
    git("add", "--all")
    commit = ("-c", "commit.gpgsign=false", "commit", "--no-verify", "--message")
    message = "Generate the project from aiohttp-mp-template"
    _ = git(*commit, message) or git(*NOBODY, *commit, message)


# Where the answers left out every file of a folder, the folder goes too.
for folder in (".github/workflows", "k8s/keda", f"src/{ANSWERS['package_name']}/runtime/jobs"):
    with suppress(OSError):
        os.removedirs(folder)

with suppress(OSError):
    first_commit()

project = Path.cwd()
with suppress(ValueError):
    project = project.relative_to(os.environ.get("PWD", ""))
print(f"\n{ANSWERS['project_slug']} is ready. Next:\n")
print(f"    cd {shlex.quote(str(project))}\n    make test\n    make run\n")
