"""The pictures of docs/images that show Triptych at work, of the demonstration that has ended: make screenshots

It needs Chromium. Each shows one view in light colours, with at most 256 of them.
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas
from browser import CHROMIUM, PATIENCE, Browser
from PIL import Image
from rich.console import Console
from triptych.commands.jobs import job_states, validation_losses
from triptych.commands.status import outlook
from triptych.commands.view import screen
from triptych.config.study import read_study
from triptych.errors import TriptychError, run_step

MOST = 300_000  # bytes
CONFIG = Path("config/demo.yaml")
QUESTION = 552  # the one that docs/tutorial.md asks


class Camera:
    """Takes pictures of pages into a folder."""

    def __init__(self, browser: Browser, folder: Path):
        """Use a browser, and write into a folder."""
        self.browser, self.folder = browser, folder

    def take(self, name: str, height: int, width: int = 1200) -> None:
        """Write what a window of that size shows of the page.

        Raises:
            TriptychError: the picture has more than MOST bytes.
        """
        self.browser.look(width, height)
        self.browser.run("new Promise(drawn => requestAnimationFrame(() => requestAnimationFrame(drawn)))")
        with tempfile.TemporaryDirectory() as folder:
            self.browser.screenshot(Path(folder) / "page.png")
            image = Image.open(Path(folder) / "page.png").convert("RGB").quantize(256, dither=Image.Dither.NONE)
        data = io.BytesIO()
        image.save(data, "PNG", optimize=True)
        if data.tell() > MOST:
            raise TriptychError(f"{name}: {data.tell()} bytes are more than {MOST}; take a smaller window")
        (self.folder / f"{name}.png").write_bytes(data.getvalue())
        print(f"{name}.png: {width} x {height} pixels, {data.tell() / 1000:.0f} kB")


def report(camera: Camera, page: Path, question: int) -> None:
    """The report: its first screen, the charts of training, and one question of the gallery."""
    for name, place, height in [("report", "", 720), ("report-training", "training", 760)]:
        camera.browser.look(1200, height)
        camera.browser.open(page.resolve().as_uri() + (place and f"#{place}"))
        camera.take(name, height)
    camera.browser.open(f"{page.resolve().as_uri()}#q={question}")
    camera.take("report-question", 760)


def terminal(camera: Camera) -> None:
    """The screen of `triptych status --watch`."""
    study = read_study(CONFIG)
    states = job_states(study, time.time())
    losses = {state.job: validation_losses(study, state.job) for state in states if state.job.cell}
    console = Console(record=True, width=110, file=io.StringIO(), force_terminal=True)
    console.print(screen(states, outlook(study, states), losses))
    with tempfile.TemporaryDirectory() as folder:
        drawing = Path(folder) / "status.html"
        svg = console.export_svg(title="triptych status --watch 5")
        drawing.write_text(f"<!doctype html><meta charset=utf-8><body style='margin:0'>{svg}", encoding="utf-8")
        camera.browser.open(drawing.as_uri())
        height, width = camera.browser.run(
            "(box => [box.height, box.width])(document.querySelector('svg').viewBox.baseVal)"
        )
        camera.take("status", round(1200 * height / width))


def asking(camera: Camera, question: int) -> None:
    """The page of `triptych serve`, asked a question about its image."""
    data = read_study(CONFIG).results / "data/medical"
    rows = pandas.read_parquet(data / "questions.parquet").set_index("question_id")
    row = rows.loc[str(question)]
    images = pandas.concat(map(pandas.read_parquet, sorted(data.glob("images/*.parquet")))).set_index("id")
    with tempfile.TemporaryDirectory() as folder, served() as address:
        image = Path(folder) / "scan.png"
        image.write_bytes(images.loc[row["image_id"], "image"]["bytes"])
        camera.browser.look(1200, 720)
        camera.browser.open(address)
        document = camera.browser.send("DOM.getDocument")["root"]["nodeId"]
        field = camera.browser.send("DOM.querySelector", nodeId=document, selector="#file")["nodeId"]
        camera.browser.send("DOM.setFileInputFiles", nodeId=field, files=[str(image)])
        camera.browser.run(f"document.getElementById('question').value = {json.dumps(row['question'])}")
        camera.browser.run("document.getElementById('ask').click()")
        end = time.monotonic() + PATIENCE
        while camera.browser.run("document.getElementById('results').hidden"):
            if time.monotonic() > end:
                raise TriptychError(f"triptych serve has not answered within {PATIENCE} seconds")
            time.sleep(0.2)
        camera.take("serve", 980)


@contextmanager
def served() -> Iterator[str]:
    """Serve both schedules, and give the address of the page."""
    command = [sys.executable, "-m", "triptych.cli", "serve", "--configfile", str(CONFIG), "--port", "0"]
    process = subprocess.Popen([*command, "--compare", "1-2-3", "2-3"], stdout=subprocess.PIPE, text=True)
    try:
        yield next(line.split()[1] for line in process.stdout if line.startswith("open "))
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    """Take all pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="folder to write to")
    arguments = parser.parse_args()
    page = read_study(CONFIG).results / "report.html"
    if CHROMIUM is None:
        raise TriptychError("there is no Chromium on this machine (apt-get install chromium)")
    if not page.is_file():
        raise TriptychError(f"{page}: no such file; run `make demo` first")
    with Browser() as browser:
        camera = Camera(browser, arguments.out)
        report(camera, page, QUESTION)
        terminal(camera)
        asking(camera, QUESTION)


if __name__ == "__main__":
    run_step(main)
