"""A page on this machine alone, and the questions that it sends: HTTP, and what is refused before anything is read.

Every request needs the token in its address, and must name this machine as its host: another page that is open in the
same browser knows no token, and a name that someone else lets lead here is not answered. No request names a file.
"""

import base64
import hmac
import json
import secrets
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

from triptych.errors import TriptychError

LOOPBACK = "127.0.0.1"
LARGEST = 32 << 20  # bytes of an image file
LONGEST = 2000  # characters of a question
NOTHING = "There is nothing at this address."
_BODY = (LARGEST + 2) // 3 * 4 + 64 * 1024  # bytes: the image in base64, and the question
_PAGE, _LOOK = Path(__file__).parent / "page", Path(__file__).parents[1] / "report/page/page.css"
FIELDS = {
    "/answers": {"image": str, "question": str},
    "/where": {"image": str, "question": str, "checkpoint": int},
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; connect-src 'self'; img-src blob: data:; script-src 'self'; "
    "style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class Desk(Protocol):
    """What answers: checkpoints that are loaded."""

    def checkpoints(self) -> list[dict]:
        """Describe the checkpoints, in the order of their answers."""

    def answers(self, data: bytes, question: str) -> dict:
        """Answer a question about the image in a file's bytes."""

    def where(self, data: bytes, question: str, checkpoint: int) -> dict:
        """Draw where one checkpoint looks, by its place among them."""


class Refused(Exception):
    """A request that is not answered: its HTTP status, and why in one sentence."""

    def __init__(self, status: int, why: str):
        """Refuse."""
        super().__init__(why)
        self.status = status


class PageServer(ThreadingHTTPServer):
    """The page and its answers, on the loopback; computes one answer at a time.

    Attributes:
        token: that every request must hold.
        desk: that answers; None while it is loading.
    """

    daemon_threads = True  # a browser that keeps a connection open does not keep the command from ending

    def __init__(self, port: int):
        """Take a port of this machine; 0 for any that is free.

        Raises:
            TriptychError: it is taken.
        """
        try:
            super().__init__((LOOPBACK, port), _Handler)
        except OSError as error:
            raise TriptychError(f"--port: {port} cannot be used ({error.strerror}); name another") from None
        self.token, self.desk = secrets.token_urlsafe(32), None
        self.hosts = {f"{name}:{self.server_port}" for name in (LOOPBACK, "localhost")}
        self.files = _files(self.token)
        self._lock, self._ending = threading.Lock(), False

    @property
    def address(self) -> str:
        """Give the address of the page, with its token."""
        return f"http://{LOOPBACK}:{self.server_port}/?token={self.token}"

    def compute(self, work: Callable[[], dict]) -> dict:
        """Do what takes a while when everything before it is done.

        Raises:
            Refused: the server ends.
        """
        with self._lock:
            if self._ending:
                raise Refused(503, "Triptych was ended; start it again.")
            return work()

    def serve_until_interrupted(self, desk: Desk) -> None:
        """Answer until Ctrl-C, then wait for the answer that is being computed."""
        self.desk = desk
        with suppress(KeyboardInterrupt):
            self.serve_forever()
        self.server_close()
        self._ending = True
        with self._lock:  # a thread that is in torch when the interpreter ends would abort it
            pass

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print an error of a connection, but not that a browser closed it."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def _files(token: str) -> dict[str, tuple[str, bytes]]:
    """Read the page, once: by path its kind and bytes, with the token in the page's own addresses."""
    page = (_PAGE / "page.html").read_text(encoding="utf-8").replace("{token}", token)
    return {
        "/": ("text/html", page.encode()),
        "/page.css": ("text/css", _LOOK.read_bytes() + (_PAGE / "page.css").read_bytes()),
        "/page.js": ("text/javascript", (_PAGE / "page.js").read_bytes()),
    }


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    server_version, sys_version = "Triptych", ""
    timeout = 60  # seconds without a byte

    def do_GET(self) -> None:
        self._reply(self._get)

    def do_POST(self) -> None:
        self._reply(self._post)

    def _reply(self, respond: Callable[[str], tuple[str, bytes]]) -> None:
        try:
            self._send(200, *respond(self._admitted()))
        except Refused as refused:
            self.send_error(refused.status, str(refused))
        except TriptychError as error:
            self.send_error(422, str(error))
        except Exception:
            traceback.print_exc()
            self.send_error(500, "Triptych failed; the terminal in which it runs says how.")

    def _admitted(self) -> str:
        """Give the path that is asked for, where host and token are right.

        Raises:
            Refused: one is not.
        """
        if self.headers.get_all("Host") is None or not set(self.headers.get_all("Host")) <= self.server.hosts:
            raise Refused(403, "This is not the address of the page; open the one that Triptych printed.")
        try:
            asked = urlsplit(self.path)
        except ValueError:
            raise Refused(404, NOTHING) from None
        given = parse_qs(asked.query).get("token", [])
        if len(given) != 1 or not hmac.compare_digest(given[0].encode(), self.server.token.encode()):
            raise Refused(403, "The address lacks its token; open the one that Triptych printed.")
        return asked.path

    def _get(self, path: str) -> tuple[str, bytes]:
        if path == "/study":
            limits = {"bytes": LARGEST, "characters": LONGEST}
            return _as_json({"checkpoints": self.server.desk.checkpoints(), "limits": limits})
        if path in FIELDS:
            raise Refused(405, "This needs POST.")
        if path not in self.server.files:
            raise Refused(404, NOTHING)
        return self.server.files[path]

    def _post(self, path: str) -> tuple[str, bytes]:
        if path not in FIELDS:
            raise Refused(404, NOTHING)
        asked = read_body(self._body(), FIELDS[path], len(self.server.desk.checkpoints()))
        work = {"/answers": self.server.desk.answers, "/where": self.server.desk.where}[path]
        return _as_json(self.server.compute(lambda: work(**asked)))

    def _body(self) -> bytes:
        """Read what was sent, as long as it says that it is.

        Raises:
            Refused: it says no length, is too long, no JSON by its type, or breaks off.
        """
        if self.headers.get_content_type() != "application/json":
            raise Refused(415, "What is sent must be application/json.")
        length = self.headers.get("Content-Length", "")
        if "Transfer-Encoding" in self.headers or not (length.isascii() and length.isdecimal()):
            raise Refused(411, "What is sent needs a Content-Length.")
        if len(length) > 12 or int(length) > _BODY:
            raise Refused(413, f"The image file is larger than {LARGEST >> 20} MiB.")
        try:
            body = self.rfile.read(int(length))
        except (TimeoutError, ConnectionError):
            body = b""
        if len(body) < int(length):
            raise Refused(400, "What was sent breaks off; send it again.")
        return body

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Say in JSON why nothing else is sent; http.server itself calls this for what is no HTTP."""
        self._send(code, *_as_json({"error": message or self.responses[code][0]}))

    def _send(self, status: int, kind: str, body: bytes) -> None:
        with suppress(ConnectionError, TimeoutError):  # the browser is gone
            self.send_response(status)
            for name, value in _HEADERS.items():
                self.send_header(name, value)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Print nothing: the address holds the token."""


def read_body(body: bytes, fields: dict[str, type], checkpoints: int) -> dict:
    """Read a request: the image's bytes as `data`, the question and, where it is asked for, a checkpoint's number.

    Raises:
        Refused: it is something else.
    """
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "What was sent is no JSON.") from None
    if not isinstance(asked, dict) or {name: type(value) for name, value in asked.items()} != fields:
        raise Refused(400, f"What is sent must hold {', '.join(fields)} and nothing else.")
    if len(asked["question"]) > LONGEST:
        raise Refused(422, f"The question has more than {LONGEST} characters.")
    if not 0 <= asked.get("checkpoint", 0) < checkpoints:
        raise Refused(422, f"The checkpoint must be a number from 0 to {checkpoints - 1}.")
    try:
        asked["question"].encode()
        data = base64.b64decode(asked.pop("image"), validate=True)
    except ValueError:  # half of a surrogate pair; not base64
        raise Refused(400, "The question is no text, or the image is not in base64.") from None
    if len(data) > LARGEST:
        raise Refused(413, f"The image file is larger than {LARGEST >> 20} MiB.")
    return {"data": data, **asked}


def _as_json(value: dict) -> tuple[str, bytes]:
    return "application/json", json.dumps(value).encode()
