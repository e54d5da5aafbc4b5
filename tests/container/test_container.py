"""What docker-compose.yml promises, on a real engine: serving with nothing set, hardening, draining, other checkpoints, training."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import httpx
import pytest

from model.checkpoint.manifest import read_manifest
from service.http.server import FLUSH_S
from service.settings import Settings
from tests.container.conftest import FIGURES, Deploy
from tests.container.deployment import ROOT, Deployment, build, checkpoint_id, docker
from tests.support.checkpoints import make_checkpoint
from tests.support.wait import wait_for

pytestmark = [pytest.mark.container, pytest.mark.timeout(900)]
BODY = {"prompt": "ROMEO:", "max_new_tokens": 500, "seed": 7}
CODE = (
    *("model", "training", "service", "deploy", "pyproject.toml", "hatch_build.py"),
    *("README.md", "LICENSE", "Dockerfile", ".dockerignore"),
)
REBUILD_S = 30


def events(answer: httpx.Response) -> Iterator[tuple[str, dict[str, object]]]:
    """(kind, data) of each event."""
    kind = ""
    for line in answer.iter_lines():
        if line.startswith("event: "):
            kind = line[7:]
        elif line.startswith("data: "):
            yield kind, json.loads(line[6:])


def test_the_files_are_valid() -> None:
    """With every profile; one GPU is reserved, and none with the override for CPUs."""
    for files, devices in (["docker-compose.yml"], 1), (["docker-compose.yml", "deploy/compose.cpu.yml"], 0):
        arguments = [part for file in files for part in ("--file", file)]
        services = json.loads(docker("compose", *arguments, "--profile", "*", "config", "--format", "json").stdout)["services"]
        for name in ("folio", "train"):
            assert len(services[name]["deploy"]["resources"]["reservations"].get("devices", [])) == devices, name
        grace = float(services["folio"]["stop_grace_period"].removesuffix("s"))
        assert grace > Settings.model_fields["grace_s"].default + FLUSH_S


def test_it_serves_the_shipped_checkpoint_with_nothing_set(deployed: Deployment) -> None:
    shipped = read_manifest(ROOT / "model" / "pretrained").id
    with deployed.http.stream("POST", "/generate", json=BODY) as answer:
        assert answer.headers["X-Checkpoint"] == shipped
        *pieces, (kind, end) = events(answer)
    assert kind == "end"
    assert "".join(str(data["text"]) for _, data in pieces) == end["text"]
    assert len(str(end["text"])) == 500
    kernels = deployed.http.get("/info").json()["model"]["kernels"]
    assert kernels.startswith(("native-", "cuda")), "the image's compiler was of no use"
    assert deployed.http.get("/info").json()["version"] == version("folio")
    assert deployed.inspect('{{index .Config.Labels "org.opencontainers.image.version"}}') == version("folio")
    assert deployed.inside("folio-generate", "ROMEO:", "--max-new-tokens", "9", "--url", str(deployed.http.base_url)).strip()


def test_nobody_in_it_has_a_right_too_many(deployed: Deployment, has_gpu_driver: bool) -> None:
    assert deployed.inside("id", "-u").strip() == "10001"
    status = dict(line.split(":\t", 1) for line in deployed.inside("cat", "/proc/1/status").splitlines() if ":\t" in line)
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert status["NoNewPrivs"] == "1"
    for path in ("/", "/app", "/opt/venv", "/folio", "/folio/runs"):
        assert "refused" in deployed.inside("sh", "-c", f"touch {path}/x 2>/dev/null || echo refused"), path
    assert "tini" in deployed.inside("cat", "/proc/1/cmdline")
    assert deployed.inspect("{{.HostConfig.ReadonlyRootfs}} {{.HostConfig.PidsLimit}} {{.Config.StopSignal}}") == "true 1024 SIGTERM"
    assert ("nvidia" in deployed.inspect("{{json .HostConfig.DeviceRequests}}")) is has_gpu_driver


def test_a_live_stream_ends_whole_when_the_service_is_stopped(deploy: Deploy) -> None:
    """`docker compose stop` during a stream: the stream goes on to its end, a new request is refused, the exit status is 0."""
    own = deploy()
    slow = {"prompt": "ROMEO:\n" * 50, "seed": 7, "context": "sliding"}  # the context is full: each token is encoded afresh
    spent = own.http.post("/generate", json=slow | {"max_new_tokens": 50, "stream": False}).json()["timings"]["total_ms"] / 1000
    tokens = min(4096, round(50 * 4 / spent))  # some four seconds of text
    stopping = threading.Thread(target=own.compose, args=("stop", "folio"))
    text, end, refused = "", None, 0
    with own.http.stream("POST", "/generate", json=slow | {"max_new_tokens": tokens}) as answer:
        for kind, data in events(answer):
            if kind:
                assert kind == "end", data
                end = data
            elif not text:
                stopping.start()
                wait_for(lambda: own.http.get("/readyz").status_code == 503)
                refused = own.http.post("/generate", json=BODY).status_code
            text += str(data["text"]) if not kind else ""
    stopping.join()
    assert refused == 503
    assert end is not None, "the stream was cut"
    assert text == end["text"]
    assert len(text) == tokens
    assert own.inspect("{{.State.ExitCode}}") == "0"


def test_a_mounted_checkpoint_replaces_the_shipped_one_and_keys_come_from_a_file(deploy: Deploy, tmp_path: Path) -> None:
    runs, keys = tmp_path / "runs", tmp_path / "keys"
    runs.mkdir(mode=0o755)
    make_checkpoint(runs / "mine", seed=1)
    keys.write_text("the-key\n")
    own = deploy(FOLIO_RUNS=str(runs), FOLIO_CHECKPOINT="runs/mine", FOLIO_API_KEYS_FILE=str(keys))
    body = {"prompt": "abc", "max_new_tokens": 20, "seed": 7, "stream": False}
    assert own.http.post("/generate", json=body).status_code == 401
    answer = own.http.post("/generate", json=body, headers={"Authorization": "Bearer the-key"})
    assert answer.json()["checkpoint"] == read_manifest(runs / "mine").id
    assert "the-key" not in own.inspect("{{json .Config.Env}}")


def test_what_is_trained_is_promoted(deployed: Deployment, tmp_path: Path) -> None:
    """The train profile writes a run into the volume; the service, which goes on running, serves its best checkpoint."""
    text = tmp_path / "text.txt"
    text.write_text("To be, or not to be, that is the question:\n" * 200)
    deployed.environment["FOLIO_DATA"] = str(text)
    small = ("--preset", "smoke", "--max-iters", "20", "--eval-interval", "20", "--out", "runs/default")
    before = deployed.serving
    deployed.compose("run", "--rm", "-T", "train", *small)
    best = checkpoint_id(deployed.inside("cat", "runs/default/best/manifest.json"))
    assert best != before
    wait_for(lambda: deployed.serving == best)
    answer = deployed.http.post("/generate", json={"prompt": "To be", "max_new_tokens": 20, "seed": 1, "stream": False})
    assert answer.json()["checkpoint"] == best


def test_a_change_of_code_is_built_in_seconds(images: None, tmp_path: Path) -> None:
    for name in CODE:
        source = ROOT / name
        shutil.copytree(source, tmp_path / name) if source.is_dir() else shutil.copy(source, tmp_path / name)
    with (tmp_path / "service" / "__init__.py").open("a") as file:
        file.write(f"# a change that no build has seen: {time.time_ns()}\n")
    seconds = build("service", "folio-service-changed", tmp_path)
    docker("image", "rm", "folio-service-changed")
    FIGURES.append(f"built again after a change of code in {seconds:.1f} s")
    assert seconds < REBUILD_S
