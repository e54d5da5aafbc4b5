"""The images, built once; and their figures, printed at the end. Only `make test-container` asks for these tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.container.deployment import NO_DRIVER, Deployment, build, docker

Deploy = Callable[..., Deployment]
FIGURES: list[str] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip these tests unless they are asked for by their marker: the first build takes minutes."""
    if "container" not in config.option.markexpr:
        for item in items:
            if item.get_closest_marker("container"):
                item.add_marker(pytest.mark.skip(reason="make test-container runs it"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for figure in FIGURES:
        terminalreporter.write_line(f"container: {figure}")


def size_mb(image: str) -> int:
    return int(docker("image", "inspect", "--format", "{{.Size}}", image).stdout) // 1_000_000


@pytest.fixture(scope="session")
def images() -> None:
    """``folio-service`` and ``folio-training``, as they are now."""
    for target in ("service", "training"):
        seconds = build(target, f"folio-{target}")
        FIGURES.append(f"folio-{target} built in {seconds:.0f} s, {size_mb(f'folio-{target}')} MB")


@pytest.fixture(scope="session")
def has_gpu_driver(images: None) -> bool:
    """Whether the engine takes a GPU reservation. Where it does not, its message is the one that the README quotes."""
    trial = docker("run", "--rm", "--network", "none", "--gpus", "1", "--entrypoint", "true", "folio-service", check=False)
    assert trial.returncode == 0 or NO_DRIVER in trial.stderr, trial.stderr
    return trial.returncode == 0


@pytest.fixture(scope="session")
def deployed(has_gpu_driver: bool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """The shipped file with nothing set, GPU reservation included, ready; for tests that leave it running."""
    deployment = Deployment("shipped", tmp_path_factory.mktemp("shipped"), gpu=has_gpu_driver)
    try:
        FIGURES.append(f"up and healthy in {deployment.up():.1f} s")
        yield deployment
    finally:
        deployment.down()


@pytest.fixture
def deploy(has_gpu_driver: bool, tmp_path: Path) -> Iterator[Deploy]:
    """``deploy(FOLIO_CHECKPOINT="runs/mine")``: a deployment of one's own, ready, which ends with the test."""
    deployments: list[Deployment] = []

    def begin(**variables: str) -> Deployment:
        deployments.append(Deployment(f"own-{len(deployments)}", tmp_path, gpu=has_gpu_driver, **variables))
        deployments[-1].up()
        return deployments[-1]

    yield begin
    for deployment in deployments:
        deployment.down()
