"""The real nginx and the real Caddy before a real service, with the files of deploy/ and nothing in them changed but ports and paths."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.support.certificates import make_certificate
from tests.support.ports import free_port
from tests.support.server import ROOT
from tests.support.wait import LIMIT_S, wait_for

DEPLOY = ROOT / "deploy"
NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
CADDY = shutil.which("caddy")

NGINX_MAIN = """
daemon off;
worker_processes 1;
pid nginx.pid;
error_log stderr notice;
events {}
http {
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxied;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    include folio.conf;
}
"""
CADDY_OPTIONS = """{
    admin off
    http_port %d
    https_port %d
    skip_install_trust
}
"""


def substitute(text: str, values: dict[str, str]) -> str:
    """The text with every key of ``values`` replaced; each must be there."""
    for old, new in values.items():
        assert old in text, f"there is no {old!r} any more"
        text = text.replace(old, new)
    return text


class Proxy(ABC):
    """A reverse proxy in a directory of its own, run by nobody where the tests are run by root: it needs no privilege."""

    command: list[str]
    environment: dict[str, str]

    def __init__(self, upstream_port: int) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="folio-proxy-"))
        self.http_port, self.port = free_port(), free_port()
        self.url = f"https://localhost:{self.port}"
        self.environment = {**os.environ, "HOME": str(self.directory), "XDG_DATA_HOME": "", "XDG_CONFIG_HOME": ""}
        self.authority = self.configure(upstream_port)
        """The certificate to trust."""
        if os.geteuid() == 0:
            for path in (self.directory, *self.directory.iterdir()):
                shutil.chown(path, "nobody", "nogroup")
        try:
            self.start()
        except BaseException:
            self.close()
            raise

    @abstractmethod
    def configure(self, upstream_port: int) -> Path:
        """Write the configuration and set ``command``. The certificate that clients have to trust."""

    def start(self) -> None:
        """Returns once a client that trusts its certificate can talk to it."""
        privileges: dict[str, Any] = {"user": "nobody", "group": "nogroup", "extra_groups": ()} if os.geteuid() == 0 else {}
        with (self.directory / "log").open("a") as log:
            self.process = subprocess.Popen(
                self.command, cwd=self.directory, env=self.environment, stdout=log, stderr=log, start_new_session=True, **privileges
            )
        wait_for(self.answers, self.logged)

    def answers(self) -> bool:
        """Whether a handshake succeeds; Caddy listens before it has made its certificate."""
        assert self.process.poll() is None, self.logged()
        try:
            context = ssl.create_default_context(cafile=self.authority)
            with socket.create_connection(("127.0.0.1", self.port), timeout=LIMIT_S) as sock:
                context.wrap_socket(sock, server_hostname="localhost").close()
        except OSError:
            return False
        return True

    def logged(self) -> str:
        return (self.directory / "log").read_text()

    def kill(self) -> None:
        """All of its processes at once, without a farewell."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(LIMIT_S)

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()
        shutil.rmtree(self.directory)


class Nginx(Proxy):
    """nginx with deploy/nginx.conf."""

    def configure(self, upstream_port: int) -> Path:
        cert, key = make_certificate(self.directory)
        values = {
            "127.0.0.1:8000": f"127.0.0.1:{upstream_port}",
            "listen 80;": f"listen {self.http_port};",
            "listen 443 ": f"listen {self.port} ",
            "/etc/letsencrypt/live/folio.example.com/fullchain.pem": str(cert),
            "/etc/letsencrypt/live/folio.example.com/privkey.pem": str(key),
            "/var/log/nginx/": f"{self.directory}/",
        }
        (self.directory / "folio.conf").write_text(substitute((DEPLOY / "nginx.conf").read_text(), values))
        (self.directory / "main.conf").write_text(NGINX_MAIN)
        assert NGINX is not None
        self.command = [NGINX, "-p", str(self.directory), "-c", "main.conf", "-e", "stderr"]
        return cert

    def move(self, old_port: int, new_port: int) -> None:
        """Send new requests to another service, as by an editor and ``nginx -s reload``."""
        site = self.directory / "folio.conf"
        site.write_text(substitute(site.read_text(), {f"127.0.0.1:{old_port}": f"127.0.0.1:{new_port}"}))
        self.process.send_signal(signal.SIGHUP)

    def workers(self) -> set[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return set(map(int, children.read_text().split()))


class Caddy(Proxy):
    """Caddy with deploy/Caddyfile; for localhost it makes an authority of its own instead of asking one for a certificate."""

    def configure(self, upstream_port: int) -> Path:
        values = {"127.0.0.1:8000": f"127.0.0.1:{upstream_port}", "\nfolio.example.com {": f"\nlocalhost:{self.port} {{"}
        site = substitute((DEPLOY / "Caddyfile").read_text(), values)
        (self.directory / "Caddyfile").write_text(CADDY_OPTIONS % (self.http_port, self.port) + site)
        assert CADDY is not None
        self.command = [CADDY, "run", "--config", "Caddyfile", "--adapter", "caddyfile"]
        self.environment = {**self.environment, "XDG_DATA_HOME": str(self.directory / "data")}
        return self.directory / "data" / "caddy" / "pki" / "authorities" / "local" / "root.crt"


def connections_to(port: int) -> set[int]:
    """The local ports of the established connections to a port of this machine."""
    return {
        int(local.rpartition(":")[2], 16)
        for local, remote, state in established(Path("/proc/net/tcp").read_text().splitlines()[1:])
        if int(remote.rpartition(":")[2], 16) == port and state == "01"
    }


def established(lines: Iterable[str]) -> Iterable[tuple[str, str, str]]:
    """(local address, remote address, state) of each line of /proc/net/tcp."""
    for line in lines:
        _, local, remote, state, *_ = line.split()
        yield local, remote, state
