"""A Chromium for the tests of pages, and pages with something of everything."""

import contextlib
import json
import re
import shutil

import pytest

from normsmith import report as r

HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>\u2028 `code`"
SPEC = {
    "data": {"name": "curve"},
    "mark": {"type": "line", "point": True},
    "encoding": {"x": {"field": "x", "type": "quantitative"}, "y": {"field": "y", "type": "quantitative"}},
}


@contextlib.contextmanager
def chromium():
    """A browser, or a skip with the reason."""
    sync = pytest.importorskip("playwright.sync_api", reason="no Playwright here")
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium here")
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found)
        yield browser
        browser.close()


class Watched:
    """A page in the browser, with what it complained about and asked for."""

    def __init__(self, browser, path, **options):
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.complaints, self.requests = [], []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def drawn(self, selector="body"):
        """How many charts under a selector have marks, once those in view are drawn."""
        return self.page.locator(f"{selector} .drawing[data-drawn]").count()

    def close(self, path):
        assert self.complaints == []
        assert {url.partition("#")[0] for url in self.requests if not url.startswith("data:")} == {path.as_uri()}
        self.context.close()


def store_of(html):
    """What the scripts of a page read."""
    return json.loads(re.search(r'<script type="application/json" id="store">(.*?)</script>', html, re.DOTALL)[1])


def everything(name="layer.0"):
    """A page with each kind of piece."""
    chart = r.Chart(
        SPEC, {"curve": {"x": [1, 2, 3], "y": [1.0, None, 3.0]}}, "A chart", f"Its caption: {name}.", "rises from 1 to 3"
    )
    heat = r.Heatmap({"mean": r.packed([0.0, 1.0, 50.0, float("nan")]), "weight": [1.0, 1.0, 1.0, 2.0]}, range(4), "channel")
    inside = [r.Facts([("size", 3), ("share", 0.25)]), r.Grid([chart, chart]), heat]
    entries = [
        r.Entry(name, inside, "error", "BatchNorm2d", [("gap", 1.25)], ["NS102"]),
        r.Entry("layer.1", [r.Text("nothing")], "", "GroupNorm", [("gap", None)]),
        r.Entry("head", inside, "warning", "BatchNorm1d"),
    ]
    cells = [r.Cell(entry.name, entry.level, "NS102") for entry in entries]
    rows = [[r.Link(name, to=name), 0.5, 12, "text", None]] * 3
    pieces = [
        r.Card(
            "Something",
            [r.Text(f"First `code`.\n\nSecond: {name}."), r.Table(["layer", "a", "b", "c", "d"], rows, shown=2)],
            "error",
            "NS102",
        ),
        r.Code(f"cure({name!r})", "cure"),
        r.Links("see", [r.Link("paper", url="https://arxiv.org/abs/1"), r.Link("nowhere", to="no such entry")]),
        r.Picture(_png(), "a dot", "A dot."),
    ]
    sections = [
        r.Section("Findings", pieces),
        r.Section("Network", [r.Map([r.Group("layer", cells)])]),
        r.Section("Layers", [r.Entries(entries, "layers")]),
    ]
    return r.Page(f"Net {name}", sections, f"subtitle {name}", name)


def _png():
    import base64

    return base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")
