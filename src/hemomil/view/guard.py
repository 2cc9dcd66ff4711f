"""Who may ask the viewer, and what a browser may do with its answers."""

import ipaddress
import socket
from dataclasses import dataclass
from hmac import compare_digest
from typing import Any
from urllib.parse import urlsplit

from tornado.web import HTTPError, RequestHandler, StaticFileHandler

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Server": "hemomil",
}
LOOPBACK_NAME = "localhost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """What a request must bring: a host name that is ours and, where there is one, the token."""

    host: str
    port: int
    token: str | None

    @property
    def cookie(self) -> str:
        """Name of the cookie with the token: cookies are shared by all ports of a host."""
        return f"hemomil-{self.port}"

    def knows_host(self, asked: str) -> bool:
        """Whether a Host header can be meant for us, and is no strange name that leads here (DNS rebinding).

        The port may be another one, as behind an SSH tunnel.
        """
        try:
            name = urlsplit(f"//{asked}").hostname or ""
        except ValueError:
            return False
        if name in (LOOPBACK_NAME, self.host.lower()):
            return True
        if is_loopback(self.host):
            return _is_address(name) and is_loopback(name)
        return _is_address(name) or name in (socket.gethostname().lower(), socket.getfqdn().lower())

    def knows_token(self, given: str | None) -> bool:
        """Whether the token is right, or none is needed."""
        if self.token is None:
            return True
        return given is not None and compare_digest(given.encode(), self.token.encode())


def is_loopback(host: str) -> bool:
    """Whether a name or address can be reached from this computer only."""
    if host.lower() == LOOPBACK_NAME:
        return True
    return _is_address(host) and ipaddress.ip_address(host).is_loopback


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class Guarded(RequestHandler):
    """Every answer: only to whom the guard knows, and with the headers that bind the browser."""

    @property
    def guard(self) -> Guard:
        """The guard of this server."""
        guard: Guard = self.application.settings["guard"]
        return guard

    def set_default_headers(self) -> None:
        """Also on errors."""
        for name, value in HEADERS.items():
            self.set_header(name, value)

    def prepare(self) -> None:
        """Refuse before anything is read."""
        if not self.guard.knows_host(self.request.host):
            raise HTTPError(403, reason="Unknown host name")
        given = self.get_query_argument("token", None)
        if given is not None and self.guard.token is not None and self.guard.knows_token(given):
            # the page itself is answered, not a redirect: a strict cookie would be left out of that
            self.set_cookie(self.guard.cookie, given, httponly=True, samesite="Strict", path="/")
        elif not self.guard.knows_token(self.get_cookie(self.guard.cookie)):
            raise HTTPError(403, reason="Open the address with the token that hemomil view printed")
        if self.request.method not in ("GET", "HEAD"):
            self._refuse_foreign()

    def _refuse_foreign(self) -> None:
        """A page of another site can send a request, but not with our origin or as JSON."""
        ours = [f"{scheme}://{self.request.host}" for scheme in ("http", "https")]
        if self.request.headers.get("Origin") not in ours:
            raise HTTPError(403, reason="Foreign origin")
        if self.request.headers.get("Content-Type", "").partition(";")[0].strip() != "application/json":
            raise HTTPError(415, reason="JSON is needed")

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """The reason as plain text: nothing of the request is repeated."""
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(self._reason)


class Files(Guarded, StaticFileHandler):
    """The page's own files."""

    def set_extra_headers(self, path: str) -> None:
        """A newer version must not meet an older page's files."""
        self.set_header("Cache-Control", "no-cache")
