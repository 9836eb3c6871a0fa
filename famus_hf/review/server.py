"""The server of the page: on the loopback interface, of the standard library, for those alone who have its address."""

import json
import secrets
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from socket import gethostname
from typing import Any
from urllib.parse import parse_qs, urlsplit

from famus_hf.errors import DataError, FaMUSError, SaveError, SettingsError, reason_of
from famus_hf.reporting.shown import TYPES
from famus_hf.review.journal import DecidedMeanwhile, Journal
from famus_hf.review.page import Review, content_policy, served_page

MAX_BODY = 2**16  # bytes
HEADERS = {
    "Content-Security-Policy": f"{content_policy()}; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
KEPT = "private, max-age=3600"  # of images, which are drawn again and again; addresses are of this start alone
Answer = tuple[HTTPStatus, str, bytes]


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches a server there."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class ReviewServer(ThreadingHTTPServer):
    """Shows the page, images and recordings, and writes decisions.

    Args:
        review: What is shown.
        journal: Where decisions are kept.
        host: Where it listens. Beyond the loopback interface the page's address has a token, without which it is not
            shown; requests of the page carry it everywhere.
        port: 0 takes one that is free.

    Raises:
        SettingsError: The port is taken, or there is no such host.
    """

    daemon_threads = True

    def __init__(self, review: Review, journal: Journal, host: str = "127.0.0.1", port: int = 0):
        self.review, self.journal, self.host = review, journal, host
        self.token, self.needs_token = secrets.token_urlsafe(24), not is_loopback(host)
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            where = f"{host}:{port}"
            raise SettingsError(
                f"no server can listen at {where} ({reason_of(error)}): choose another --port"
            ) from error

    @property
    def address(self) -> str:
        """What to open in a browser."""
        host = gethostname() if self.host == "0.0.0.0" else self.host
        return f"http://{host}:{self.server_port}/{f'?token={self.token}' if self.needs_token else ''}"

    def knows_as_itself(self, host: str) -> bool:
        """Return whether a request's Host is this server; on the loopback interface another one is a rebound name."""
        names = {self.host, "127.0.0.1", "localhost", "[::1]"}
        return self.needs_token or host in {f"{name}:{self.server_port}" for name in names}

    def page(self) -> str:
        """Return the page with the decisions as they are now. Raise DataError where the file of them is damaged."""
        return served_page(self.review, self.journal.read(), self.journal.path.name, self.token)

    def media(self, number: str) -> tuple[bytes, str] | None:
        """Return the image or recording of a suspect and its type; None where there is none."""
        if not number.isdecimal() or len(number) > 9 or int(number) >= len(self.review.suspects):
            return None
        return self.review.examples.content(self.review.suspects[int(number)])

    def decide(self, wanted: Any) -> int:
        """Write a decision that a page sends: `place` of the example, `label` or null, and what it had `before`.

        Raises:
            DataError: It is no decision, or another reviewer was before; also SaveError.
        """
        place, label, before = (wanted.get(name) if isinstance(wanted, dict) else None for name in
                                ("place", "label", "before"))  # fmt: skip
        if type(place) is not int or not 0 <= place < len(self.review.suspects):
            raise DataError("there is no such example on this page: load it again")
        if label is not None and label not in self.review.classes:
            raise DataError(f"{str(label)[:40]!r} is no class: choose one of the page's")
        suspect = self.review.suspects[place]
        return self.journal.record(suspect.key, None if label is None else suspect.decided(label), before)


class _Handler(BaseHTTPRequestHandler):
    server: ReviewServer
    timeout = 60

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(self._show)

    def do_POST(self) -> None:
        self._answer(self._decide)

    def _answer(self, action: Callable[[], Answer]) -> None:
        """Send what the action returns, or why nothing is done."""
        refusal = self._refusal()
        status, kind, content = _error(HTTPStatus.FORBIDDEN, refusal) if refusal else action()
        self.send_response(status)
        own = {
            "Content-Type": kind,
            "Content-Length": str(len(content)),
            "Cache-Control": KEPT if kind in TYPES.values() else "no-store",
        }
        for name, value in {**HEADERS, **own}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _refusal(self) -> str:
        """Return why a request is not from a person or a page of ours; empty where it is."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        if not self.server.knows_as_itself(host):
            return "this server is not known by that name: open the address that it has printed"
        if origin is not None and origin != f"http://{host}":
            return "another site has sent this: open the address that the server has printed"
        given = parse_qs(urlsplit(self.path).query).get("token", [""])[0]
        if self.command == "POST":
            given = self.headers.get("X-Review-Token", "")
        is_open = self.command == "GET" and not self.server.needs_token
        if not is_open and not secrets.compare_digest(given.encode(), self.server.token.encode()):
            return "the token is missing or of an earlier start: open the address that the server has printed"
        return ""

    def _show(self) -> Answer:
        path = urlsplit(self.path).path
        if path == "/":
            try:
                return HTTPStatus.OK, "text/html; charset=utf-8", self.server.page().encode()
            except FaMUSError as error:
                return _error(HTTPStatus.CONFLICT, str(error))
        found = self.server.media(path.removeprefix("/media/")) if path.startswith("/media/") else None
        if found is None:
            return _error(HTTPStatus.NOT_FOUND, "there is nothing here, or it can't be read any more")
        return HTTPStatus.OK, found[1], found[0]

    def _decide(self) -> Answer:
        length = self.headers.get("Content-Length", "")
        if urlsplit(self.path).path != "/decisions" or not length.isdecimal() or int(length) > MAX_BODY:
            return _error(HTTPStatus.BAD_REQUEST, "that is no decision")
        try:
            decided = self.server.decide(json.loads(self.rfile.read(int(length))))
        except DecidedMeanwhile as error:
            return _error(HTTPStatus.CONFLICT, str(error), present=error.present)
        except (ValueError, RecursionError, SaveError) as error:
            return _error(HTTPStatus.BAD_REQUEST, f"Not saved: {error}")
        return HTTPStatus.OK, "application/json", json.dumps({"decided": decided}).encode()


def _error(status: HTTPStatus, sentence: str, **facts: Any) -> Answer:
    return status, "application/json", json.dumps({"error": sentence, **facts}).encode()
