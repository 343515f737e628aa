"""An application that says what it was asked for: between a client and the application."""

from dataclasses import dataclass, field

from starlette.types import ASGIApp, Receive, Scope, Send


@dataclass(slots=True)
class RecordedRequests:
    """The application, the paths of its requests, and what is kept from being answered."""

    app: ASGIApp
    asked: list[str] = field(default_factory=list)
    """In order; also what is not answered."""
    silent: str | None = None
    """Requests whose path ends so get no answer, until their client is gone."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self.asked.append(scope["path"])
            if self.silent is not None and scope["path"].endswith(self.silent):
                await receive()
                assert (await receive())["type"] == "http.disconnect"
                return
        await self.app(scope, receive, send)
