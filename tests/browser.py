"""A real browser for pages that need no network."""

import shutil
import subprocess

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def opened(page: str, folder, script: str = "", width: int = 1200) -> tuple[str, str]:
    """The page's DOM after its scripts ran, and what the browser logged; `script` runs at the end of the page."""
    file = folder / "page.html"
    before, _, after = page.rpartition("</body>")
    file.write_text(f"{before}<script>{script}</script></body>{after}", encoding="utf-8")
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command += [f"--window-size={width},900"]
    # Nothing but the file itself can be reached.
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", "--proxy-server=127.0.0.1:9", "--enable-logging=stderr"]
    command += ["--virtual-time-budget=20000", "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    return done.stdout, done.stderr
