"""Where a request is for: under a path at which a proxy shows the server, and HEAD on every route that answers GET."""

from __future__ import annotations

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from workflow.server.settings import ServeSettings


def root_path(settings: ServeSettings) -> str:
    """The path under which the server is shown: empty, or with a slash in front and none behind."""
    stripped = settings.server.root_path.strip("/")
    return f"/{stripped}" if stripped else ""


class Prefix:
    """Takes the prefix off paths, where the proxy has not; tells the app where it stands."""

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self.app = app
        self.prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs one request."""
        if scope["type"] == "http":
            if scope["path"] == self.prefix:  # the page's links stand beside it, so its path must end in a slash
                query = scope["query_string"].decode("latin-1")
                await RedirectResponse(f"{self.prefix}/" + (f"?{query}" if query else ""), 308)(scope, receive, send)
                return
            scope["path"] = scope["path"].removeprefix(self.prefix) if self._is_inside(scope["path"]) else scope["path"]
            # Starlette takes a root_path off every path that begins with it, as /v1/completions behind /v1 does by itself.
            scope["root_path"] = "" if self._is_inside(scope["path"]) else self.prefix
        await self.app(scope, receive, send)

    def _is_inside(self, path: str) -> bool:
        return path.startswith(self.prefix + "/")


class HeadAsGet:
    """Answers HEAD as GET without the body."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs one request."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        async def bodiless(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        asked = {**scope, "method": "GET"}
        try:
            await self.app(asked, receive, bodiless)
        finally:
            scope.update({**asked, "method": "HEAD"})
