"""``python -m service``: serve a checkpoint. Every setting is a flag and a variable; the flag wins."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import resource
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

from pydantic import ValidationError

from model.checkpoint.manifest import MANIFEST
from service.app import create_app
from service.background import Background
from service.http.server import Server
from service.settings import Settings, temporary_cache
from service.settings_table import default_text, is_secret
from service.state import Service
from service.telemetry import lines, logs

INTERRUPTED = 130
POLL_S = 0.02
OTHERS_VARIABLES = frozenset({"FOLIO_DATA", "FOLIO_URL", "FOLIO_API_KEY"})
"""What training and the client read."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; the list of all settings would bury it."""

    def error(self, message: str) -> NoReturn:
        """Ends the process."""
        self.exit(2, f"{self.prog}: {message} (--help lists all settings)\n")


def parse_args(argv: Sequence[str] | None) -> Settings:
    """The settings. Ends the process with one line on what is wrong with them."""
    parser = Parser(prog="folio-serve", description=__doc__, allow_abbrev=False)
    for name, field in Settings.model_fields.items():
        if is_secret(field):
            continue  # a key on a command line is there for everyone to read: variables and files only
        text = f"{field.description} [FOLIO_{name.upper()}; default: {default_text(field) or 'none'}]".replace("%", "%%")
        flag = "--" + name.replace("_", "-")
        if field.annotation is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
        else:
            parser.add_argument(flag, default=argparse.SUPPRESS, metavar="VALUE", help=text)
    given = vars(parser.parse_args(argv))
    try:
        settings = Settings(**given)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        where = "".join(f"--{str(part).replace('_', '-')} (FOLIO_{str(part).upper()}): " for part in first["loc"][:1])
        parser.error(where + first["msg"].removeprefix("Value error, "))
    known = {f"FOLIO_{name.upper()}" for name in Settings.model_fields} | OTHERS_VARIABLES
    for name in sorted(name for name in os.environ if name.startswith("FOLIO_") and name not in known):
        print(f"folio: there is no setting {name}; it is ignored", file=sys.stderr)
    if settings.cache == temporary_cache():
        print(f"folio: this user has no home directory; copies of checkpoints go to {settings.cache} (--cache)", file=sys.stderr)
    if not (settings.checkpoint / MANIFEST).is_file():
        parser.error(f"{settings.checkpoint} is no checkpoint: it has no {MANIFEST}")
    return settings


def raise_file_limit() -> None:
    """Each connection is a file; the soft limit is often 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def announce(server: Server, service: Service, started: float) -> None:
    """Say where the service is and what it runs on, once it does; end the server if it never will."""
    while not (server.started and service.engine.current) and service.engine.status.state != "failed":
        await asyncio.sleep(POLL_S)
    if (current := service.engine.current) is None:
        lines.stderr.write(f"folio: {service.engine.status.message or 'the engine failed to start'}")
        server.should_exit = True
        return
    lines.stdout.write(
        f"Folio serves {current.num_parameters:,} parameters ({current.id[:19]}) on {current.device}, "
        f"{current.kernels}, {service.engine.status.max_batch} texts at once ({current.memory_bytes >> 20} MB of cache); "
        f"ready in {time.monotonic() - started:.1f} s\n{server.address}\n"
        f"curl -N {server.address}/generate -H 'content-type: application/json' -d '{json_example(service)}'"
    )
    if current.note:
        lines.stdout.write(f"It could be faster: {current.note}")
    if not service.settings.client_keys():
        lines.stdout.write(f"No keys are set: anyone who can reach {service.settings.host} may use it.")


def json_example(service: Service) -> str:
    """A body to try, which the model at hand understands."""
    current = service.engine.current
    prompt = "ROMEO:" if current and not current.tokenizer.unknown("ROMEO:") else ""
    return f'{{"prompt":"{prompt}","max_new_tokens":500,"seed":7}}'


async def serve(settings: Settings, started: float) -> int:
    """Serve until a signal. The exit status: 0 after a graceful end, 1 if the engine never started."""
    app = create_app(settings)
    gc.freeze()  # what was imported stays: looking through it again and again would hold every stream up for 100 ms
    service: Service = app.state.service
    server = Server(app, settings)
    background = Background()
    background.start("announce", announce(server, service, started))
    try:
        await server.serve()
    except TimeoutError:
        pass
    except OSError as error:
        lines.stderr.write(f"folio: {settings.host}:{settings.port}: {error.strerror}")
        return 1
    finally:
        await background.close()
    if server.force_exit:
        return INTERRUPTED
    return 1 if service.engine.status.state == "failed" else 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    started = time.monotonic()
    lines.open_standard_files()
    settings = parse_args(argv)
    logs.configure(settings.log_level)
    raise_file_limit()
    import uvloop

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(serve(settings, started))
    finally:
        lines.close()


if __name__ == "__main__":
    sys.exit(main())
