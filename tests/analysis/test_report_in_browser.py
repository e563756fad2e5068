"""The report in a real browser, offline: hovering, selecting, filtering and sorting, in light and dark."""

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from helpers import all_figures

from pyrovae import Study, run

axe = pytest.importorskip(
    "axe_playwright_python.sync_playwright", reason="needs a browser: pip install -e '.[browser]'"
)
sync_api = pytest.importorskip("playwright.sync_api", reason="needs a browser: pip install -e '.[browser]'")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if BROWSER is None:  # of the whole module, as above: where it is asked for by name, as in .ci/run, that is a failure
    pytest.skip("needs a browser: no chromium is installed", allow_module_level=True)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    small = {"steps": 20, "width": 8, "train_images": 64, "test_images": 64, "batch_size": 16}
    folder = tmp_path_factory.mktemp("browser") / "mine"
    with all_figures():
        run(Study.load("quick", **small, beta=[0.1, 2, 10], seed=[0, 1]), out=folder, quiet=True)
    return (folder / "report.html").as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=BROWSER, args=arguments)
        yield opened
        opened.close()


@pytest.fixture(params=["light", "dark"])
def page(request: pytest.FixtureRequest, browser: Any, report: str) -> Iterator[Any]:
    """The report as it is opened from a file; whatever it complains of, or asks a network for, fails the test."""
    context = browser.new_context(color_scheme=request.param, viewport={"width": 1280, "height": 900}, offline=True)
    page, log = context.new_page(), []
    page.on("console", lambda message: log.append(message.text))
    page.on("pageerror", lambda error: log.append(str(error)))
    page.on(
        "request",
        lambda asked: None if asked.url.startswith(("file:", "data:", "blob:")) else log.append(asked.url),
    )
    page.goto(report)
    page.wait_for_selector("#plane .scatterlayer .point")
    yield page
    assert log == []
    context.close()


def points(page: Any) -> list[dict[str, Any]]:
    """The points that are drawn, with the run that they belong to, and where they are on the screen."""
    found: list[dict[str, Any]] = page.evaluate(
        """() => {
            const plane = document.getElementById("plane"), box = plane.getBoundingClientRect();
            const { xaxis, yaxis } = plane._fullLayout;
            return plane.data.slice(0, -1).flatMap((trace) => trace.x.map((x, at) => ({
                run: trace.customdata[at], x: x, y: trace.y[at], name: trace.name,
                left: box.left + xaxis._offset + xaxis.d2p(x),
                top: box.top + yaxis._offset + yaxis.d2p(trace.y[at]) })));
        }"""
    )
    return found


def panel(page: Any) -> dict[str, str]:
    names, values = page.locator("#run dt").all_text_contents(), page.locator("#run dd").all_text_contents()
    return dict(zip(names, values, strict=True))


def column(page: Any, heading: str) -> list[str]:
    number = page.locator("#runs thead th").all_text_contents().index(heading)
    return page.locator(f"#runs tbody tr:visible td:nth-child({number + 1})").all_text_contents()  # type: ignore[no-any-return]


def test_hovering_over_a_run_shows_it(page: Any) -> None:
    assert len(points(page)) == 24
    page.locator("#plane").scroll_into_view_if_needed()
    # The points that lie the farthest from all others, so that no other is nearer to the pointer.
    here = points(page)
    alone = sorted(
        here, key=lambda a: -min(abs(a["left"] - b["left"]) + abs(a["top"] - b["top"]) for b in here if b is not a)
    )
    for point in alone[:4]:
        page.mouse.move(point["left"], point["top"])
        page.wait_for_function("document.querySelectorAll('#run dt').length > 0")
        page.wait_for_timeout(200)
        shown = panel(page)
        assert shown[f"R {point['name'].split()[-1]}"] == f"{point['x']:.2f}"
        assert shown[f"D {point['name'].split()[-1]}"] == f"{point['y']:.2f}"
        assert shown["prior"] == "standard_normal"
        assert {"beta", "seed", "depth", "I", "G"} <= shown.keys()
        size = page.locator("#run img").evaluate("image => [image.naturalWidth, image.naturalHeight]")
        assert size == [8 * 16, 2 * 16]
        (row,) = page.locator("#runs tr.hovered").all()
        assert row.get_attribute("data-run") == str(point["run"])
        ring = page.evaluate(
            "(({ x, y }) => x.map((each, at) => [each, y[at]]))(document.getElementById('plane').data.at(-1))"
        )
        assert [point["x"], point["y"]] in ring
        assert len(ring) == 2  # on train and on test


def test_click_selects_a_run_and_another_deselects_it(page: Any) -> None:
    rows = page.locator("#runs tbody tr")
    rows.nth(2).click()
    selected = panel(page)
    rows.nth(5).hover()
    assert panel(page) == selected
    rows.nth(2).click()
    rows.nth(5).hover()
    assert panel(page) != selected
    rows.nth(2).click()
    page.keyboard.press("Escape")
    rows.nth(5).hover()
    assert panel(page) != selected
    rows.nth(2).click()
    page.locator(f"#filters input[data-axis=seed][value='{selected['seed']}']").uncheck()
    assert page.locator("#run.selected").count() == 0
    page.locator(f"#filters input[data-axis=seed][value='{selected['seed']}']").check()
    rows.nth(3).focus()
    assert panel(page)["beta"] == column(page, "beta")[3]


def test_filter_hides_runs_in_plane_and_table(page: Any) -> None:
    page.locator("#filters input[data-axis=beta][value='10']").uncheck()
    page.locator("#filters input[data-axis=depth][value='3']").uncheck()
    assert len(points(page)) == 8
    assert set(column(page, "beta")) == {"0.1", "2"}
    assert set(column(page, "depth")) == {"1"}
    assert page.locator("#plane .scatterlayer .point").count() == 8
    page.locator("#filters input[data-axis=beta][value='10']").check()
    assert len(points(page)) == 12
    traces = "document.getElementById('plane').data.slice(0, -1)"
    symbols = page.evaluate(f"{traces}.map(t => t.marker.symbol.length === t.x.length && t.text.length === t.x.length)")
    assert all(symbols)


def test_headings_sort_numbers_as_numbers(page: Any) -> None:
    heading = page.locator("#runs thead button", has_text="D test")
    heading.click()
    values = [float(text) for text in column(page, "D test")]
    assert values == sorted(values)
    heading.click()
    assert [float(text) for text in column(page, "D test")] == sorted(values, reverse=True)
    page.locator("#runs thead button", has_text="beta").click()
    assert column(page, "beta") == ["0.1"] * 4 + ["2"] * 4 + ["10"] * 4
    assert page.locator("#runs th[aria-sort=ascending]").all_text_contents() == ["beta"]


# WCAG's contrast of text in the plane and the paper; the tool does not check figures.
CONTRAST = """(element) => {
    const luminance = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map((each) => each / 255)
        .map((each) => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4)
        .reduce((sum, each, at) => sum + each * [0.2126, 0.7152, 0.0722][at], 0);
    const both = [getComputedStyle(element).fill, getComputedStyle(document.body).backgroundColor];
    const [low, high] = both.map(luminance).sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
}"""


def test_no_button_of_the_plane_sends_it_anywhere(page: Any) -> None:
    titles = page.eval_on_selector_all(".modebar-btn", "all => all.map((each) => each.dataset.title)")
    moves = ["Zoom", "Pan", "Zoom in", "Zoom out", "Autoscale", "Reset axes"]
    assert titles == ["Download plot as a PNG", *moves]


def test_page_meets_the_guidelines_for_accessible_content(page: Any) -> None:
    """WCAG 2.1 AA, as far as a tool can check it."""
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    levels = {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}
    found = axe.Axe().run(page, options={"runOnly": levels}).response
    assert [(each["id"], [node["html"] for node in each["nodes"]]) for each in found["violations"]] == []
    assert "color-contrast" in {each["id"] for each in found["passes"]}


def test_text_of_the_plane_has_contrast_and_the_page_fits_a_phone(page: Any) -> None:
    for seen in ("#plane .xtick text", "#plane .legendtext", "#plane .ytitle"):
        assert page.locator(seen).first.evaluate(CONTRAST) > 4.5, seen
    page.set_viewport_size({"width": 400, "height": 800})
    page.wait_for_function("document.documentElement.scrollWidth <= 400")
