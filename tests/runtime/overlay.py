"""The generated package that is tested and measured, with an application of our own in it."""

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

PROJECT = Path(os.environ["PROJECT"])  # a generated one, in whose environment this runs
PACKAGE = next((PROJECT / "src").glob("*/__main__.py")).parent.name
HAS_JOBS = (PROJECT / "src" / PACKAGE / "job_views.py").exists()


def _own_code() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="own-code-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    package = folder / PACKAGE
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PROJECT / "src" / PACKAGE, package, ignore=ignored)
    for file in Path(__file__).with_name("own").glob("*.py"):
        if HAS_JOBS or not file.name.startswith("job_"):
            shutil.copy(file, package)
    return folder


CODE = _own_code()  # to be put on PYTHONPATH
sys.path.insert(0, str(CODE))
