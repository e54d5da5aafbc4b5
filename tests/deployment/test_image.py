"""What the Dockerfile asks for is there, and the service's image does without torch."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.support.server import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirement_lists(folder: Path) -> dict[str, list[str]]:
    """The files that the Dockerfile's ``requirements`` stage writes, written by the same line."""
    found = re.search(r'RUN python3 -c "(.*?)"\n', DOCKERFILE, re.DOTALL)
    assert found
    (folder / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    script = found[1].replace("\\\n", "").replace("\\n", "\n".encode("unicode_escape").decode())
    subprocess.run([sys.executable, "-c", script], cwd=folder, check=True)
    return {file.stem: file.read_text().splitlines() for file in folder.glob("*.txt")}


def test_the_service_needs_everything_but_torch(tmp_path: Path) -> None:
    """That the API and a worker on compiled kernels never import it is tests/test_architecture.py's."""
    lists = requirement_lists(tmp_path)
    needed, extras = PROJECT["dependencies"], PROJECT["optional-dependencies"]
    assert lists["service"] == [line for line in needed if not line.startswith("torch")] + extras["otel"] + extras["cuda"]
    assert [line for line in lists["training"] if line not in extras["train"]] == [line for line in needed if line.startswith("torch")]


def test_every_file_that_is_copied_may_come_along() -> None:
    """A name that .dockerignore leaves out makes a build fail, where no test builds one."""
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [name for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE) for name in line.split()[:-1]]
    assert {"pyproject.toml", "hatch_build.py", "service"} <= set(copied)
    for name in copied:
        assert (ROOT / name).exists(), name
        assert allowed & {name, *map(str, Path(name).parents)}, name
