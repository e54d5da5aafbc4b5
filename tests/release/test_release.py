"""A release: what is in it, that it is the same twice, and that it serves where nothing else is installed."""

from __future__ import annotations

import configparser
import json
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import httpx
import pytest

from model.checkpoint.manifest import read_manifest
from service.settings import PRETRAINED
from tests.release.conftest import Dist, Installed, build, install
from tests.support.server import ROOT
from tests.support.wait import LIMIT_S

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = ("model", "training", "service")
BUILT = {"__pycache__", "library"}
"""Folders of what is no source."""
BODY = {"prompt": "ROMEO:", "max_new_tokens": 200, "seed": 7, "stream": False}
COPYLEFT = re.compile(r"\bA?GPL")


def package_files() -> dict[str, bytes]:
    """Every file of the three packages, by its path."""
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file() and not BUILT & {*path.parts}]
    return {str(path.relative_to(ROOT)): path.read_bytes() for path in paths}


def test_the_wheel_is_the_three_packages(dist: Dist) -> None:
    """Each file of them, with its bytes: the checkpoint, the playground, py.typed; the compiled kernels, and no file more."""
    about = f"folio-{PROJECT['version']}.dist-info"
    with zipfile.ZipFile(dist.wheel) as wheel:
        found = {name: wheel.read(name) for name in wheel.namelist()}
    metadata = {name.removeprefix(f"{about}/"): data for name, data in found.items() if name.startswith(f"{about}/")}
    kernels = [name for name in found if name.startswith("service/worker/kernels/library/kernels-")]
    assert len(kernels) == (1 if shutil.which("cc") else 0)
    assert dist.wheel.name.endswith("-any.whl") == (not kernels), "a wheel with kernels is for one platform"
    assert {name: data for name, data in found.items() if not name.startswith(f"{about}/") and name not in kernels} == package_files()
    licences = {f"licenses/{path}" for path in PROJECT["license-files"]}
    assert set(metadata) == {"METADATA", "WHEEL", "RECORD", "entry_points.txt"} | licences
    assert b"License-Expression: MIT AND OFL-1.1\n" in metadata["METADATA"]
    scripts = configparser.ConfigParser()
    scripts.read_string(metadata["entry_points.txt"].decode())
    assert dict(scripts["console_scripts"]) == PROJECT["scripts"]
    assert all((ROOT / package / "py.typed").exists() for package in PACKAGES)


def test_the_sdist_has_no_file_too_many(dist: Dist) -> None:
    """The wheel above was built from it, so it has none too few."""
    with tarfile.open(dist.sdist) as sdist:
        names = {member.name.partition("/")[2] for member in sdist.getmembers() if member.isfile()}
    assert names == {*package_files(), "LICENSE", "README.md", "pyproject.toml", "hatch_build.py", ".gitignore", "PKG-INFO"}


def test_the_same_files_give_the_same_bytes(dist: Dist, copied: Path, tmp_path: Path) -> None:
    again = build(copied, tmp_path)
    assert again.wheel.read_bytes() == dist.wheel.read_bytes()
    assert again.sdist.read_bytes() == dist.sdist.read_bytes()


def test_its_dependencies_agree(installed: Installed) -> None:
    command = [sys.executable, "-m", "pip", "--python", str(installed.environment / "bin" / "python"), "check"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_it_serves(installed: Installed) -> None:
    """The shipped checkpoint, on the kernels that the wheel brought, its page with its fonts, and its own client."""
    with installed.popen("folio-serve", "--port", "0") as server:
        try:
            assert server.stdout is not None
            url = next((line.strip() for line in server.stdout if line.startswith("http://")), "")
            assert url, "it ended before it was ready"
            with httpx.Client(base_url=url, timeout=LIMIT_S, trust_env=False) as http:
                info = http.get("/info").json()
                assert info["version"] == PROJECT["version"]
                assert info["model"]["checkpoint"] == read_manifest(PRETRAINED).id
                if info["model"]["device"] == "cpu" and shutil.which("cc"):
                    assert info["model"]["kernels"].startswith("native-")
                for path in ("/", "/playground/script.js", "/playground/eb-garamond.woff2", "/docs"):
                    assert http.get(path).status_code == 200, path
                text = http.post("/generate", json=BODY).json()["text"]
            assert len(text) == 200
            printed = installed.run("folio-generate", "ROMEO:", "--max-new-tokens", "200", "--seed", "7", "--url", url)
            assert printed == text + "\n"
        finally:
            server.send_signal(signal.SIGTERM)
        assert server.wait(LIMIT_S) == 0


def test_it_trains_with_its_extra(dist: Dist, installed: Installed) -> None:
    """Without it, it says so before anything is computed; the service above did not need it. (Another package may bring tqdm along.)"""
    text = installed.home / "text.txt"
    text.write_text("to be or not to be, that is the question\n" * 400)
    refused = installed.popen("folio-train", "--data", str(text), stderr=subprocess.PIPE)
    _, message = refused.communicate(timeout=LIMIT_S)
    assert refused.returncode == 2
    assert re.fullmatch(r"error: training needs matplotlib( and tqdm)?: pip install 'folio\[train\]'\n", message)
    install(installed.environment, f"{dist.wheel}[train]")
    installed.run("folio-train", "--preset", "smoke", "--data", str(text), "--out", "run", "--max-iters", "2")
    assert (installed.home / "run" / "best" / "manifest.json").exists()
    assert (installed.home / "run" / "loss.png").exists()


def test_its_parts_and_their_licences(installed: Installed) -> None:
    """`make sbom` and `make licenses` name every package of the environment; each licence is known, and none binds what links to it."""
    python = str(installed.environment / "bin" / "python")
    listed = "import json, importlib.metadata as m; print(json.dumps({d.name: d.version for d in m.distributions()}))"
    packages: dict[str, str] = json.loads(installed.run("python", "-c", listed))
    sbom = tool(
        "cyclonedx-py", "environment", "--no-validate", "--output-reproducible", "--pyproject", str(ROOT / "pyproject.toml"), python
    )
    assert {part["name"]: part["version"] for part in [*sbom["components"], sbom["metadata"]["component"]]} == packages
    licences = {part["Name"]: part["License"] for part in tool("pip-licenses", "--python", python, "--with-system", "--format", "json")}
    assert set(licences) == set(packages)
    assert {name: licence for name, licence in licences.items() if licence == "UNKNOWN" or COPYLEFT.search(licence)} == {}
    assert set(packages).isdisjoint({"pip", "pytest", "ruff", "mypy"})


def tool(name: str, *arguments: str) -> Any:
    """The JSON that a program of the tests' own environment prints."""
    command = [str(Path(sys.executable).with_name(name)), *arguments]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=LIMIT_S).stdout)
