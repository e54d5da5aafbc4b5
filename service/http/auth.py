"""Keys. Default-deny: a route is closed unless it is listed here, so a new one cannot be forgotten."""

from __future__ import annotations

import hashlib
import hmac

from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import ApiError
from service.request_state import RequestState, request_state
from service.state import Service

OPEN_PATHS = frozenset({"/", "/healthz", "/readyz", "/favicon.ico"})
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
        self.keys = [hashed(key.encode()) for key in service.settings.client_keys()]
        admin = service.settings.admin_secret()
        self.admin = hashed(admin.encode()) if admin else None

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
        digest = self.identify(scope, state)
        if is_admin_route and not (self.admin and hmac.compare_digest(digest, self.admin)):
            raise ApiError("forbidden", "this route takes the admin key" if self.admin else "no admin key is configured")

    def identify(self, scope: Scope, state: RequestState) -> bytes:
        """The hash of the valid key that a request carries. Every key is compared, whichever matches. Raises ApiError."""
        values = [value for name, value in scope["headers"] if name == b"authorization"]
        scheme, _, key = (values[0].rstrip(b" \t") if len(values) == 1 else b"").partition(b" ")
        digest = hashed(key)
        matches = [hmac.compare_digest(digest, known) for known in (*self.keys, *([self.admin] if self.admin else []))]
        if scheme.lower() != b"bearer" or not any(matches):
            raise ApiError("unauthorized", "a valid key is needed: Authorization: Bearer KEY", param="Authorization")
        state.key = digest.hex()[:12]
        return digest


def is_open(method: str, path: str) -> bool:
    """Whether a request needs no key: the probes and the playground's static files."""
    return method in OPEN_METHODS and (path in OPEN_PATHS or path.startswith(OPEN_PREFIX))
