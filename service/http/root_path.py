"""The path under which a proxy shows the service."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from service.state import Service


class RootPath:
    """Takes the prefix off where the proxy has left it on: layers and routes see the same paths behind every proxy."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self.prefix = service.settings.root_path + "/"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(self.prefix):
            scope["path"] = "/" + scope["path"].removeprefix(self.prefix)
        await self.app(scope, receive, send)
