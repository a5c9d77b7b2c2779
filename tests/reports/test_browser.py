"""Reports in a real browser: nothing is requested, and neither a phone nor paper cuts anything off."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import funcexplain as fe

pytest.importorskip("matplotlib")
playwright = pytest.importorskip("playwright.sync_api")

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
PHONE, DESKTOP = (390, 844), (1280, 900)
PAPER = (680, 1009)  # A4 less its margins, 96 pixels per inch
DAYS, ASSETS = 20, 40


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    binary = next(filter(None, map(shutil.which, BROWSERS)), None)
    if binary is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as driver:
        # Chromium refuses its sandbox to root, as whom containers run.
        opened = driver.chromium.launch(executable_path=binary, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One question in words longer than any line, and a grid."""
    torch.manual_seed(0)
    assets = [f"An asset of a very long name number {place}, <b>bold</b>" for place in range(ASSETS)]
    network = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(2 * DAYS * ASSETS, ASSETS), torch.nn.Softmax(-1)
    )
    target, x0 = torch.softmax(torch.randn(ASSETS), 0), torch.randn(2, DAYS, ASSETS)
    problem = fe.problem(network, target, x0, assets=assets)
    one = torch.tensor(0.03, dtype=torch.float64)
    count = torch.tensor(1000)
    numbers = (one, one / 10, one / 2, 2 * one, count, count, one[None])
    chance = fe.Probability(*numbers, fe.Status.HIT, ("subset",), ("",))
    grid = fe.vmap(fe.pipe(problem, fe.jitter(0.1)), seed=torch.arange(30))
    actual, scenario = (0.01 * torch.randn(2, DAYS, ASSETS)).cumsum(1).exp()
    plain = fe.problem(network, target, x0, assets=[f"A{place}" for place in range(ASSETS)])
    folder, history = tmp_path_factory.mktemp("reports"), torch.randn(2, 90, ASSETS)
    return {
        "one": fe.report(
            fe.solve(problem, max_steps=20),
            problem,
            folder / "one.html",
            history=history,
            prices=(actual, scenario),
            title="A headline without a space: " + "x" * 120,
            settings={"k" * 90: "v" * 300},
        ),
        "plain": fe.report(
            fe.solve(plain, fe.levenberg_marquardt(), max_steps=30, atol=1e-3),
            plain,
            folder / "plain.html",
            history=history,
            prices=(actual, scenario),
            probability=chance,
            ahead=DAYS - 1,
        ),
        "grid": fe.report(
            fe.solve(grid, fe.adam(lr=0.1), max_steps=20), grid, folder / "grid.html", history=history
        ),
    }


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
@pytest.mark.parametrize("name", ["one", "grid"])
def test_a_browser_shows_it(
    name: str, size: tuple[int, int], browser: Any, reports: dict[str, Path]
) -> None:
    page = browser.new_page(viewport={"width": size[0], "height": size[1]})
    messages: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(reports[name].as_uri())
    assert messages == []
    assert [url for url in requests if not url.startswith("data:")] == [reports[name].as_uri()]
    widths = page.evaluate("[...document.images].map(image => image.naturalWidth)")
    assert len(widths) >= 5
    assert min(widths) >= 600
    # Tables and pictures scroll by themselves; the page does not, and nothing hangs out of it.
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    beyond = "e => e.getBoundingClientRect().right > innerWidth"
    assert page.evaluate(f"[...document.querySelectorAll('main > *')].filter({beyond}).length") == 0
    page.close()


@pytest.mark.parametrize("name", ["one", "grid"])
def test_paper_holds_all_of_it(name: str, browser: Any, reports: dict[str, Path]) -> None:
    page = browser.new_page(viewport={"width": PAPER[0], "height": PAPER[1]})
    page.emulate_media(media="print")
    page.goto(reports[name].as_uri())
    boxes = page.evaluate(
        "[...document.querySelectorAll('figure, img, table')].map("
        "e => [e.tagName, e.getBoundingClientRect()])"
    )
    for kind, box in boxes:
        assert box["right"] <= PAPER[0], kind
        # A table may go on; a picture may not, and leaves room for its heading and caption.
        assert kind == "TABLE" or box["height"] <= 0.8 * PAPER[1]
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.close()


@pytest.mark.parametrize("width", [1280, 820])
def test_the_first_page_is_one_sheet(width: int, browser: Any, reports: dict[str, Path]) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto(reports["plain"].as_uri())
    height = "document.querySelector('section.front').getBoundingClientRect().height"
    assert page.evaluate(height) <= 2**0.5 * width
    page.emulate_media(media="print")
    page.set_viewport_size({"width": PAPER[0], "height": PAPER[1]})
    assert page.evaluate(height) <= PAPER[1]
    sheets = len(re.findall(rb"/Type\s*/Page\b(?!s)", page.pdf(format="A4")))
    assert 1 < sheets <= 6
    page.close()


def test_the_first_page_answers_what_a_reader_asks(browser: Any, reports: dict[str, Path]) -> None:
    page = browser.new_page(viewport={"width": PHONE[0], "height": PHONE[1]})
    page.goto(reports["plain"].as_uri())
    front = page.locator("section.front")
    assert front.get_by_role("heading", level=1).inner_text().startswith("What would have to happen")
    assert "over the next 19 trading days" in front.locator("p.lead").first.inner_text().lower()
    for asked in ("Is the target reached?", "How likely is it?", "How unusual would it be?",
                  "How sure is it?", "Why?"):  # fmt: skip
        card = front.locator(".card").filter(has=page.get_by_role("heading", name=asked, exact=True))
        assert card.count() == 1
        assert card.locator("b").inner_text()
        assert card.locator("p").inner_text().endswith(".")
    assert front.get_by_role("img").count() == 2
    text = front.inner_text()
    assert not [word for word in (" row", "atol", "linf", "loss", "sigma") if word in text.lower()]
    page.close()


def test_folded_parts_open(browser: Any, reports: dict[str, Path]) -> None:
    page = browser.new_page(viewport={"width": DESKTOP[0], "height": DESKTOP[1]})
    page.goto(reports["grid"].as_uri())
    folded = page.locator("details")
    assert folded.count() >= 4
    for part in folded.all():
        assert not part.locator("> :not(summary)").first.is_visible()
        part.locator("summary").click()
        assert part.locator("> :not(summary)").first.is_visible()
    page.close()
