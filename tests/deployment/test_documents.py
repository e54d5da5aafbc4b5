"""docs/deployment.md and the proxies' files say what the service does."""

from __future__ import annotations

import re

from service.api.schemas import GenerateBody
from service.engine.interface import Engine
from service.settings import Settings
from service.telemetry.metrics import Metrics
from tests.deployment.proxies import DEPLOY
from tests.service.fakes import FakeEngine
from tests.support.server import ROOT

PAGE = (ROOT / "docs" / "deployment.md").read_text()
NGINX = (DEPLOY / "nginx.conf").read_text()
DEFAULTS = {name: field.get_default(call_default_factory=True) for name, field in Settings.model_fields.items()}


def value(name: str) -> float:
    """A number of nginx.conf, in bytes or seconds."""
    found = re.search(rf"^ *{name} ([0-9]+)(m|s);", NGINX, re.MULTILINE)
    assert found, name
    return int(found[1]) * (1 << 20 if found[2] == "m" else 1)


def test_nginx_has_the_limits_of_the_service() -> None:
    assert value("client_max_body_size") == value("client_body_buffer_size") == DEFAULTS["max_body_bytes"]
    assert value("send_timeout") == DEFAULTS["write_timeout_s"]
    assert value("keepalive_timeout") < DEFAULTS["idle_timeout_s"]
    assert value("proxy_read_timeout") > GenerateBody.model_fields["timeout_s"].default


def test_every_setting_of_the_page_exists() -> None:
    found = set(re.findall(r"FOLIO_([A-Z_]+)", PAGE))
    assert len(found) > 10
    compose = set(re.findall(r"FOLIO_([A-Z_]+)", (ROOT / "docker-compose.yml").read_text()))  # has some of its own
    assert found <= {name.upper() for name in Settings.model_fields} | compose


def test_every_metric_of_the_page_exists() -> None:
    engine: Engine = FakeEngine()
    registry = Metrics(engine).registry
    metrics = list(registry.collect())
    names = {sample.name for metric in metrics for sample in metric.samples} | {metric.name for metric in metrics}
    names |= {f"{metric.name}_total" for metric in metrics if metric.type == "counter"}  # one with a key has no sample before its first
    found = set(re.findall(r"\b(folio_[a-z_]+)", PAGE)) - {"folio_addresses"}
    assert len(found) > 5
    assert found <= names
