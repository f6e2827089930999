"""The nightly page in a real Chromium: light, dark and print, on a phone and a desk, with hostile names."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from nightly_month import LAST_DAY, month_of_crawls
from test_reports_nightly import DAY, HOSTILE, damaged, hostile_history

from ledger.events import BudgetSet
from reports.nightly import nightly
from reports.nightly_charts import INK

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage")
WIDTHS = {"a phone": 390, "a desk": 1440}
A4_WIDTH = 794


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield started
        started.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A month's page, and one where every name is hostile, a budget broken and the ledger damaged."""
    folder = tmp_path_factory.mktemp("pages")
    month = month_of_crawls(folder / "month", days=9, requests_a_day=20)
    hostile = hostile_history(folder / "hostile")
    hostile.play("at=2026-11-20T10:00:00\n    FAST  ok  in=10 out=10")
    limits = [BudgetSet(scope="session", scope_id=name, limit_usd="0.001") for name in HOSTILE]
    hostile.record(*limits)
    damaged(hostile, b"", date(2026, 11, 20))
    made = {
        "month": nightly(month.path, LAST_DAY, folder / "out" / "month").files[-1],
        "hostile": nightly(hostile.path, DAY, folder / "out" / "hostile").files[-1],
    }
    month.close()
    hostile.close()
    return made


class Shown(NamedTuple):
    """A page in a tab, with all that it said and asked for."""

    tab: Any
    said: list[str]
    asked: list[str]

    def is_too_wide(self) -> bool:
        root = "document.documentElement"
        return bool(self.tab.evaluate(f"{root}.scrollWidth > {root}.clientWidth"))


@pytest.fixture
def show(browser: Any, pages: dict[str, Path]) -> Iterator[Any]:
    contexts = []

    def show_page(name: str, width: int, scheme: str) -> Shown:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        tab = context.new_page()
        shown = Shown(tab, [], [])
        tab.on("console", lambda message: shown.said.append(message.text))
        tab.on("pageerror", lambda error: shown.said.append(str(error)))
        tab.on("dialog", lambda dialog: shown.said.append(dialog.message))
        context.on("request", lambda request: shown.asked.append(request.url))
        context.route(re.compile(r"^(?!file:)"), lambda route: route.abort())
        tab.goto(pages[name].as_uri())
        return shown

    yield show_page
    for context in contexts:
        context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS.keys())
@pytest.mark.parametrize("name", ["month", "hostile"])
def test_the_page_is_quiet_asks_for_nothing_and_fits(
    show: Any, pages: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    shown = show(name, width, scheme)

    assert shown.said == []
    assert shown.asked == [pages[name].as_uri()]
    assert not shown.is_too_wide()


@pytest.mark.parametrize(("scheme", "number"), [("light", 0), ("dark", 1)])
def test_pictures_and_paper_follow_the_colour_scheme(show: Any, scheme: str, number: int) -> None:
    tab = show("month", 1440, scheme).tab

    label = "getComputedStyle(document.querySelector('.chart text')).fill"
    ink = INK[number].removeprefix("#")
    assert tab.evaluate(label) == f"rgb{tuple(bytes.fromhex(ink))}"
    paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper))) > 380) == (scheme == "light")


def test_it_prints_on_a4_on_light_paper_with_nothing_cut_off(show: Any) -> None:
    shown = show("month", A4_WIDTH, "dark")
    shown.tab.emulate_media(media="print")

    assert not shown.is_too_wide()
    assert shown.tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 254, 251)"
    wider = (
        "[...document.querySelectorAll('.scroll')].filter(each => each.scrollWidth > each.clientWidth).length"
    )
    assert shown.tab.evaluate(wider) == 0
    printed = shown.tab.pdf(prefer_css_page_size=True)
    boxes = {tuple(map(float, box.split())) for box in re.findall(rb"/MediaBox \[([\d. ]+)\]", printed)}
    assert {(round(width), round(height)) for _, _, width, height in boxes} == {(595, 842)}


@pytest.mark.parametrize(("name", "width", "scheme"), [("month", 1440, "light"), ("hostile", 390, "dark")])
def test_axe_finds_nothing(show: Any, name: str, width: int, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")

    found = axe.Axe().run(show(name, width, scheme).tab).response["violations"]
    assert [(each["id"], [node["html"] for node in each["nodes"]]) for each in found] == []


def test_hostile_names_are_text(show: Any) -> None:
    tab = show("hostile", 1440, "light").tab

    assert tab.evaluate("document.querySelectorAll('script, img, a, iframe, form, link').length") == 0
    text = tab.evaluate("document.body.textContent")
    for name in HOSTILE:
        seen = name.replace("\u202e", "\\u202e")
        assert (seen if len(seen) <= 120 else seen[:119] + "…") in text, name
    assert "\u202e" not in text
    pictures = tab.evaluate("[...document.querySelectorAll('.chart text')].map(each => each.textContent)")
    assert HOSTILE[0] in pictures
