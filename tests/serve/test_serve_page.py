"""The page in a browser, with answers that are made up: what it sends, shows and says."""

import base64
import json
import time

import pytest
from browser import CHROMIUM, PATIENCE, Browser
from conftest import image_bytes
from desks import MARKUP, Desk, NoImage, served
from triptych.errors import TriptychError
from triptych.serve.server import LARGEST

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")

HOSTILE = "<img src=x onerror=document.title='taken'>.png"


@pytest.fixture(scope="module")
def browser():
    with Browser() as browser:
        yield browser


@pytest.fixture
def desk():
    return Desk()


@pytest.fixture
def page(browser, desk):
    """The browser, at the page."""
    browser.look()
    with served(desk) as server:
        browser.open(server.address)
        until(browser, "document.querySelectorAll('#checkpoints li').length == 2")
        yield browser


def until(browser, condition):
    """Wait until something is true in the page."""
    end = time.monotonic() + PATIENCE
    while not browser.run(condition):
        assert time.monotonic() < end, condition
        time.sleep(0.02)


def drop(browser, data, name=HOSTILE):
    """Drop a file on the page."""
    text = base64.b64encode(data).decode()
    bytes_ = f"Uint8Array.from(atob('{text}'), c => c.charCodeAt(0))"
    drop_script(browser, f"moved.items.add(new File([{bytes_}], {json.dumps(name)}))")


def drop_script(browser, fill):
    """Drop what a script puts into `moved` on the page."""
    event = "new DragEvent('drop', {dataTransfer: moved, bubbles: true, cancelable: true})"
    browser.run(f"{{const moved = new DataTransfer(); {fill}; document.body.dispatchEvent({event})}}")


def key(browser, name, code, text=""):
    for kind in ("keyDown", "keyUp"):
        browser.send("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=code, text=text)


def fill(browser, question="is it red ?"):
    browser.run(f"document.getElementById('question').value = {json.dumps(question)}")


def text(browser, place):
    return browser.run(f"document.querySelector({json.dumps(place)}).textContent")


@pytest.mark.parametrize("width", [1400, 390])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_two_checkpoints_answer_side_by_side(page, desk, width, dark):
    page.look(width, dark=dark)
    data = image_bytes("red", "left", 5)
    drop(page, data)
    assert page.run("document.getElementById('file').files[0].name") == HOSTILE
    fill(page, MARKUP)
    page.run("document.getElementById('ask').click()")
    until(page, "document.querySelectorAll('.card').length == 2")
    assert desk.asked == [(data, MARKUP)]
    assert text(page, "#asked") == text(page, ".card .short") == MARKUP, "text, and no markup"
    first, second = page.run("[...document.querySelectorAll('.card')].map(e => e.textContent)")
    assert "probability 87.5 %" in first and "Seen in training" in first and "majority-per-questionyes" in first
    assert "probability 50.0 %" in second and "Not seen in training" in second and "blind" in second
    assert page.run("document.getElementById('markup') === null && document.title") == "Triptych: ask a model"
    assert page.run("document.querySelectorAll('.card button').length") == 1, "a blind schedule looks nowhere"
    page.run("document.querySelector('.card button').click()")
    until(page, "document.querySelector('.card figure img')?.complete")
    assert desk.asked[1:] == [(data, MARKUP, 0)]
    assert "0.42 nats" in page.run("document.querySelector('.card figure img').alt")
    assert page.run("document.documentElement.scrollWidth") <= width
    tops = page.run("[...document.querySelectorAll('.card')].map(e => e.getBoundingClientRect().top)")
    assert (tops[0] == tops[1]) == (width == 1400), "below each other on a telephone"
    assert (page.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)") != dark
    assert page.errors == []
    assert {address.split("?")[0].rsplit(":", 1)[0] for address in page.asked} <= {
        "http://127.0.0.1",
        "blob:http://127.0.0.1",
    }


def test_all_of_it_works_by_keyboard(page, desk, tmp_path):
    (tmp_path / "own.png").write_bytes(image_bytes("red", "left", 5))
    seen = []
    for _ in range(3):
        key(page, "Tab", 9)
        seen.append(page.run("document.activeElement.id"))
        outline = page.run("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none"
    assert seen == ["file", "question", "ask"]
    chosen = page.send("Runtime.evaluate", expression="document.getElementById('file')")["result"]["objectId"]
    page.send("DOM.setFileInputFiles", files=[str(tmp_path / "own.png")], objectId=chosen)
    page.run("document.getElementById('question').focus()")
    page.send("Input.insertText", text="is it red ?")
    key(page, "Enter", 13, "\r")
    until(page, "document.querySelectorAll('.card').length == 2")
    key(page, "Tab", 9), key(page, "Tab", 9)
    assert page.run("document.activeElement.getAttribute('aria-label')") == "What does the answer of 1-2-3 depend on?"
    key(page, "Enter", 13, "\r")
    until(page, "document.querySelector('.card figure') !== null")
    assert page.run("document.activeElement.textContent") == "What does the answer depend on?", "the focus stays"
    assert [asked[1:] for asked in desk.asked] == [("is it red ?",), ("is it red ?", 0)]


def test_what_is_missing_or_too_large_is_said_and_nothing_is_sent(page, desk):
    asked = "document.getElementById('ask').click()"
    page.run(asked)
    until(page, "document.getElementById('error').textContent.startsWith('There is no image yet')")
    drop(page, image_bytes("red", "left", 5))
    assert text(page, "#error") == ""
    page.run(asked)
    until(page, "document.getElementById('error').textContent == 'There is no question yet.'")
    fill(page)
    drop_script(page, f"moved.items.add(new File([new Uint8Array({LARGEST + 1})], 'large.png'))")
    page.run(asked)
    until(page, "document.getElementById('error').textContent == 'The image file is larger than 32 MiB.'")
    drop(page, image_bytes("red", "left", 5))
    fill(page, "x" * 2001)
    page.run(asked)
    until(page, "document.getElementById('error').textContent == 'The question has more than 2000 characters.'")
    assert desk.asked == [] and page.run("document.getElementById('results').hidden")


def test_errors_of_an_image_and_of_a_server_that_was_ended_are_one_sentence(browser):
    browser.look()
    with served(NoImage()) as server:
        browser.open(server.address)
        drop(browser, b"no image", "a.png")
        fill(browser)
        browser.run("document.getElementById('ask').click()")
        until(browser, "document.getElementById('error').textContent != ''")
        assert text(browser, "#error") == "The image cannot be used: a text, not an image"
        assert browser.run("document.getElementById('preview').hidden"), "what a browser cannot show"
    browser.run("document.getElementById('ask').click()")
    until(browser, "document.getElementById('error').textContent.startsWith('Triptych does not answer')")


def test_what_is_dropped_takes_the_place_of_what_was_chosen_and_is_one_file(page, desk):
    first, second = (image_bytes(colour, "left", 5) for colour in ("red", "green"))
    drop(page, first, "first.png")
    drop(page, second, "second.png")
    assert page.run("[...document.getElementById('file').files].map(e => e.name)") == ["second.png"]
    two = "for (const name of ['a', 'b']) moved.items.add(new File([name], name))"
    for dropped in (
        "moved.setData('text/plain', 'no file')",
        two,
    ):
        drop_script(page, dropped)
        assert text(page, "#error") == "Drop one image file."
        assert page.run("document.getElementById('file').files[0].name") == "second.png"
    fill(page)
    page.run("document.getElementById('ask').click()")
    until(page, "document.querySelectorAll('.card').length == 2")
    assert desk.asked == [(second, "is it red ?")] and text(page, "#error") == ""


def test_what_takes_a_while_is_said_where_it_can_be_seen(page, desk):
    """The button of a map is far below the form on a telephone."""
    page.look(390)
    drop(page, image_bytes("red", "left", 5))
    fill(page)
    page.run("document.getElementById('ask').click()")
    until(page, "document.querySelectorAll('.card').length == 2")
    desk.error = TriptychError("no map of this one")
    page.run("scrollTo(0, document.body.scrollHeight); document.querySelector('.card button').click()")
    until(page, "document.getElementById('error').textContent == 'no map of this one'")
    place = page.run("(e => [e.top, e.bottom, innerHeight])(document.getElementById('error').getBoundingClientRect())")
    assert page.run("scrollY") > 0 and 0 <= place[0] < place[1] <= place[2]
