"""The first screen of a report as a small image, in light colours: python tools/screenshot.py results/report.html

It needs Chromium. The image of the README is of the report that `make demo` writes.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

MOST = 300_000  # bytes


def screenshot(page: Path, out: Path, width: int, height: int) -> int:
    """Write what a window of that size shows of the page, as PNG of at most 256 colours; gives its bytes."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        sys.exit("error: there is no Chromium on this machine (apt-get install chromium)")
    if not page.is_file():
        sys.exit(f"error: {page}: no such file; run `make demo` first")
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "page.png"
        command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--user-data-dir={folder}/profile", "--virtual-time-budget=20000"]
        command += [f"--window-size={width},{height}", f"--screenshot={image}", page.resolve().as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if not image.exists():
            sys.exit(f"error: {browser} took no image: {done.stderr.strip()[-500:]}")
        out.parent.mkdir(parents=True, exist_ok=True)
        Image.open(image).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(out, optimize=True)
    return out.stat().st_size


def main() -> None:
    """Take the image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, help="report.html")
    parser.add_argument("--out", type=Path, default=Path("docs/images/report.png"), help="PNG to write")
    parser.add_argument("--width", type=int, default=1200, help="of the window, in pixels")
    parser.add_argument("--height", type=int, default=720, help="of the window, in pixels")
    arguments = parser.parse_args()
    size = screenshot(arguments.page, arguments.out, arguments.width, arguments.height)
    print(f"{arguments.out}: {size / 1000:.0f} kB")
    if size > MOST:
        sys.exit(f"error: more than {MOST / 1000:.0f} kB; take a smaller window")


if __name__ == "__main__":
    main()
