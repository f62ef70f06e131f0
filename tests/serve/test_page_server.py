"""The page's server: who is answered, what may be sent, and that one answer is computed at a time."""

import base64
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest
from conftest import ROOT
from desks import Desk, served
from triptych.errors import TriptychError
from triptych.serve import command, server
from triptych.serve.server import FIELDS, LARGEST, LONGEST, PageServer, Refused, read_body

PNG = b"\x89PNG, or not"
QUESTION = {"image": base64.b64encode(PNG).decode(), "question": "is it red ?"}
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def desk():
    return Desk()


@pytest.fixture
def page(desk):
    with served(desk) as page:
        yield page


def ask(page, method="GET", path="/", body=None, token=None, **headers):
    """Status, headers and body of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", page.server_port, timeout=10)
    token = f"?token={page.token}" if token is None else token
    body = json.dumps(body).encode() if isinstance(body, dict) else body
    connection.request(
        method, path + token, body, {**JSON, **{name.replace("_", "-"): headers[name] for name in headers}}
    )
    reply = connection.getresponse()
    found = reply.status, reply.headers, reply.read()
    connection.close()
    return found


def refused(found) -> tuple[int, str]:
    """Status and sentence of a request that was not answered."""
    status, headers, body = found
    assert headers["Content-Type"].startswith("application/json") and headers["Content-Security-Policy"]
    [(name, sentence)] = json.loads(body).items()
    assert name == "error" and sentence and "\n" not in sentence and "Traceback" not in sentence
    return status, sentence


def test_the_page_and_its_parts_come_from_the_package_alone(page):
    for path, kind in {"/": "text/html", "/page.css": "text/css", "/page.js": "text/javascript"}.items():
        status, headers, body = ask(page, path=path)
        assert (status, headers["Content-Type"]) == (200, f"{kind}; charset=utf-8") and body
        policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
        assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert (headers["Referrer-Policy"], headers["Cache-Control"]) == ("no-referrer", "no-store")
        assert b"://" not in body.replace(b"http://www.w3.org", b""), "no address of another machine"
    _, _, study = ask(page, path="/study")
    assert json.loads(study)["limits"] == {"bytes": LARGEST, "characters": LONGEST}
    assert [one["schedule"] for one in json.loads(study)["checkpoints"]] == ["1-2-3", "2-3"]


@pytest.mark.parametrize("path", ["/", "/page.js", "/study", "/nothing"])
@pytest.mark.parametrize(
    "token", ["", "?token=", "?token=wrong", "?token=%C3%A9", "?token={0}&token={0}", "?token={0}x", "?x={0}"]
)
def test_without_the_token_nothing_is_answered(page, desk, path, token):
    assert refused(ask(page, path=path, token=token.format(page.token)))[0] == 403
    assert refused(ask(page, "POST", "/answers", QUESTION, token=token.format(page.token)))[0] == 403
    assert desk.asked == []


def test_tokens_are_new_and_long():
    with PageServer(0) as one, PageServer(0) as other:
        assert one.token != other.token and len(one.token) >= 43
        assert one.address == f"http://127.0.0.1:{one.server_port}/?token={one.token}"
        assert one.server_address[0] == "127.0.0.1"


def test_a_name_that_was_made_to_lead_here_is_not_answered(page, desk):
    port = page.server_port
    for host in (
        "evil.example",
        f"evil.example:{port}",
        "127.0.0.1",
        f"127.0.0.1:{port + 1}",
        f"127.0.0.1.x:{port}",
        "",
    ):
        assert refused(ask(page, "POST", "/answers", QUESTION, Host=host))[0] == 403
    assert desk.asked == []
    assert ask(page, Host=f"localhost:{port}")[0] == 200


def test_an_address_that_is_none_is_not_answered(page):
    with socket.create_connection(("127.0.0.1", page.server_port), timeout=10) as connection:
        connection.sendall(
            f"GET http://[x/?token={page.token} HTTP/1.1\r\nHost: 127.0.0.1:{page.server_port}\r\n\r\n".encode()
        )
        assert connection.recv(100).startswith(b"HTTP/1.0 404 ")


def test_two_hosts_or_none_are_not_answered(page):
    for hosts in ("", f"Host: 127.0.0.1:{page.server_port}\r\nHost: evil.example\r\n"):
        with socket.create_connection(("127.0.0.1", page.server_port), timeout=10) as connection:
            connection.sendall(f"GET /?token={page.token} HTTP/1.1\r\n{hosts}\r\n".encode())
            assert connection.recv(100).startswith(b"HTTP/1.0 403 ")


@pytest.mark.parametrize(
    "path",
    ["/../../../etc/passwd", "//etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/page.css/../server.py", "/page.html",
     "/server.py", "/page.js/", "/./page.js", "/page.js%00", "/study/", "/etc/passwd;page.js", "file:///etc/passwd"],
)  # fmt: skip
def test_no_path_opens_a_file(page, path):
    assert refused(ask(page, path=path))[0] == 404
    assert refused(ask(page, "POST", path, QUESTION))[0] == 404


def test_a_question_reaches_the_checkpoints_and_their_answers_the_page(page, desk):
    status, _, body = ask(page, "POST", "/answers", QUESTION)
    first, second = json.loads(body)["answers"]
    assert status == 200 and (first["schedule"], second["schedule"]) == ("1-2-3", "2-3")
    assert (first["trained_on_image"], second["trained_on_image"]) == (True, False)
    assert json.loads(ask(page, "POST", "/where", QUESTION | {"checkpoint": 1})[2])["words"].startswith("'yes': 0.42")
    assert desk.asked == [(PNG, "is it red ?"), (PNG, "is it red ?", 1)]


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "HEAD", "TRACE", "PATCH"])
def test_other_methods_do_nothing(page, desk, method):
    assert ask(page, method, "/answers", QUESTION)[0] == 501
    assert desk.asked == []


def test_answers_need_post_and_the_page_does_not_take_it(page):
    assert refused(ask(page, path="/answers"))[0] == refused(ask(page, path="/where"))[0] == 405
    assert refused(ask(page, "POST", "/", QUESTION))[0] == 404


@pytest.mark.parametrize("length", [str(2 * LARGEST), "9" * 12, "9" * 5000])
def test_what_is_too_long_is_not_read(page, desk, length):
    status, said = refused(ask(page, "POST", "/answers", b"", Content_Length=length))
    assert (status, said) == (413, "The image file is larger than 32 MiB.")
    assert desk.asked == []


@pytest.mark.parametrize("length", ["-1", "x", "", "+5", "1_0", "٣", "5.0"])
def test_a_length_is_a_number(page, length):
    assert refused(ask(page, "POST", "/answers", b"", Content_Length=length.encode()))[0] == 411


def test_a_body_of_no_known_length_is_refused(page):
    assert refused(ask(page, "POST", "/answers", iter([b"{}"]), Transfer_Encoding="chunked"))[0] == 411


def test_a_body_that_breaks_off_is_refused(page, desk):
    with socket.create_connection(("127.0.0.1", page.server_port), timeout=10) as connection:
        head = f"POST /answers?token={page.token} HTTP/1.1\r\nHost: 127.0.0.1:{page.server_port}\r\n"
        connection.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{}}".encode())
        connection.shutdown(socket.SHUT_WR)
        assert b" 400 " in connection.recv(100)
    assert desk.asked == []


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_a_form_of_another_page_is_refused(page, desk, kind):
    assert refused(ask(page, "POST", "/answers", QUESTION, Content_Type=kind))[0] == 415
    assert desk.asked == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"\xff", 400),
        (b"[" * 100_000, 400),
        (b"[]", 400),
        (b'{"question": "a"}', 400),
        ({**QUESTION, "image": 5}, 400),
        ({**QUESTION, "image": "../../etc/passwd"}, 400),
        ({**QUESTION, "image": "AAA"}, 400),
        ({**QUESTION, "question": "\ud800"}, 400),
        ({**QUESTION, "question": "x" * (LONGEST + 1)}, 422),
        ({**QUESTION, "checkpoint": 0}, 400),
        ({**QUESTION, "name": "../../../etc/passwd"}, 400),
        ({**QUESTION, "name": "<img src=x onerror=alert(1)>.png"}, 400),
    ],
)
def test_what_is_sent_is_an_image_and_a_question_and_no_file_name(page, desk, body, status):
    assert refused(ask(page, "POST", "/answers", body))[0] == status
    assert desk.asked == []


@pytest.mark.parametrize("number", [-1, 2, 10**30, True, 0.0, "0", None])
def test_a_map_is_of_a_checkpoint_that_is_there(page, desk, number):
    assert refused(ask(page, "POST", "/where", QUESTION | {"checkpoint": number}))[0] in (400, 422)
    assert desk.asked == []


def test_an_image_may_be_as_large_as_is_said_and_no_larger(monkeypatch):
    monkeypatch.setattr(server, "LARGEST", 3 << 20)
    for size in (3 << 20, (3 << 20) + 1):
        body = json.dumps(QUESTION | {"image": base64.b64encode(bytes(size)).decode()}).encode()
        if size == 3 << 20:
            assert len(read_body(body, FIELDS["/answers"], 2)["data"]) == size
        else:
            with pytest.raises(Refused, match="larger than 3 MiB"):
                read_body(body, FIELDS["/answers"], 2)


def test_errors_are_sentences_and_the_server_goes_on(page, desk, capfd):
    desk.error = TriptychError("The image cannot be used: 7 x 7 pixels, a side below 8")
    assert refused(ask(page, "POST", "/answers", QUESTION)) == (422, str(desk.error))
    desk.error = ZeroDivisionError("secret")
    status, said = refused(ask(page, "POST", "/answers", QUESTION))
    assert status == 500 and "secret" not in said and "ZeroDivisionError: secret" in capfd.readouterr().err
    desk.error = None
    assert ask(page, "POST", "/answers", QUESTION)[0] == 200
    with socket.create_connection(("127.0.0.1", page.server_port), timeout=10) as connection:
        connection.sendall(b"\x16\x03\x01 no HTTP\r\n\r\n")
        assert b'"error"' in connection.recv(4000)
    assert capfd.readouterr().err == "", "the log would hold the token"


def test_one_answer_is_computed_at_a_time_and_none_after_the_end(page, desk):
    inside, most, meet = [], [], threading.Event()

    def slow(data, question):
        inside.append(question)
        most.append(len(inside))
        meet.wait(0.05)
        inside.remove(question)
        return {}

    desk.answers = slow
    threads = [threading.Thread(target=ask, args=(page, "POST", "/answers", QUESTION)) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert ask(page)[0] == 200, "the page does not wait for answers"
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1, 1]
    page._ending = True
    assert refused(ask(page, "POST", "/answers", QUESTION))[0] == 503


def test_a_port_that_is_taken_is_one_clear_error():
    with PageServer(0) as one, pytest.raises(TriptychError, match=rf"--port: {one.server_port} cannot be used"):
        PageServer(one.server_port)


@pytest.mark.parametrize("port", [-1, 80, 1023, 65536])
def test_a_port_is_one_that_everyone_may_use(port):
    with pytest.raises(TriptychError, match=f"--port: must be 0 or a number from 1024 to 65535, not {port}"):
        command.main(["--port", str(port)])


def test_ctrl_c_ends_it_after_the_answer_that_is_computed():
    """In a process of its own, while an answer is computed: the answer still comes, and the status is 0."""
    code = f"""
import sys, time
sys.path[:0] = [{str(ROOT / "workflow/scripts")!r}, {str(ROOT / "tests/serve")!r}]
from desks import Desk
from triptych.serve.server import PageServer
class Slow(Desk):
    def answers(self, data, question):
        print("asked", flush=True)
        time.sleep(0.3)
        print("answered", flush=True)
        return {{}}
with PageServer(0) as server:
    print(server.server_port, server.token, flush=True)
    server.serve_until_interrupted(Slow())
print("ended", flush=True)
"""
    # Where the tests run in the background of a shell, Ctrl-C is ignored, which a process inherits.
    command = ["env", "--default-signal=INT", sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        port, token = process.stdout.readline().split()
        body = json.dumps(QUESTION)
        connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=10)
        connection.request("POST", f"/answers?token={token}", body, JSON)
        assert process.stdout.readline() == "asked\n"
        os.kill(process.pid, signal.SIGINT)
        try:
            out, err = process.communicate(timeout=20)
        finally:
            process.kill()  # or leaving the block would wait for it
        assert (process.returncode, out, err) == (0, "answered\nended\n", "")
