"""The report's page in a browser, of a made-up study of full size: what it loads, shows and answers to."""

import hashlib
import json
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser
from generated import HOSTILE, full_gathered, full_study
from triptych.io.atomic import write_text
from triptych.report.results import Results, as_text
from triptych.report.view import render

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")

QUESTIONS = 60
# Deque's checker of accessible pages, from npm: fetched by its ordinary client, never part of the repository.
AXE = "axe-core@4.10.3"
AXE_SHA256 = "880970c081707360e64f34cea25ff91892f5bc95675b0776925b9709dd8a68bb"


@pytest.fixture(scope="module")
def made(world, tmp_path_factory) -> Path:
    """A folder with the page and results.json of a study with few questions."""
    folder = tmp_path_factory.mktemp("page")
    study = full_study(world, folder / "results")
    page, found = render(study, full_gathered(study, QUESTIONS))
    write_text(folder / "report.html", page)
    write_text(folder / "results.json", as_text(found))
    return folder


@pytest.fixture(scope="module")
def browser():
    with Browser() as browser:
        yield browser


@pytest.fixture
def page(browser, made):
    """The browser, at the page."""
    browser.look()
    browser.open((made / "report.html").as_uri())
    return browser


@pytest.mark.parametrize("width", [1400, 900, 390])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_fits_its_window_and_loads_nothing(browser, made, width, dark):
    browser.look(width, dark=dark)
    browser.open((made / "report.html").as_uri())
    assert browser.errors == [] and browser.asked == [(made / "report.html").as_uri()]
    assert browser.run("document.documentElement.scrollWidth") <= width
    ground = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") != dark
    out = browser.run(
        "[...document.querySelectorAll('main *')].filter(e => !e.closest('.wide, pre, svg, .unseen') && "
        "e.getBoundingClientRect().right > innerWidth + 1).map(e => e.tagName + '.' + e.className)"
    )
    assert out == []
    small = browser.run(
        "Math.min(...[...document.querySelectorAll('.panel')].map(e => 12 * e.getBoundingClientRect().width / "
        "e.viewBox.baseVal.width))"
    )
    assert small >= 9, "letters of a chart, in pixels"


def test_the_first_screen_shows_question_answer_interval_and_the_best_arms(page):
    parts = ["#answer h1", ".answer", ".primary tbody tr", ".ranking figcaption"]
    parts += [f".ranking tbody tr:nth-child({place})" for place in range(1, 7)]
    for part in parts:
        box = page.run(f"JSON.stringify(document.querySelector('{part}').getBoundingClientRect())")
        box = json.loads(box)
        assert 0 < box["top"] < box["bottom"] <= 900 and box["right"] <= 1400, part


def test_a_study_of_full_size_is_small_and_opens_at_once(browser, world, tmp_path):
    study = full_study(world, tmp_path / "results")
    page, _ = render(study, full_gathered(study, 7000))
    assert len(page.encode()) < 3e6
    write_text(tmp_path / "report.html", page)
    browser.look()
    taken = min(browser.open((tmp_path / "report.html").as_uri()) for _ in range(3))
    assert browser.run("document.querySelectorAll('#questions .item').length") == 24
    assert taken < 2


def test_the_policy_lets_only_the_pages_own_script_run(page, made):
    text = (made / "report.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in text and "unsafe" not in text.split("</head>")[0]
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", text) and not re.search(r'<[^>]+ style="', text)
    script = "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.broken = 1'}))"
    page.run(script)
    assert page.run("window.broken") is None and "Content Security Policy" in page.errors[0]


def test_texts_of_the_data_are_shown_as_they_are(page):
    choose = "field('search').value = 'slake-en-3'; field('search').dispatchEvent(new Event('input'))"
    page.run(choose)
    shown = page.run("document.querySelector('#questions').textContent")
    assert HOSTILE in shown and page.errors == []
    assert page.run("document.querySelectorAll('img[src=x]').length") == 0
    assert HOSTILE in page.run("document.querySelector('.rejects').textContent")


def test_without_scripts_everything_can_be_read(browser, made):
    browser.look(scripts=False)
    browser.open((made / "report.html").as_uri())
    browser.send("Emulation.setScriptExecutionDisabled", value=False)
    seen = browser.run("document.body.innerText")
    assert "Stage 1 helped here" in seen and "1-2-3 is better than 2-3: words." in seen
    assert browser.run("document.querySelectorAll('#questions .item').length") == 12
    assert browser.run("[...document.querySelectorAll('.needs-script')].every(e => !e.checkVisibility())")
    assert browser.run("document.querySelectorAll('svg.panel path.l').length") > 30


def test_questions_are_filtered_by_answer_modality_content_and_fold(page):
    counts = {}
    for name in ("all", "disagree", "right", "wrong", "lookup"):
        page.run(f"field('filter').value = '{name}'; field('filter').dispatchEvent(new Event('input'))")
        shown = page.run("field('place').textContent")
        counts[name] = 0 if shown == "none" else int(shown.rsplit(" ", 1)[1])
    assert counts["right"] + counts["wrong"] + counts["disagree"] == counts["all"] == QUESTIONS
    assert counts["lookup"] <= counts["wrong"]
    page.run("field('filter').value = 'all'; field('filter').dispatchEvent(new Event('input')); field('next').click()")
    assert page.run("field('place').textContent") == f"25 to 48 of {QUESTIONS}"
    for name, value, number in (("modality", "CT", 20), ("fold", "fold1", 4), ("kind", "Organ", 2)):
        page.run(f"field('{name}').value = '={value}'; field('{name}').dispatchEvent(new Event('input'))")
        assert page.run("found.length") == number, "of the questions that the filters before leave"
    page.run("field('search').value = 'no such words'; field('search').dispatchEvent(new Event('input'))")
    assert page.run("field('place').textContent") == "none"


def test_keys_go_from_question_to_question_and_an_address_names_one(page, made, browser):
    for _ in range(3):
        page.press("j")
    page.press("k")
    chosen = "[...document.querySelectorAll('#questions .item')].findIndex(e => e.classList.contains('chosen'))"
    assert page.run(chosen) == 1 and page.run("document.activeElement.classList.contains('chosen')")
    for _ in range(23):
        page.press("j")
    assert page.run("field('place').textContent").startswith("25 to 48") and page.run(chosen) == 0
    page.run("field('search').focus()")
    page.press("j")
    assert page.run("field('search').value") == "j", "where one writes, it is a letter"
    browser.open((made / "report.html").as_uri() + "#q=slake-en-59")
    assert "slake-en-59" in page.run("document.querySelector('.chosen a').ariaLabel")
    assert page.run("document.querySelector('.chosen a').textContent") == "#slake-en-59", "as `triptych ask` takes it"
    page.run("location.hash = '#q=slake-en-2'")
    page.run("new Promise(resolve => setTimeout(resolve, 50))")
    assert "slake-en-2" in page.run("document.querySelector('.chosen a').ariaLabel")


def test_pointing_at_a_mark_shows_its_values(page):
    page.run("document.querySelector('.panel path.f').scrollIntoView({block: 'center'})")
    place = page.run(
        "(r => [r.x + r.width / 2, r.y + r.height / 2])"
        "(document.querySelector('.panel path.f').getBoundingClientRect())"
    )
    page.point(*place)
    words = page.run("field('tip').hidden ? '' : field('tip').textContent")
    assert re.fullmatch(r"1-2-3, epoch 0: [\d.]+ \(mean of 3 runs, [\d.]+ to [\d.]+\)", words)
    page.point(2, 2)
    assert (
        page.run("field('tip').hidden")
        and page.run("document.querySelector('.panel path.f title').textContent") == words
    )


def test_another_studys_results_are_set_beside_these(page, made):
    mine = json.loads((made / "results.json").read_text())
    Results.model_validate(mine)
    assert set(mine["data"]) >= {mine["dataset"]} and all(mine["data"].values())
    other = mine | {"arms": [{**mine["arms"][0], "accuracy": 12.25, "low": None}], "answer": HOSTILE}
    give = """(async text => {
      const files = new DataTransfer();
      files.items.add(new File([text], "other.json"));
      field("other").files = files.files;
      field("other").dispatchEvent(new Event("change"));
      await new Promise(resolve => setTimeout(resolve, 100));
      return [...field("comparison").querySelectorAll("tr")].map(row => [...row.cells].map(cell => cell.textContent));
    })(%s)"""
    rows = page.run(give % json.dumps(json.dumps(other)))
    beside = {row[0]: row[1:] for row in rows}
    first = mine["arms"][0]
    assert beside["1-2-3"] == [f"{first['accuracy']:.1f} ({first['low']:.1f} to {first['high']:.1f})", "12.3"]
    assert beside["2-3"][1] == "" and beside["answer"] == [mine["answer"], HOSTILE]
    assert page.run(give % json.dumps('{"format": "triptych-results/0"}')) == []
    assert "its format is not triptych-results/1" in page.run("field('comparison').textContent")
    assert page.run(give % json.dumps("<html>")) == [] and page.errors == []


def test_every_link_within_the_page_leads_somewhere(page):
    links = "[...document.links].filter(a => a.hash && !a.hash.startsWith('#q='))"
    lost = f"{links}.filter(a => !document.querySelector(a.hash))"
    assert page.run(f"{lost}.map(a => a.hash)") == []
    assert page.run("document.querySelectorAll('.card a').length") == 3


def test_it_prints(page):
    printed = page.pdf()
    assert printed.startswith(b"%PDF") and 5 < len(re.findall(rb"/Type\s*/Page\b", printed)) < 60


@pytest.fixture(scope="module")
def axe(tmp_path_factory) -> str:
    """The source of axe-core."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not there to fetch axe-core")
    folder = tmp_path_factory.mktemp("axe")
    fetched = subprocess.run(["npm", "pack", AXE], cwd=folder, capture_output=True, text=True, timeout=120)
    if fetched.returncode:
        pytest.skip("axe-core cannot be fetched from the npm registry here")
    with tarfile.open(next(folder.glob("*.tgz"))) as archive:
        source = archive.extractfile("package/axe.min.js").read()
    assert hashlib.sha256(source).hexdigest() == AXE_SHA256
    return source.decode()


@pytest.mark.parametrize(("width", "dark"), [(1400, False), (390, True)])
def test_axe_finds_no_fault(browser, made, axe, width, dark):
    browser.look(width, dark=dark)
    browser.open((made / "report.html").as_uri())
    browser.run(f"{axe};0")
    browser.run("for (const details of document.querySelectorAll('details')) details.open = true")
    found = browser.run(
        "axe.run(document, {resultTypes: ['violations']}).then(result => result.violations.map(fault => "
        "[fault.id, fault.nodes.slice(0, 3).map(node => node.html.slice(0, 200))]))"
    )
    assert found == []
