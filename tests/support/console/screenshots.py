"""Pictures of the console for the documents: `python -m tests.support.console.screenshots --help`.

They are taken of what `unlatent demo --console` left running, so that they show its pictures only.
"""

from __future__ import annotations

import argparse
import io
from contextlib import closing
from pathlib import Path

from PIL import Image

from tests.support.console.browser import Browser

#: README's first picture must load quickly.
MAX_BYTES = 300_000


def take(browser: Browser, path: Path) -> None:
    """Store what the browser shows as a PNG."""
    loaded = "return [...document.images].every((image) => image.complete)"
    browser.until(lambda: browser.driver.execute_script(loaded))
    picture = Image.open(io.BytesIO(browser.driver.get_screenshot_as_png())).convert("RGB")
    # 256 colours are enough to see what is where, and half the bytes.
    picture.quantize(256).save(path, optimize=True)
    if path.stat().st_size > MAX_BYTES:
        raise SystemExit(f"{path} has {path.stat().st_size} bytes, more than {MAX_BYTES}")


def choose(browser: Browser, **choices: str) -> None:
    """Change settings."""
    browser.open("/settings")
    for name, value in choices.items():
        browser.find(f"[name={name}][value={value}]").click()
    browser.leaving(browser.find("button.main").click)
    browser.open("/")


def main() -> None:
    """Take them all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", default="http://127.0.0.1:8600")
    parser.add_argument("--name", default="local_moderator")
    parser.add_argument("--password", required=True)
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    with closing(Browser(given.address.rstrip("/"))) as browser:
        browser.sign_in(given.name, given.password)
        choose(browser, theme="light")
        browser.leaving(lambda: browser.press("c"))
        # One with something to look at: what the tiles or the map decided.
        while not browser.has(".layer"):
            browser.leaving(lambda: browser.press("s"))
        browser.press("t", "m")
        take(browser, given.out / "console-review.png")
        choose(browser, theme="dark")
        take(browser, given.out / "console-review-dark.png")
        choose(browser, theme="light")
        browser.open("/queue")
        take(browser, given.out / "console-queue.png")


if __name__ == "__main__":
    main()
