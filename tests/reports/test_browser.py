"""Reports in a real browser: nothing is requested, and neither a phone nor paper cuts anything off."""

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
    grid = fe.vmap(fe.pipe(problem, fe.jitter(0.1)), seed=torch.arange(30))
    actual, scenario = (0.01 * torch.randn(2, DAYS, ASSETS)).cumsum(1).exp()
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
    assert min(widths) > 600
    # Tables and pictures scroll by themselves; the page does not, and nothing hangs out of it.
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    beyond = "e => e.getBoundingClientRect().right > innerWidth"
    assert page.evaluate(f"[...document.body.children].filter({beyond}).length") == 0
    if size == DESKTOP:
        tops = "[...document.querySelectorAll('.card')].map(e => e.getBoundingClientRect().top)"
        assert len(set(page.evaluate(tops))) == 1
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
