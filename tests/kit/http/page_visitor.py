"""A browser without scripts, for tests of the page: it keeps cookies, and sends the forms that it was given."""

import html
import re
from dataclasses import dataclass, field

import httpx

from fluxpool_gateway.http.app import GatewayApplication

_TOKEN = re.compile(r'name="form_token" value="([0-9a-f]{64})"')
HTML = {"accept": "text/html"}


@dataclass(slots=True)
class Visitor:
    """One browser; `base` is the gateway as it sees it."""

    app: GatewayApplication
    base: str = "http://gateway"
    cookies: httpx.Cookies = field(default_factory=httpx.Cookies)

    async def get(self, path: str, *, headers: dict[str, str] = HTML) -> httpx.Response:
        """The response to one request; redirects are not followed."""
        return await self._ask("GET", path, headers=headers)

    async def post(self, path: str, *, token: str | None = None, **fields: str | list[str]) -> httpx.Response:
        """Send a form, with the token of this browser's own forms unless another is given."""
        form = {"form_token": await self.token() if token is None else token, **fields}
        return await self._ask("POST", path, data=form, headers={**HTML, "sec-fetch-site": "same-origin"})

    async def token(self) -> str:
        """Of the forms that this browser is shown."""
        for path in ("/ui/login", "/ui/create"):
            found = _TOKEN.search((await self.get(path)).text)
            if found is not None:
                return found[1]
        raise AssertionError("no form has a token")

    async def log_in(self, key: str, *, following: str = "") -> httpx.Response:
        """Send the form to log in."""
        return await self.post("/ui/login", key=key, next=following)

    async def _ask(self, method: str, path: str, **arguments: object) -> httpx.Response:
        transport = httpx.ASGITransport(app=self.app)
        async with httpx.AsyncClient(transport=transport, base_url=self.base, cookies=self.cookies) as client:
            response = await client.request(method, path, **arguments)  # type: ignore[arg-type]
            self.cookies = client.cookies
            return response


def text_of(response: httpx.Response) -> str:
    """What a reader sees of the main part, in one line."""
    main = response.text[response.text.index("<main") :]
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", main))).strip()
