"""Opens a page in a real headless Chromium and asks it questions."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
PHONE = 390
"""Pixels."""


def ask(page: Path, expression: str, *, width: int = 1280, fragment: str = "") -> object:
    """What a JavaScript expression over `page` (its window) gives in the page, shown `width` pixels wide.

    Chromium's own window is never narrower than 500 pixels, so the page stands in a frame.

    Raises:
        AssertionError: the page wrote an error to its console.
    """
    assert CHROMIUM is not None
    frame = page.with_name("frame.html")
    frame.write_text(
        f'<iframe id="f" src="{page.name}{fragment}" style="border:0;width:{width}px;height:2000px"></iframe>'
        '<pre id="answer"></pre><script>document.getElementById("f").onload = () => {'
        'const page = document.getElementById("f").contentWindow;'
        f'document.getElementById("answer").textContent = JSON.stringify({expression}); }}</script>'
    )
    command = [
        "nice", "-n", "19", CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--hide-scrollbars", "--allow-file-access-from-files", "--enable-logging=stderr", "--v=0",
        "--virtual-time-budget=5000",
        "--window-size=1400,2100", "--dump-dom", f"--user-data-dir={page.parent / 'profile'}", frame.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not console, console
    answer = re.search(r'<pre id="answer">(.*?)</pre>', done.stdout, re.DOTALL)
    assert answer is not None
    return json.loads(html.unescape(answer[1]))
