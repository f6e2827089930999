"""The picture of the nightly page that README shows, made anew from a month of made-up crawls.

python tests/nightly_picture.py docs/nightly.png
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from nightly_month import LAST_DAY, month_of_crawls
from playwright.sync_api import sync_playwright

from reports.nightly import nightly

SIZE = {"width": 1120, "height": 1180}


def main(picture: str) -> None:
    """Take it with the Chromium of this machine, on light paper."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        sys.exit("there is no Chromium here; apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder:
        month = month_of_crawls(Path(folder) / "ledger")
        month.close()
        page = nightly(month.path, LAST_DAY, Path(folder) / "out").files[-1]
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=chromium,
                args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
            )
            tab = browser.new_page(viewport=SIZE, color_scheme="light")
            tab.goto(page.as_uri())
            tab.screenshot(path=picture)
            browser.close()


if __name__ == "__main__":
    main(sys.argv[1])
