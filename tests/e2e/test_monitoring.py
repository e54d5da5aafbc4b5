"""A real Prometheus with the shipped configuration, on a real service: every query of the dashboard and of the alerts has an answer."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import Start
from tests.support.ports import free_port
from tests.support.server import Server
from tests.support.wait import LIMIT_S, wait_for

MONITORING = Path(__file__).parents[2] / "deploy" / "monitoring"
DASHBOARD = json.loads((MONITORING / "grafana" / "dashboards" / "folio.json").read_text())
QUERIES = {target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]}
ALERTS = (MONITORING / "alerts.yml").read_text()
SEARCH = f"{Path(sys.executable).parent}:/usr/bin:/usr/local/bin"
PROMETHEUS, PROMTOOL = shutil.which("prometheus", path=SEARCH), shutil.which("promtool", path=SEARCH)
needs_prometheus = pytest.mark.skipif(not (PROMETHEUS and PROMTOOL), reason="Prometheus is not installed: scripts/install-prometheus")
KEY = "a-key-for-prometheus"


class Prometheus:
    """The shipped files, but for the target's address, the key's place, and patience: a second instead of five or fifteen."""

    def __init__(self, server: Server, directory: Path, key: str) -> None:
        (directory / "key").write_text(key)
        shutil.copy(MONITORING / "alerts.yml", directory)
        text = (MONITORING / "prometheus.yml").read_text()
        for shipped, here in (
            ("folio:8000", f"127.0.0.1:{server.port}"),
            ("/run/secrets/metrics_key", str(directory / "key")),
            ("scrape_interval: 5s", "scrape_interval: 1s"),
            ("evaluation_interval: 15s", "evaluation_interval: 1s"),
        ):
            assert shipped in text
            text = text.replace(shipped, here)
        self.config = directory / "prometheus.yml"
        self.config.write_text(text)
        address = f"127.0.0.1:{free_port()}"
        command = [str(PROMETHEUS), f"--config.file={self.config}", f"--storage.tsdb.path={directory / 'data'}"]
        self.log = (directory / "log").open("w")
        self.process = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=self.log, stderr=self.log)
        self.http = httpx.Client(base_url=f"http://{address}/api/v1", timeout=LIMIT_S, trust_env=False)

    def get(self, path: str, **params: str) -> Any:
        """The data of an answer; None while it is not up."""
        try:
            answer = self.http.get(path, params=params)
        except httpx.TransportError:
            assert self.process.poll() is None, "Prometheus has ended"
            return None
        if answer.status_code == 503:  # it is starting
            return None
        assert answer.json()["status"] == "success", (params, answer.text)
        return answer.json()["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Its samples that are numbers."""
        data = self.get("/query", query=expression.replace("$__rate_interval", "1m"))
        return [sample for sample in data["result"] if sample["value"][1] != "NaN"] if data else []

    def alerts(self) -> dict[str, str]:
        """Those that are pending or fire."""
        return {alert["labels"]["alertname"]: alert["state"] for alert in (self.get("/alerts") or {"alerts": []})["alerts"]}

    def close(self) -> None:
        self.http.close()
        self.process.terminate()
        self.process.wait(LIMIT_S)
        self.log.close()


@pytest.fixture
def watched(start: Start, tmp_path: Path) -> Iterator[tuple[Server, Prometheus]]:
    server = start(variables={"FOLIO_API_KEYS": KEY})
    prometheus = Prometheus(server, tmp_path, KEY)
    yield server, prometheus
    prometheus.close()


def test_the_service_has_every_metric_that_is_asked_for(server: Server) -> None:
    known = set(re.findall(r"^(folio_\w+)", server.http.get("/metrics").text, re.MULTILINE))
    asked = {name for text in (*QUERIES, ALERTS) for name in re.findall(r"folio_\w+", text)}
    assert len(asked) > 12
    assert asked <= known


@needs_prometheus
def test_the_rules_and_the_configuration_are_valid(server: Server, tmp_path: Path) -> None:
    prometheus = Prometheus(server, tmp_path, KEY)
    prometheus.close()
    for arguments in (["check", "rules", str(MONITORING / "alerts.yml")], ["check", "config", str(prometheus.config)]):
        done = subprocess.run([str(PROMTOOL), *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@needs_prometheus
def test_every_query_is_answered(watched: tuple[Server, Prometheus]) -> None:
    """Also behind keys; and the alert that nothing answers is raised when nothing does."""
    server, prometheus = watched
    wait_for(lambda: prometheus.query('up{job="folio"} == 1'), "the service is not scraped")
    headers = {"Authorization": f"Bearer {KEY}"}

    def answer(expression: str) -> list[dict[str, Any]]:
        """To a query, under traffic: a rate needs a change, and time between tokens more of them than one burst has."""
        assert server.post(headers=headers, prompt="abc", max_new_tokens=2000, stream=False).status_code == 200
        assert server.post(headers=headers, prompt="abc", max_new_tokens=-1).status_code == 422
        return prometheus.query(expression)

    for expression in sorted(QUERIES):
        wait_for(partial(answer, expression), f"no answer to {expression}")
    rules = [rule for group in prometheus.get("/rules")["groups"] for rule in group["rules"]]
    assert len(rules) == ALERTS.count("- alert:")
    wait_for(lambda: all(rule["health"] == "ok" for group in prometheus.get("/rules")["groups"] for rule in group["rules"]), "a rule fails")
    assert prometheus.alerts() == {}
    server.process.kill()
    wait_for(lambda: "FolioDown" in prometheus.alerts(), "nobody is told that the service is gone")


@needs_prometheus
def test_an_empty_key_file_will_do_for_a_service_without_keys(server: Server, tmp_path: Path) -> None:
    prometheus = Prometheus(server, tmp_path, "")
    try:
        wait_for(lambda: prometheus.query('up{job="folio"} == 1'), "the service is not scraped")
    finally:
        prometheus.close()


def test_the_dashboard_names_no_data_source() -> None:
    """One with a fixed uid is empty in every Grafana but the one that it was made in."""
    (variable,) = DASHBOARD["templating"]["list"]
    assert (variable["type"], variable["query"]) == ("datasource", "prometheus")
    sources = [panel["datasource"] for panel in DASHBOARD["panels"]] + [t["datasource"] for p in DASHBOARD["panels"] for t in p["targets"]]
    assert {source["uid"] for source in sources} == {f"${{{variable['name']}}}"}
