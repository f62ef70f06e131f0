"""The Hugging Face hub on this machine: what its real client asks for over HTTP, with faults on demand.

    with Hub({"owner/model": {"config.json": b"{}"}, "datasets/owner/data": {"images.zip": path}}) as hub:
        ...  # huggingface_hub, in this process or in one that it starts, asks this hub
        assert hub.asked("GET /owner/model/resolve") == 1

Repositories are named as in the hub's addresses, files are bytes or paths. Importing this module sets HF_ENDPOINT,
which the client reads when it is imported: `conftest.py` does so first. While no hub is open, connections are refused.
Large files are answered as the hub does for LFS: a redirect to a signed address of another server, which is closed to
tokens. Xet's own protocol is not spoken: without its headers the client takes plain HTTP. What is uploaded (without
Xet: HF_HUB_DISABLE_XET) is kept, and can be asked for.
"""

import base64
import hashlib
import json
import os
import re
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

REVISION = "0123456789abcdef0123456789abcdef01234567"
LFS_BYTES = 2048  # files of this size and above are on the other server
CHUNK = 1 << 20


def _reserve() -> socket.socket:
    """Keep a port of the loopback for this process; nothing listens there until a `Hub` is open."""
    kept = socket.socket()
    kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    kept.bind(("127.0.0.1", 0))
    return kept


_HUB, _STORE = _reserve(), _reserve()
ENDPOINT, STORE = (f"http://127.0.0.1:{kept.getsockname()[1]}" for kept in (_HUB, _STORE))
os.environ["HF_ENDPOINT"] = ENDPOINT
os.environ["HF_TOKEN_PATH"] = os.devnull  # no token of the developer's is sent
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"
for variable in ("HF_TOKEN", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE"):
    os.environ.pop(variable, None)


@dataclass
class Fault:
    """What happens to requests whose line ("GET /owner/model/resolve/...") contains `where`.

    Attributes:
        where: part of the request line; the other server's addresses begin with /store/ and the repository's name.
        times: how often.
        after: requests that are answered rightly before.
        wait: seconds before the answer.
        status: in place of the right answer, with `headers` and `body`; 0 for the right status.
        headers: added to the answer.
        body: in place of the right one.
        cut: bytes of the body after which the connection is closed.
        unranged: ignore the request's Range.
    """

    where: str
    times: int = 1
    after: int = 0
    wait: float = 0
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    cut: int | None = None
    unranged: bool = False


@dataclass(frozen=True)
class Request:
    """A request as it came."""

    line: str  # method and address, decoded, without the query
    range: str | None
    token: str | None


@dataclass
class _File:
    content: bytes | Path

    def __post_init__(self):
        self.size = len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size
        self.is_lfs = self.size >= LFS_BYTES
        self.sha1, self.sha256 = hashlib.sha1(b"blob %d\0" % self.size), hashlib.sha256()
        for chunk in self.read(0, self.size):
            self.sha1.update(chunk)
            self.sha256.update(chunk)
        self.etag = (self.sha256 if self.is_lfs else self.sha1).hexdigest()

    def read(self, start: int, stop: int):
        if isinstance(self.content, bytes):
            yield self.content[start:stop]
            return
        with self.content.open("rb") as file:
            file.seek(start)
            while start < stop and (chunk := file.read(min(CHUNK, stop - start))):
                start += len(chunk)
                yield chunk


@dataclass
class _Answer:
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    file: _File | None = None  # in place of the body


class Hub:
    """A context manager in which the hub has the given files.

    Args:
        files: repository ("owner/model", "datasets/owner/data") -> file name -> bytes or path; or -> a folder, whose
            files it holds at the time of a request.
        faults: what goes wrong; of those that fit a request the first that is not used up.
        revisions: repository -> its only commit, where that is not REVISION.
        gated: repository -> tokens of those who have accepted its conditions.
        tokens: further tokens that the hub knows.
        page: entries of a file list's page.
    """

    def __init__(self, files, *faults: Fault, revisions=None, gated=None, tokens=(), page: int = 1000):
        self._folders = {repo: held for repo, held in files.items() if isinstance(held, Path)}
        self._files = {
            repo: {name: _File(data) for name, data in held.items()}
            for repo, held in files.items()
            if repo not in self._folders
        }
        self.revisions, self.gated = revisions or {}, gated or {}
        self.tokens = {*tokens, *(token for allowed in self.gated.values() for token in allowed)}
        self.page = page
        self.requests: list[Request] = []
        self.sent = 0  # bytes of bodies
        self.visibility: dict[str, str] = {}  # of repositories that were made here
        self.closing = threading.Event()
        self._faults = [(fault, [0]) for fault in faults]
        self._signature = 0
        self._lock = threading.Lock()

    def __enter__(self):
        self._servers = [_Server(kept.getsockname(), self) for kept in (_HUB, _STORE)]
        return self

    def __exit__(self, *_):
        self.closing.set()
        for server in self._servers:
            server.close()

    def asked(self, part: str) -> int:
        """Count the requests whose line contains `part`."""
        return sum(part in request.line for request in self.requests)

    def expire(self):
        """Let all signed addresses given so far be refused from now on."""
        self._signature += 1

    def note(self, request: Request) -> Fault | None:
        """Keep a request, and give what is to go wrong with it."""
        if request.line == "GET /api/agent-harnesses":  # which the client asks once a day, whatever is asked of it
            return None
        with self._lock:
            self.requests.append(request)
            for fault, seen in self._faults:
                if fault.where in request.line and seen[0] < fault.after + fault.times:
                    seen[0] += 1
                    return fault if seen[0] > fault.after else None
        return None

    def answer(self, address: str, token: str | None) -> _Answer:
        """Answer as the hub, or for addresses below /store/ as the other server."""
        path = unquote(urlsplit(address).path)
        query = {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}
        if path.startswith("/store/"):
            return self._stored(path, query, token)
        cached = path.startswith("/api/resolve-cache/")
        if cached:
            path = path.removeprefix("/api/resolve-cache").removeprefix("/models")
        if found := re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            repo, revision, name = found.groups()
            return self._refused(repo, revision, token) or self._resolved(repo, name, cached)
        if found := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+)(?:/(.*))?)?", path):
            kind, name, what, revision, below = found.groups()
            repo = name if kind == "models" else f"datasets/{name}"
            if refused := self._refused(repo, revision or "main", token, files=False):
                return refused
            return self._tree(repo, address, below, query) if what == "tree" else self._about(repo, name)
        return _said(404, "EntryNotFound", "Sorry, we can't find the page you are looking for.")

    def posted(self, address: str, token: str | None, body: bytes) -> _Answer:
        """Make a repository, or keep the files of a commit, of which all are small."""
        path = unquote(urlsplit(address).path)
        if token not in self.tokens:
            return _said(401, None, "Invalid username or password.")
        if path == "/api/validate-yaml":
            return _json({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            if not (known := repo in self._files):
                self._files[repo], self.visibility[repo] = {}, asked["visibility"]
            return _json({"url": f"{ENDPOINT}/{repo}"}, 409 if known else 200)
        repo, what = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", path).groups()
        if what == "preupload":
            plain = {"uploadMode": "regular", "shouldIgnore": False}
            return _json({"files": [{"path": file["path"], **plain} for file in json.loads(body)["files"]]})
        lines = [json.loads(line) for line in body.splitlines()]
        kept = {line["value"]["path"]: line["value"]["content"] for line in lines if line["key"] == "file"}
        self._files[repo] |= {name: _File(base64.b64decode(content)) for name, content in kept.items()}
        return _json({"commitUrl": f"{ENDPOINT}/{repo}/commit/{REVISION}", "commitOid": REVISION})

    def _refused(self, repo: str, revision: str, token: str | None, files: bool = True) -> _Answer | None:
        if token is not None and token not in self.tokens:
            return _said(401, None, "Invalid credentials in Authorization header")
        if repo not in {**self._files, **self._folders}:  # the hub does not tell strangers what there is
            missing = 404, "RepoNotFound", "Repository not found"
            return _said(*(missing if token else (401, None, "Invalid username or password.")))
        if files and repo in self.gated and token not in self.gated[repo]:
            start = f"Access to {repo.replace('datasets/', 'dataset ')} is restricted"
            if token is None:
                return _said(
                    401, "GatedRepo", f"{start}. You must have access to it and be authenticated. Please log in."
                )
            return _said(403, "GatedRepo", f"{start} and you are not in the authorized list. Visit {ENDPOINT}/{repo}.")
        if revision not in ("main", self.commit(repo)):
            return _said(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return None

    def _held(self, repo: str) -> dict[str, _File]:
        if folder := self._folders.get(repo):
            paths = [path for path in folder.rglob("*") if path.is_file()]
            return {path.relative_to(folder).as_posix(): _File(path) for path in paths}
        return self._files[repo]

    def commit(self, repo: str) -> str:
        """Give the one commit of a repository."""
        return self.revisions.get(repo, REVISION)

    def _about(self, repo: str, name: str) -> _Answer:
        siblings = [{"rfilename": file} for file in sorted(self._held(repo))]
        about = {
            "id": name,
            "sha": self.commit(repo),
            "siblings": siblings,
            "private": False,
            "gated": repo in self.gated,
        }
        return _json(about)

    def _tree(self, repo: str, address: str, below: str | None, query: dict[str, str]) -> _Answer:
        """A page of the file list; the cursor is the number of its first entry."""
        entries = []
        for name, file in sorted(self._held(repo).items()):
            if below is None or name.startswith(f"{below}/"):
                entry = {"type": "file", "path": name, "size": file.size, "oid": file.sha1.hexdigest()}
                if file.is_lfs:
                    entry["lfs"] = {"oid": file.sha256.hexdigest(), "size": file.size, "pointerSize": 134}
                entries.append(entry)
        start = int(query.get("cursor", 0))
        headers = {"Content-Type": "application/json"}
        if start + self.page < len(entries):
            plain = f"{ENDPOINT}{urlsplit(address).path}?recursive=True&cursor={start + self.page}"
            headers["Link"] = f'<{plain}>; rel="next"'
        return _Answer(200, headers, json.dumps(entries[start : start + self.page]).encode())

    def _resolved(self, repo: str, name: str, cached: bool) -> _Answer:
        commit = {"X-Repo-Commit": self.commit(repo), "Accept-Ranges": "bytes"}
        if (file := self._held(repo).get(name)) is None:
            return _said(404, "EntryNotFound", "Entry not found", commit)
        linked = {"X-Linked-Size": str(file.size), "X-Linked-Etag": f'"{file.etag}"', **commit}
        if file.is_lfs:
            signed = f"{STORE}/store/{repo}/{file.etag}/{quote(name)}?Expires=1&Signature=s{self._signature}"
            return _Answer(302, {**linked, "Location": signed}, b"Found. Redirecting")
        if cached:
            return _Answer(200, {"ETag": f'"{file.etag}"', **commit}, file=file)
        kind, plain = ("datasets", repo.removeprefix("datasets/")) if repo.startswith("datasets/") else ("models", repo)
        place = f"/api/resolve-cache/{kind}/{plain}/resolve/{self.commit(repo)}/{quote(name)}"
        return _Answer(307, {**linked, "Location": place}, b"Temporary Redirect")

    def _stored(self, path: str, query: dict[str, str], token: str | None) -> _Answer:
        """The other server: it knows signatures, no tokens, and none of the hub's headers."""
        if token is not None:
            return _Answer(400, {}, b"<Error><Code>InvalidArgument</Code></Error>")
        if query.get("Signature") != f"s{self._signature}":
            return _Answer(403, {}, b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>")
        found = re.fullmatch(r"/store/((?:datasets/)?[^/]+/[^/]+)/[^/]+/(.+)", path)
        file = self._held(found[1])[found[2]]
        return _Answer(200, {"ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}, file=file)


def _json(value: dict, status: int = 200) -> _Answer:
    return _Answer(status, {"Content-Type": "application/json"}, json.dumps(value).encode())


def _said(status: int, code: str | None, message: str, headers: dict[str, str] | None = None) -> _Answer:
    """An error as the hub tells it."""
    told = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}
    return _Answer(status, {"Content-Type": "application/json", **told}, json.dumps({"error": message}).encode())


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address, hub: Hub):
        super().__init__(address, _Handler)
        self.hub, self.open = hub, set()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def close(self):
        """Stop, and leave no connection on which a later hub would seem to answer."""
        self.shutdown()
        self.server_close()
        for connection in list(self.open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request, client_address):
        pass  # the client has gone


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet an answer: with Nagle's algorithm two would cost 40 ms

    def setup(self):
        super().setup()
        self.server.open.add(self.connection)

    def finish(self):
        self.server.open.discard(self.connection)
        with suppress(OSError):
            super().finish()

    def do_GET(self):
        self._answer(lambda hub, token: hub.answer(self.path, token))

    do_HEAD = do_GET

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(lambda hub, token: hub.posted(self.path, token, body))

    def _answer(self, right):
        hub = self.server.hub
        token = (self.headers["Authorization"] or "").removeprefix("Bearer ") or None
        line = f"{self.command} {unquote(urlsplit(self.path).path)}"
        fault = hub.note(Request(line, self.headers["Range"], token))
        answer = _Answer(fault.status, {}, fault.body or b"") if fault and fault.status else right(hub, token)
        if fault is not None:
            hub.closing.wait(fault.wait)
            if fault.body is not None:
                answer = _Answer(answer.status, answer.headers, fault.body)
            answer.headers |= fault.headers
        self._send(answer, fault or Fault(""))

    def _send(self, answer: _Answer, fault: Fault):
        hub, size = self.server.hub, answer.file.size if answer.file else len(answer.body)
        start, stop = 0, size
        if answer.file and answer.status == 200 and not fault.unranged and self.headers["Range"]:
            if (span := _span(self.headers["Range"], size)) is None:
                answer = _Answer(416, {"Content-Range": f"bytes */{size}"})
                start, stop = 0, 0
            else:
                start, stop = span
                answer.status = 206
                answer.headers.setdefault("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        answer.headers.setdefault("Content-Length", str(stop - start))
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        left = stop - start if fault.cut is None else min(fault.cut, stop - start)
        for chunk in answer.file.read(start, start + left) if answer.file else [answer.body[:left]]:
            self.wfile.write(chunk)
            hub.sent += len(chunk)
        if fault.cut is not None:
            self.close_connection = True

    def log_message(self, *_):
        pass


def _span(asked: str, size: int) -> tuple[int, int] | None:
    """First byte and end of what a Range header asks for; None of what the file does not have."""
    first, _, last = asked.removeprefix("bytes=").partition("-")
    start, stop = (int(first), int(last) + 1 if last else size) if first else (max(size - int(last), 0), size)
    return (start, min(stop, size)) if start < min(stop, size) else None
