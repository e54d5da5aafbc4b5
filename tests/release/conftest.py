"""Wheel and sdist as `make dist` makes them, and the wheel in an environment that holds nothing else but what it declares."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.server import ROOT

SOURCES = ("model", "training", "service", "LICENSE", "README.md", "pyproject.toml", "hatch_build.py", ".gitignore")
BUILD_S = INSTALL_S = 600.0


@dataclass(frozen=True)
class Dist:
    """The two files of a release."""

    wheel: Path
    sdist: Path


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel in it, and a directory to be in that is not the checkout."""

    environment: Path
    home: Path

    @property
    def variables(self) -> dict[str, str]:
        """Nothing of ours, and all that is written goes below ``home``."""
        return {"PATH": f"{self.environment / 'bin'}:/usr/bin:/bin", "HOME": str(self.home), "NO_PROXY": "*"}

    def popen(self, *command: str, stderr: int | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(self.found(command), cwd=self.home, env=self.variables, stdout=subprocess.PIPE, stderr=stderr, text=True)

    def run(self, *command: str) -> str:
        """What a command prints. It must end with 0."""
        done = subprocess.run(self.found(command), check=False, cwd=self.home, env=self.variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def found(self, command: tuple[str, ...]) -> list[str]:
        return [str(self.environment / "bin" / command[0]), *command[1:]]


def build(directory: Path, out: Path) -> Dist:
    """The sdist of a directory, and the wheel of the sdist."""
    command = [sys.executable, "-m", "build", "--outdir", str(out), str(directory)]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=BUILD_S, env={**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return Dist(wheel, sdist)


@pytest.fixture(scope="package")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Dist:
    return build(ROOT, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="package")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same files elsewhere, with other times and modes."""
    directory = tmp_path_factory.mktemp("copied")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, directory / name, copy_function=shutil.copy)
        else:
            shutil.copy(ROOT / name, directory / name)
    for path in directory.rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
        path.chmod(0o700 if path.is_dir() else 0o600)
    return directory


def install(environment: Path, requirement: str) -> None:
    """Into an environment that has no pip of its own."""
    python = str(environment / "bin" / "python")
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-compile", requirement]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=INSTALL_S)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="package")
def installed(dist: Dist, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    """Not even pip is in there. It is a gigabyte, so it does not outlive the tests."""
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    install(environment, str(dist.wheel))
    yield Installed(environment, tmp_path_factory.mktemp("home"))
    shutil.rmtree(environment)
