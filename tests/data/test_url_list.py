"""Downloads of a table's images from a server of this test: outcomes, retries, limits, and what a rerun asks for."""

import json
import socket
import threading
from collections import Counter
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import chosen, image_bytes
from triptych.config.datasets import UrlListCaptions
from triptych.data.sources import url_list
from triptych.data.sources.base import Item, Reject
from triptych.download import public_network
from triptych.errors import TriptychError

RED = image_bytes("red", "left")
LIMIT = 2 * len(RED)


class Server(ThreadingHTTPServer):
    """Answers by path, `/<what>/<number>`, and counts what it was asked."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked, self.cookies, self.lock = Counter(), [], threading.Lock()
        self.root = f"http://127.0.0.1:{self.server_address[1]}"
        self.closing = threading.Event()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        with self.server.lock:
            self.server.asked[self.path] += 1
            times = self.server.asked[self.path]
            self.server.cookies.append(self.headers["cookie"])
        what, _, rest = self.path.removeprefix("http://no.invalid")[1:].partition("/")  # as a proxy is asked
        match what:
            case "ok":
                self.answer(200, RED)
            case "page":
                self.answer(200, b"<html>not here", kind="image/png")
            case "busy":  # the first time
                self.answer(500 if times == 1 else 200, RED)
            case "wait":
                self.answer(429 if times == 1 else 200, RED, retry_after=rest)
            case "slow":
                self.server.closing.wait(5)
            case "drip":  # never silent for long, never done
                self.send_response(200)
                self.end_headers()
                while not self.server.closing.wait(0.02):
                    self.wfile.write(b"x")
            case "headers":  # one after the other, for ever
                while not self.server.closing.wait(0.02):
                    self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n" if rest == "1" else b"X")
            case "inside":
                self.answer(302, location=f"http://{rest}:{self.server.server_address[1]}/ok/0")
            case "to":
                self.answer(302, location=f"/{rest}")
            case "out":
                self.answer(302, location="ftp://127.0.0.1/x.png")
            case "login":
                self.answer(302, location=f"http://user:secret@127.0.0.1:{self.server.server_address[1]}/ok/0")
            case "loop":
                self.answer(302, location=f"/loop/{int(rest) + 1}")
            case "large":
                self.answer(200, RED * 20)
            case "endless":  # says nothing of its size
                self.send_response(200)
                self.end_headers()
                while not self.server.closing.is_set():
                    self.wfile.write(RED * 20)
            case "cut":
                self.answer(200, RED[:100], length=len(RED))
            case _:
                self.answer(int(what), b"none")

    def answer(self, status, body=b"", kind="text/plain", length=None, **headers):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.send_header("Set-Cookie", "visitor=1; Path=/")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)
        if length is not None:
            self.close_connection = True

    def handle(self):
        with suppress(ConnectionError):  # a client may go
            super().handle()

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(url_list, "FIRST_WAIT", 0.01)
    server = Server()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()


def write_table(tmp_path, urls):
    lines = (json.dumps({"url": url, "caption": f"caption of {url}"}) for url in urls)
    (tmp_path / "urls.jsonl").write_text("\n".join(lines))


def settings(tmp_path, **changes):
    given = {"source": "url-list", "table": str(tmp_path / "urls.jsonl"), "sizes": [100], "oversample": 0, "timeout": 5}
    given["internal_hosts"] = ["127.0.0.1"]  # where the server of these tests is
    return UrlListCaptions(**{**given, "connections": 4, **changes})


def listing(tmp_path, cache="cache", **changes):
    return list(url_list.listing(settings(tmp_path, **changes), tmp_path / cache))


def reasons(found):
    return {item.id: item.reason for item in found if isinstance(item, Reject)}


def paths(found):
    return [item.path for item in found if isinstance(item, Item)]


def mixed(server, number=40):
    """Addresses of every kind, many of them good."""
    kinds = ["ok", "ok", "ok", "404", "busy", "page", "to/ok", "large"]
    return [f"{server.root}/{kinds[index % len(kinds)]}/{index}" for index in range(number)]


def test_images_are_stored_and_read_without_the_server(tmp_path, server):
    write_table(tmp_path, [f"{server.root}/ok/{number}" for number in range(5)])
    found = listing(tmp_path)
    assert len(found) == 5 and {item.caption for item in found} == {f"caption of {item.path}" for item in found}
    asked = dict(server.asked)
    with url_list.reader(settings(tmp_path), tmp_path / "cache") as read:
        assert {read(item.place) for item in found} == {RED}
        for place in ("../../urls.jsonl", "/etc/passwd", found[0].place + ".json"):
            with pytest.raises(TriptychError, match="not the place of a download"):
                read(place)
    with url_list.reader(settings(tmp_path, max_bytes=10), tmp_path / "cache") as read:
        with pytest.raises(TriptychError, match="larger than 10 bytes"):
            read(found[0].place)
        with pytest.raises(OSError):
            read(f"ab/{'ab' * 32}")
    assert dict(server.asked) == asked


@pytest.mark.parametrize(
    ("path", "requests", "reason"),
    [
        ("404/0", 1, "HTTP 404"),
        ("410/0", 1, "HTTP 410"),
        ("403/0", 1, "HTTP 403"),
        ("204/0", 1, "HTTP 204"),
        ("500/0", 3, "HTTP 500 after 3 attempts"),
        ("429/0", 3, "HTTP 429 after 3 attempts"),
        ("page/0", 1, "is a web page (HTML), not an image that is read here; download the image itself"),
        ("large/0", 1, f"larger than {LIMIT} bytes"),
        ("endless/0", 1, f"larger than {LIMIT} bytes"),
        ("cut/0", 3, "broken off (RemoteProtocolError) after 3 attempts"),
        ("wait/3600", 1, "HTTP 429 after 1 attempt"),
        ("out/0", 1, "redirected: not an http or https address"),
        ("login/0", 1, "redirected: the address holds a user name or password; such addresses are refused"),
    ],
)
def test_failures_have_a_reason_and_as_many_requests_as_make_sense(tmp_path, server, path, requests, reason):
    url = f"{server.root}/{path}"
    write_table(tmp_path, [url])
    assert listing(tmp_path, max_bytes=LIMIT) == [Reject("image", url, reason)]
    assert server.asked == {f"/{path}": requests}
    assert not [file for file in (tmp_path / "cache").rglob("*") if file.is_file() and file.suffix != ".json"]


def test_servers_that_stay_silent_or_never_end_are_left(tmp_path, server, monkeypatch):
    monkeypatch.setattr(url_list, "PATIENCE", 2)
    dripping = [f"{server.root}/{path}" for path in ("drip/0", "headers/0", "headers/1")]
    write_table(tmp_path, [f"{server.root}/slow/0", *dripping])
    assert reasons(listing(tmp_path, timeout=0.1, retries=1)) == {
        f"{server.root}/slow/0": "timed out after 2 attempts",
        **dict.fromkeys(dripping, "not complete within 0.2 s after 2 attempts"),
    }
    assert server.asked == dict.fromkeys(["/slow/0", "/drip/0", "/headers/0", "/headers/1"], 2)


INSIDE = ["localhost", "127.1", "2130706433", "0x7f.0.0.1", "[::ffff:127.0.0.1]", "127.0.0.2", "0.0.0.0"]
REFUSED = "not a public address (see `internal_hosts`)"


@pytest.mark.parametrize("host", [*INSIDE, "[::1]", "10.0.0.1", "169.254.169.254", "[fe80::1]"])
def test_internal_addresses_are_refused_in_every_spelling_and_behind_redirects(tmp_path, server, host):
    port = server.server_address[1]
    urls = [f"http://{host}:{port}/ok/0", f"{server.root}/inside/{host}"]
    write_table(tmp_path, urls)
    assert reasons(listing(tmp_path)) == dict.fromkeys(urls, REFUSED)
    assert set(server.asked) == {f"/inside/{host}"}


def test_a_host_that_is_allowed_later_is_asked_then(tmp_path, server):
    write_table(tmp_path, [f"{server.root}/ok/0"])
    assert reasons(listing(tmp_path, internal_hosts=[])) == {f"{server.root}/ok/0": REFUSED}
    assert not server.asked and len(paths(listing(tmp_path))) == 1


def test_what_a_name_means_is_asked_once(tmp_path, server, monkeypatch):
    """A name that is public when it is checked, and another host when it is asked."""
    answers = iter(["127.0.0.1", "10.0.0.1", "10.0.0.1"])
    real = socket.getaddrinfo

    def resolve(host, *rest, **more):
        return real(next(answers) if host == "images.example" else host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(public_network, "is_public", lambda address: address == "127.0.0.1")
    write_table(tmp_path, [f"http://images.example:{server.server_address[1]}/ok/0"])
    assert len(paths(listing(tmp_path, internal_hosts=[]))) == 1 and server.asked == {"/ok/0": 1}


def test_through_a_proxy_internal_addresses_are_refused_too(tmp_path, server, monkeypatch):
    monkeypatch.setenv("http_proxy", server.root)
    write_table(tmp_path, ["http://10.0.0.1/ok/0", "http://localhost/ok/1", "http://no.invalid/ok/2"])
    found = listing(tmp_path)
    assert sorted(reasons(found).values()) == [REFUSED, REFUSED] and paths(found) == ["http://no.invalid/ok/2"]
    assert set(server.asked) == {"http://no.invalid/ok/2"}, "the proxy resolves what this machine cannot"


@pytest.mark.parametrize(
    ("address", "public"),
    [
        *(("8.8.8.8", True), ("2606:4700::1111", True), ("64:ff9b::808:808", True), ("::ffff:8.8.8.8", True)),
        *(("100.64.0.1", False), ("192.168.1.1", False), ("172.16.0.1", False), ("240.0.0.1", False)),
        *(("224.0.0.1", False), ("255.255.255.255", False), ("fc00::1", False), ("fe80::1%eth0", False)),
        *(("64:ff9b::7f00:1", False), ("2002:7f00:1::", False), ("::ffff:10.0.0.1", False), ("ff02::1", False)),
        *(("::127.0.0.1", False), ("::ffff:0:7f00:1", False), ("64:ff9b:1::7f00:1", False), ("fec0::1", False)),
        *(("2002:808:808::", True), ("2a00:1450::1", True), ("4000::1", False), ("::808:808", False)),
    ],
)
def test_public_addresses_are_told_from_all_others(address, public):
    assert public_network.is_public(address) is public


def test_failures_that_pass_are_tried_again(tmp_path, server):
    write_table(tmp_path, [f"{server.root}/busy/0", f"{server.root}/wait/0"])
    assert len(paths(listing(tmp_path))) == 2
    assert server.asked == {"/busy/0": 2, "/wait/0": 2}


def test_a_servers_wish_to_wait_is_heard(tmp_path, server, monkeypatch):
    waits = []
    monkeypatch.setattr(threading.Event, "wait", lambda self, seconds=None: waits.append(seconds))
    write_table(tmp_path, [f"{server.root}/wait/7"])
    with url_list._downloader(settings(tmp_path), tmp_path / "store", threading.Event()) as get:
        assert get(f"{server.root}/wait/7").size == len(RED)
        assert get(f"{server.root}/503/0").reason == "HTTP 503 after 3 attempts"
    assert [seconds for seconds in waits if seconds] == [7, 0.01, 0.02]


def test_redirects_are_followed_five_times(tmp_path, server):
    good, bad, loop = (f"{server.root}/{'to/' * number}ok/{number}" for number in (5, 6, 0))
    loop = f"{server.root}/loop/0"
    write_table(tmp_path, [good, bad, loop])
    found = listing(tmp_path)
    assert paths(found) == [good]
    assert reasons(found) == {bad: "more than 5 redirects", loop: "more than 5 redirects"}


def test_cookies_are_not_kept(tmp_path, server):
    write_table(tmp_path, [f"{server.root}/to/to/ok/{number}" for number in range(4)])
    listing(tmp_path, connections=1)
    assert len(server.cookies) == 12 and set(server.cookies) == {None}


def test_addresses_that_are_refused_are_never_shown(tmp_path, server, capsys):
    refused = ["ftp://127.0.0.1/x", "file:///etc/passwd", "no address", "http://", "http://[::1/x", "", "http://a\0b/"]
    secret = server.root.replace("//", "//user:secret@") + "/ok/0"
    write_table(tmp_path, [*refused, secret, f"{server.root}/ok/1"])
    found = listing(tmp_path)
    assert list(reasons(found)) == [f"urls.jsonl:{number}" for number in range(1, 9)]
    assert reasons(found)["urls.jsonl:8"].startswith("the address holds a user name or password")
    assert "secret" not in repr(found) + capsys.readouterr().out
    assert server.asked == {"/ok/1": 1}


def test_the_result_and_the_requests_do_not_depend_on_connections(tmp_path, server):
    write_table(tmp_path, mixed(server, 80))
    found, asked = {}, {}
    for connections in (1, 16):
        server.asked.clear()
        found[connections] = listing(
            tmp_path, f"cache{connections}", connections=connections, sizes=[20], max_bytes=LIMIT
        )
        asked[connections] = dict(server.asked)
    assert found[1] == found[16] and asked[1] == asked[16]
    assert len(paths(found[1])) == 20 and isinstance(found[1][-1], Item)
    # Every address up to the twentieth image was asked for, and no other.
    first = {path.removeprefix("/to") for path in asked[1]}
    assert len(first) == len(found[1])


def test_a_smaller_set_is_the_beginning_and_the_order_of_rows_does_not_matter(tmp_path, server):
    urls = mixed(server)
    write_table(tmp_path, urls)
    large = listing(tmp_path, sizes=[15], max_bytes=LIMIT)
    write_table(tmp_path, urls[::-1])
    small = listing(tmp_path, "other", sizes=[6], max_bytes=LIMIT)
    assert small == large[: len(small)] and len(paths(small)) == 6


def test_all_asks_for_every_address(tmp_path, server):
    write_table(tmp_path, mixed(server))
    found = listing(tmp_path, sizes="all", oversample=0.1)
    assert (len(paths(found)), len(reasons(found))) == (30, 10)


def test_a_rerun_asks_only_for_what_is_missing(tmp_path, server):
    write_table(tmp_path, mixed(server))
    first = listing(tmp_path, sizes=[15], max_bytes=LIMIT)
    server.asked.clear()
    assert listing(tmp_path, sizes=[15], max_bytes=LIMIT) == first
    assert not server.asked
    lost = next(item for item in first if isinstance(item, Item) and "/ok/" in item.path)
    (tmp_path / "cache" / "downloads" / lost.place).unlink()
    assert listing(tmp_path, sizes=[15], max_bytes=LIMIT) == first
    assert sum(server.asked.values()) <= 2 and all(lost.path.endswith(path[-4:]) for path in server.asked)


def test_passing_failures_are_asked_again_by_a_rerun_and_lasting_ones_not(tmp_path, server):
    urls = [f"{server.root}/{path}/0" for path in ("500", "404", "410", "page", "large", "busy")]
    write_table(tmp_path, urls)
    assert len(reasons(listing(tmp_path, max_bytes=LIMIT, retries=0))) == 6
    server.asked = Counter({"/busy/0": 1})
    found = listing(tmp_path, max_bytes=LIMIT, retries=0)
    assert paths(found) == [urls[-1]] and reasons(found)[urls[1]] == "HTTP 404"
    assert server.asked == {"/500/0": 1, "/busy/0": 2}


def test_another_size_limit_is_heard(tmp_path, server):
    urls = [f"{server.root}/ok/0", f"{server.root}/large/0"]
    write_table(tmp_path, urls)
    assert paths(listing(tmp_path, max_bytes=LIMIT)) == urls[:1]
    assert set(paths(listing(tmp_path))) == set(urls)  # what was too large is asked for again
    assert server.asked == {"/ok/0": 1, "/large/0": 2}
    assert reasons(listing(tmp_path, max_bytes=LIMIT)) == {urls[1]: f"larger than {LIMIT} bytes"}
    assert server.asked == {"/ok/0": 1, "/large/0": 2}


def test_damaged_notes_are_asked_again(tmp_path, server):
    write_table(tmp_path, [f"{server.root}/404/0"])
    listing(tmp_path)
    (note,) = (tmp_path / "cache").rglob("*.json")
    for text in ("{", "[]", '{"reason": "HTTP 404"}'):
        note.write_text(text)
        assert reasons(listing(tmp_path)) == {f"{server.root}/404/0": "HTTP 404"}
    assert server.asked == {"/404/0": 4}


def test_an_address_with_two_captions_is_asked_once(tmp_path, server):
    lines = [{"url": f"{server.root}/ok/0", "caption": caption} for caption in ("one", "two", "two")]
    (tmp_path / "urls.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = listing(tmp_path)
    assert sorted(item.caption for item in found if isinstance(item, Item)) == ["one", "two"]
    assert list(reasons(found).values()) == ["the source names it more than once; one of them is used"]
    assert server.asked == {"/ok/0": 1}


def test_fewer_images_than_wanted_are_given_without_complaint(tmp_path, server, capsys):
    write_table(tmp_path, [f"{server.root}/ok/0", f"{server.root}/404/0"])
    assert len(listing(tmp_path, sizes=[10])) == 2
    assert "1 of 10 images, 1 addresses failed" in capsys.readouterr().out


def closed_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_no_network_stops_with_what_to_do(tmp_path, server, monkeypatch):
    monkeypatch.setattr(url_list, "UNREACHABLE", 5)
    port = closed_port()
    write_table(tmp_path, [f"http://127.0.0.1:{port}/{number}" for number in range(4)])
    assert set(reasons(listing(tmp_path)).values()) == {"cannot connect after 3 attempts"}
    write_table(tmp_path, [f"http://127.0.0.1:{port}/{number}" for number in range(9)])
    with pytest.raises(TriptychError, match=r"urls\.jsonl: 5 servers in a row cannot be reached; run the fetch step"):
        listing(tmp_path, retries=0)


def test_a_caller_that_stops_ends_the_downloads(tmp_path, server):
    good, *endless = urls = [f"{server.root}/ok/0", *(f"{server.root}/drip/{number}" for number in range(9))]
    write_table(tmp_path, urls)
    items = [Item(url, url, "", caption=f"caption of {url}") for url in urls]
    seed = next(seed for seed in range(1000) if next(chosen(items, seed)).path == good)
    found = url_list.listing(settings(tmp_path, seed=seed, connections=2), tmp_path / "cache")
    assert next(found).path == good
    found.close()  # without waiting for the nine, which would never end
    assert sum(server.asked.values()) <= 4 < len(endless)
    assert not [thread for thread in threading.enumerate() if "ThreadPoolExecutor" in thread.name]


def test_a_table_without_the_column_names_it(tmp_path):
    (tmp_path / "urls.csv").write_text("address,caption\nhttp://a/x.png,a thing\n")
    with pytest.raises(TriptychError, match=r"urls\.csv: has no column 'url', but 'address', 'caption'"):
        listing(tmp_path, table=str(tmp_path / "urls.csv"))
