"""`strata search --serve`: one page on loopback that shows what is nearest, until Ctrl-C.

It answers GET and HEAD for `/` and `/picture/NUMBER.png`, and nothing else: no path of a request ever becomes a path of
the file system. Another Host than its own is refused, so that no name an attacker owns leads here (DNS rebinding), and
so is what another site's page asks for. Whoever may log in to this machine may look, too.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol
from urllib.parse import parse_qsl, urlsplit

from conf.errors import InputError, StrataError, show
from conf.protocol import Query
from flows import pictures, search_page
from flows.items import Item, Items
from flows.markup import text
from flows.search_page import Nearest

HOST = "127.0.0.1"
PICTURE = re.compile(r"/picture/(\d{1,15})\.png")
NUM_PICKS, MAX_SHOWN, MAX_TEXT = 24, 200, 15_000
SILENCE_SECONDS = 20.0  # that a connection may hold a thread without a word
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Asked(Protocol):
    """A Searcher, or what answers like one."""

    about: dict[str, Any]

    def ask(self, query: Query) -> list[dict[str, Any]]: ...


class Server(ThreadingHTTPServer):
    """Bound to a port of loopback, 0: any free one; `serve_forever` answers. Errors: InputError."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, searcher: Asked, items: Items, port: int) -> None:
        self.searcher, self.items = searcher, items
        self.reading = threading.Lock()  # shards are read by one thread at a time
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(f"--port {port}: {reason.lower()}; choose another, or none") from None

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.server_port}"

    @property
    def hosts(self) -> tuple[str, str]:
        """What a browser may call us."""
        return f"{HOST}:{self.server_port}", f"localhost:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Somebody went away, or never spoke HTTP."""

    def page(self, given: Mapping[str, str]) -> tuple[int, str]:
        """Status and HTML of what a person asks for."""
        status, body = 200, search_page.form(given, documents=self.items.are_counts)
        try:
            found = self._found(given)
            with self.reading:
                if found is None:
                    picked = [self.items.item(number) for number in self.items.evenly(NUM_PICKS)]
                    body += search_page.picks(picked, self._picture)
                else:
                    body += search_page.answers([found], self._picture, search_page.links(given))
        except StrataError as error:
            status = 400 if isinstance(error, InputError) else 500
            body += f'<p class="error">{text(error)}</p>'
        return status, search_page.page(self.searcher.about, body, home="/")

    def _found(self, given: Mapping[str, str]) -> Nearest | None:
        k = _number(given, "k", 1, MAX_SHOWN)
        radius = _number(given, "radius", 0, 1 << 20)
        more: dict[str, Any] = {"radius": radius, "k": k or (10 if radius is None else MAX_SHOWN)}
        item, words = given.get("item", "").strip(), given.get("text", "").strip()
        if item:
            number = self.items.number(item)
            with self.reading:
                asked = self.items.item(number)
            query, name = Query(items=[number], **more), f"item {asked.place}"
        elif words:
            if len(words) > MAX_TEXT:
                raise InputError(f"text: expected at most {MAX_TEXT:,} characters, found {len(words):,}")
            asked, query, name = None, Query(text=words, **more), search_page.quoted(words)
        else:
            return None
        answer = self.searcher.ask(query)[0]
        with self.reading:
            found = [(d, self.items.item(n)) for d, n in zip(answer["distances"], answer["numbers"], strict=True)]
        return Nearest(name, asked, found, answer["within"])

    def _picture(self, item: Item) -> str:
        if not self.items.are_pictures:
            return ""
        return f'<img alt="{text(item.place)}" src="/picture/{item.number}.png">'

    def picture(self, number: int) -> bytes | None:
        if not self.items.are_pictures or number >= len(self.items):
            return None
        with self.reading:
            return pictures.png(self.items.pictures([number])[0])


def _number(given: Mapping[str, str], name: str, low: int, high: int) -> int | None:
    """What stands in a field. Errors: InputError."""
    typed = given.get(name, "").strip()
    if not typed:
        return None
    if not typed.isdecimal() or not low <= int(typed[:9]) <= high or len(typed) > 9:
        raise InputError(f"{name} {show(typed)}: expected a number from {low} to {high:,}")
    return int(typed)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    server_version, sys_version = "strata", ""
    timeout = SILENCE_SECONDS

    def do_GET(self) -> None:
        host = self.headers.get_all("Host", [])
        foreign = self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin")
        if len(host) != 1 or host[0] not in self.server.hosts or foreign:
            return self._answer(403, "text/plain", f"only {self.server.address} is answered\n".encode())
        asked = urlsplit(self.path)
        if found := PICTURE.fullmatch(asked.path):
            try:
                content = self.server.picture(int(found[1]))
            except StrataError as error:
                return self._answer(500, "text/plain", f"{error}\n".encode())
            if content is not None:
                return self._answer(200, "image/png", content)
        if asked.path != "/":
            return self._answer(404, "text/plain", b"there is no such page\n")
        try:
            given = dict(parse_qsl(asked.query, max_num_fields=8, keep_blank_values=True))
        except ValueError:
            return self._answer(400, "text/plain", b"too many fields\n")
        status, content_ = self.server.page(given)
        self._answer(status, "text/html", content_.encode("utf-8", "replace"))

    do_HEAD = do_GET

    def _answer(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind if kind == "image/png" else f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        """A page for one person needs no log."""
