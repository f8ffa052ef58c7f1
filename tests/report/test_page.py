"""The pieces of a page without a browser: what is escaped, what is kept once, what numbers survive."""

import base64
import math
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from report.helpers_report import HOSTILE, SPEC, everything, store_of

import normsmith as ns
from normsmith import report as r
from normsmith.report.pieces import number

VOID = {"meta", "link", "img", "input", "br"}


class _Tags(HTMLParser):
    """Elements that were opened and closed, and where ids and links point."""

    def __init__(self, html):
        super().__init__()
        self.open, self.ids, self.links, self.scripts, self.handlers, self.sources = [], [], [], 0, [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.scripts += tag == "script"
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found["href"]] if tag == "a" else []
        self.sources += [found[key] for key in ("src", "href") if key in found and tag in {"img", "link", "script"}]
        self.handlers += [key for key in found if key.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in {"circle", "path"}:
            while self.open and self.open[-1] in {"circle", "path"}:
                self.open.pop()
            assert self.open.pop() == tag


def test_the_elements_fit():
    tags = _Tags(everything().html())
    assert tags.open == []
    assert len(set(tags.ids)) == len(tags.ids)
    inner = [link[1:] for link in tags.links if link.startswith("#")]
    assert set(inner) <= set(tags.ids)
    assert len(inner) >= 3 + 3 + 3 + 1  # sections, map, table, skip
    assert tags.sources  # the icon
    assert all(source.startswith("data:") for source in tags.sources)


def test_what_a_model_is_called_is_text():
    plain, hostile = _Tags(everything().html()), _Tags(everything(HOSTILE).html())
    assert hostile.scripts == plain.scripts
    assert hostile.handlers == []
    assert hostile.open == []


def test_data_cannot_end_their_script():
    chart = r.Chart({**SPEC, "title": HOSTILE}, {"curve": {"x": [HOSTILE], HOSTILE: [1]}})
    html = r.Page("x", [r.Section("s", [chart])]).html()
    store = store_of(html)
    assert store["specs"][0]["title"] == HOSTILE
    assert [HOSTILE] in store["columns"]
    assert HOSTILE in store["charts"][0][1]["curve"]
    assert "window.hacked = 1</script>" not in html
    assert "\u2028" not in html


def test_what_charts_share_is_there_once():
    charts = [r.Chart(SPEC, {"curve": {"x": [1, 2, 3], "y": [index, 1, 2]}}) for index in range(50)]
    store = store_of(r.Page("x", [r.Section("s", charts)]).html())
    assert len(store["specs"]) == 1
    assert len(store["columns"]) == 51
    assert len(store["charts"]) == 50


def test_a_picture_is_there_once():
    pictures = [r.Picture(b"one", "1"), r.Picture(b"two", "2"), r.Picture(b"one", "3")]
    html = r.Page("x", [r.Section("s", pictures)]).html()
    assert html.count(base64.b64encode(b"one").decode()) == 1
    assert [html.count(f'data-picture="{index}"') for index in (0, 1, 2)] == [2, 1, 0]


def test_charts_of_altair():
    altair = pytest.importorskip("altair")
    made = altair.Chart(altair.Data(values=[{"a": 1, "b": 2}, {"a": 3}])).mark_point().encode(x="a:Q", y="b:Q")
    store = store_of(r.Page("x", [r.Section("s", [r.Chart(made)])]).html())
    ((spec, tables),) = store["charts"]
    assert store["specs"][spec]["mark"]["type"] == "point"
    values = store["specs"][spec]["data"].get("values") or [store["columns"][i] for i in next(iter(tables.values())).values()]
    assert values in ([{"a": 1, "b": 2}, {"a": 3}], [[1, 3], [2, None]])


@pytest.mark.parametrize(
    "values",
    [
        [0.0, 1.0, -1.0, 1e6, -3e-4],
        np.random.default_rng(0).standard_cauchy(5000),
        [5.0] * 4,
        [1e30, 2e30, 3e30],
        [float("nan"), 1.0, float("inf"), 2.0],
    ],
)
def test_packed_numbers_are_close(values):
    found = r.packed(values)
    codes = np.frombuffer(base64.b64decode(found["p"]), dtype="<u2")
    step = (found["b"] - found["a"]) / 65534
    back = found["m"] + found["s"] * np.sinh(found["a"] + codes * step)
    values = np.asarray(values, dtype=float)
    held = np.isfinite(values)
    assert np.array_equal(codes == 65535, ~held)
    away = np.abs(values[held] - found["m"])
    assert np.all(np.abs(back[held] - values[held]) <= 3e-4 * np.maximum(away, found["s"]) + 1e-12)


def test_packed_without_a_number():
    assert r.packed([float("nan")] * 3) == {"n": 3}


def test_numbers_that_are_none_become_null():
    store = store_of(
        r.Page("x", [r.Section("s", [r.Chart(SPEC, {"curve": {"x": [1.0, math.nan, math.inf], "y": [1, 2, 3]}})])]).html()
    )
    assert [1.0, None, None] in store["columns"]
    with pytest.raises(ns.InputError, match="got a object"):
        r.Page("x", [r.Section("s", [r.Chart(SPEC, {"curve": {"x": [object()]}})])]).html()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.12345, "0.123"),
        (-2.0, "\u22122"),
        (1234567, "1\u202f234\u202f567"),
        (1e-7, "1e\u221207"),
        ("a", "a"),
        (True, "True"),
    ],
)
def test_numbers_as_they_are_shown(value, text):
    assert number(value).replace("-", "\u2212") == text


def test_pages_without_charts_do_not_carry_vega():
    small = r.Page("x", [r.Section("s", [r.Text("t")])]).html()
    assert len(small) < 40_000
    assert "vegaEmbed" not in small.partition("<script type")[2].partition("store")[0]


def test_entries_of_one_name_are_refused():
    entries = [r.Entry("a", []), r.Entry("a", [])]
    with pytest.raises(ns.InputError, match="'a' twice"):
        r.Page("x", [r.Section("s", [r.Entries(entries)])]).html()
    names = [r.Entry("a b", []), r.Entry("a-b", []), r.Entry("A B", [])]
    assert len(set(_Tags(r.Page("x", [r.Section("s", [r.Entries(names)])]).html()).ids)) >= 6


def test_saved_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    assert everything().save(path) == path
    before = path.read_text()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        r.Page("other", []).save(path)
    assert path.read_text() == before


@pytest.mark.parametrize("package", ["jinja2", "vl_convert"])
def test_packages_that_are_not_there(package, monkeypatch):
    from normsmith.report.charts import vega

    vega.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ns.DependencyError, match=r"normsmith\[report\]"):
        everything().html()
