"""Who may ask: keys, and names. A route is closed unless it is listed here, so a new one cannot be forgotten."""

from __future__ import annotations

import hashlib
import hmac

from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import ApiError
from service.request_state import request_state
from service.settings import ADMIN, is_loopback
from service.state import Service

OPEN_PATHS = frozenset({"/", "/health", "/healthz", "/readyz", "/favicon.ico"})
OPEN_PREFIX = "/playground/"
OPEN_METHODS = ("GET", "HEAD")
ADMIN_PREFIX = "/admin"


def hashed(key: bytes) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(key).digest()


class Auth:
    """401 without a valid key, 403 with one that is not the admin's on an admin route."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self.keys = {name: hashed(key.encode()) for name, key in service.settings.client_keys().items()}
        admin = service.settings.admin_secret()
        self.admin = hashed(admin.encode()) if admin else None
        self.known = self.keys | ({ADMIN: self.admin} if self.admin else {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self.check(scope)
        await self.app(scope, receive, send)

    def check(self, scope: Scope) -> None:
        """Raises ApiError."""
        path, state = scope["path"], request_state(scope)
        is_admin_route = path == ADMIN_PREFIX or path.startswith(ADMIN_PREFIX + "/")
        if not is_admin_route and (not self.keys or is_open(scope["method"], path)):
            return
        if is_admin_route and self.admin is None and not self.keys:
            raise ApiError("forbidden", "no admin key is configured")
        state.key = self.identify(scope)
        if is_admin_route and state.key != ADMIN:
            raise ApiError("forbidden", "this route takes the admin key" if self.admin else "no admin key is configured")

    def identify(self, scope: Scope) -> str:
        """The name of the valid key that a request carries. Every key is compared, whichever matches. Raises ApiError."""
        values = [value for name, value in scope["headers"] if name == b"authorization"]
        scheme, _, key = (values[0].rstrip(b" \t") if len(values) == 1 else b"").partition(b" ")
        digest = hashed(key)
        matches = [name for name, known in self.known.items() if hmac.compare_digest(digest, known)]
        if scheme.lower() != b"bearer" or not matches:
            raise ApiError("unauthorized", "a valid key is needed: Authorization: Bearer KEY", param="Authorization")
        return matches[-1]  # the admin key is the last, should it be a client's too


class AllowedHosts:
    """421 for a server without keys that is asked by a name which is not its own.

    A page of anybody's can let its own name point to 127.0.0.1 (DNS rebinding) and so reach a server there; only ``Host`` tells.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        settings = service.settings
        by_default = () if is_loopback(settings.host) else None
        names = by_default if settings.allowed_hosts is None else settings.allowed_hosts
        self.names = None if names is None or settings.client_keys() else frozenset(name.lower() for name in names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.names is not None:
            host = next((value for name, value in scope["headers"] if name == b"host"), b"localhost")
            name = host_name(host.decode("latin-1"))
            if not (is_loopback(name) or name.endswith(".localhost") or name in self.names):
                message = "without keys this server is asked by its own names only: FOLIO_ALLOWED_HOSTS adds some"
                raise ApiError("misdirected_request", message, param="Host")
        await self.app(scope, receive, send)


def host_name(host: str) -> str:
    """What of a ``Host`` header is not the port."""
    return host.rpartition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0].rstrip(".").lower()


def is_open(method: str, path: str) -> bool:
    """Whether a request needs no key: the probes and the playground's static files."""
    return method in OPEN_METHODS and (path in OPEN_PATHS or path.startswith(OPEN_PREFIX))
