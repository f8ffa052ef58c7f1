"""A page in a real Chromium: drawn, quiet, offline, by mouse and by keyboard."""

import pytest
from report.helpers_report import HOSTILE, Watched, chromium, everything

from normsmith.report import Chart, Page, Section


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return everything(HOSTILE).save(tmp_path_factory.mktemp("page") / "page.html")


@pytest.fixture
def watched(browser, path):
    found = Watched(browser, path, viewport={"width": 1200, "height": 800}, color_scheme="light")
    yield found
    found.close(path)


def opened(page):
    return page.locator(".entry[open] .name").all_text_contents()


def focused(page):
    return page.evaluate("document.activeElement.closest('.entry')?.querySelector('.name').textContent")


def test_hostile_names_are_shown_and_do_not_run(watched):
    assert HOSTILE.replace("\u2028", "") in watched.page.locator(".entry .name").first.text_content().replace("\u2028", "")
    assert watched.page.evaluate("window.hacked") is None
    watched.page.locator(".map a").first.click()
    watched.page.wait_for_selector(".entry[open] .drawing[data-drawn]")
    assert watched.page.evaluate("window.hacked") is None


def test_charts_are_drawn_when_their_entry_is_opened(watched):
    page = watched.page
    assert watched.drawn() == 0
    page.locator(".entry summary").first.click()
    page.wait_for_function("document.querySelectorAll('.entry[open] .drawing[data-drawn]').length === 3")
    assert page.locator(".entry[open] svg .mark-symbol path").count() == 4  # two charts of two points that are not null
    pixels = "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data].filter((v, i) => i % 4 == 3 && v).length"
    assert page.locator(".entry[open] canvas").evaluate(pixels) >= 3


def test_charts_of_altair(browser, tmp_path):
    """Layers that share data, and facets, which are as wide as they say."""
    altair = pytest.importorskip("altair")
    rows = [{"x": x, "y": x * k, "of": str(k)} for x in range(5) for k in (1, 2)]
    base = altair.Chart(altair.Data(values=rows)).encode(x="x:Q", y="y:Q", color="of:N")
    facets = base.mark_point().encode(column="of:N").properties(width=90, height=60)
    charts = [Chart(base.mark_line() + base.mark_point()), Chart(facets)]
    path = Page("altair", [Section("charts", charts)]).save(tmp_path / "page.html")
    watched = Watched(browser, path, viewport={"width": 1200, "height": 900})
    watched.page.wait_for_function("document.querySelectorAll('[data-drawn]').length === 2")
    assert watched.page.locator(".mark-symbol.role-mark path").count() == 20
    widths = [svg.bounding_box()["width"] for svg in watched.page.locator(".drawing svg").all()]
    assert widths[0] > 1000
    assert 200 < widths[1] < 400
    watched.close(path)


def test_a_heat_map_is_read_by_mouse_and_keyboard(watched):
    page = watched.page
    page.locator(".entry summary").first.click()
    canvas, readout = page.locator(".entry[open] canvas"), page.locator(".entry[open] .readout")
    canvas.wait_for()
    canvas.hover(position={"x": 5, "y": 5})
    assert "channel 0" in readout.text_content()
    canvas.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert readout.text_content().startswith("channel 2mean 50weight 1")
    page.keyboard.press("End")
    assert readout.text_content().startswith("channel 3mean noneweight 2")
    page.locator(".entry[open] details.numbers summary").click()
    rows = page.locator(".entry[open] details.numbers tbody tr").all_text_contents()
    assert rows == ["mean001502", "weight10123"]


def test_the_filter_by_words_and_by_level(watched):
    page = watched.page
    shown, visible = page.locator("#shown"), page.locator(".entry:visible .name")
    page.keyboard.press("/")
    page.keyboard.type("batchnorm HEAD")
    assert visible.all_text_contents() == ["head"]
    assert shown.text_content() == "1 of 3 layers"
    assert page.locator(".map a.off").count() == 2
    page.keyboard.press("Escape")
    assert visible.count() == 3
    page.locator("button.level.error").click()
    assert visible.all_text_contents() == ["layer.1", "head"]
    page.locator("#filter").fill("no such thing")
    assert visible.count() == 0
    assert page.locator(".entries .none").is_visible()


def test_from_entry_to_entry_by_keys(watched):
    page = watched.page
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert focused(page) == "layer.1"
    page.keyboard.press("Enter")
    assert opened(page) == ["layer.1"]
    page.keyboard.press("j")
    assert (opened(page), focused(page)) == (["head"], "head")
    page.wait_for_selector(".entry[open] .drawing[data-drawn]")
    page.keyboard.press("k")
    assert opened(page) == ["layer.1"]
    page.keyboard.press("Escape")
    assert (opened(page), focused(page)) == ([], "layer.1")
    page.keyboard.press("ArrowDown")
    assert focused(page) == "head"


def test_links_lead_to_entries_also_filtered_ones(watched):
    page = watched.page
    page.locator("#filter").fill("head")
    page.locator(".map a").nth(1).click()
    page.wait_for_function("document.querySelectorAll('.entry[open]').length === 1")
    assert (opened(page), focused(page)) == (["layer.1"], "layer.1")
    assert page.locator("#filter").input_value() == ""
    page.keyboard.press("Escape")
    page.locator(".map a").nth(1).click()  # the address is the same as before
    assert opened(page) == ["layer.1"]
    page.reload()
    assert opened(page) == ["layer.1"]


def test_all_controls_are_reached_by_tab(watched):
    page, seen = watched.page, []
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    for _ in range(40):
        page.keyboard.press("Tab")
        seen.append(
            page.evaluate("document.activeElement.id || document.activeElement.className || document.activeElement.tagName")
        )
    assert {"theme", "filter", "SUMMARY"} <= set(seen)
    assert any("copy" in name for name in seen)
    assert any("cell" in name for name in seen)


def test_code_is_copied(browser, path):
    found = Watched(browser, path, permissions=["clipboard-read", "clipboard-write"])
    found.page.locator(".copy").first.click()
    found.page.wait_for_function("document.querySelector('.copy').textContent === 'Copied'")
    assert "cure(" in found.page.evaluate("navigator.clipboard.readText()")
    found.close(path)


def test_pictures_are_shown(watched):
    picture = watched.page.locator(".picture img")
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") == 1


def test_rows_beyond_the_first_are_shown_on_demand(watched):
    rows = watched.page.locator(".card tbody tr:visible")
    assert rows.count() == 2
    watched.page.locator("button.all").click()
    assert rows.count() == 3


COLOURS = "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.querySelector('svg .role-axis-label text')).fill]"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_themes(browser, path, scheme):
    """The charts follow without being drawn again."""
    found = Watched(browser, path, color_scheme=scheme)
    found.page.locator(".entry summary").first.click()
    found.page.wait_for_selector("svg .role-axis-label text")
    first = found.page.evaluate(COLOURS)
    bright = sum(map(int, first[0][4:-1].split(",")[:3]))
    assert (bright > 600) == (scheme == "light")
    found.page.locator("#theme").click()
    second = found.page.evaluate(COLOURS)
    assert first[0] != second[0]
    assert first[1] != second[1]
    found.page.emulate_media(media="print")
    assert sum(map(int, found.page.evaluate(COLOURS)[0][4:-1].split(",")[:3])) > 600
    found.close(path)


def test_on_a_phone(browser, path):
    found = Watched(browser, path, viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
    for summary in found.page.locator(".entry summary").all():
        summary.tap()
    found.page.wait_for_selector(".entry[open] .drawing[data-drawn]")
    assert found.page.evaluate("document.documentElement.scrollWidth") <= 360
    assert found.page.evaluate("document.body.scrollWidth") <= 360
    found.close(path)
