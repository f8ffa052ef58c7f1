"""The page of a comparison: what is on it, that it agrees with the data; and in a browser that it is drawn and runs nothing else."""

import base64

import numpy as np
import pytest
from comparison.helpers_results import TRIAL, fill, put
from report.helpers_report import HOSTILE, Watched, chromium, store_of

from normsmith.comparison.comparison import Comparison
from normsmith.comparison.page_data import families, palette
from normsmith.comparison.settings import group, titles
from normsmith.errors import OptionError

LARGE = {"batch": [0.93, 0.94, 0.935], "group": [0.93, 0.935, 0.94], "switchable": [0.92, 0.935, 0.92]}
SMALL = {"batch": [0.60, 0.62, 0.61], "group": [0.93, 0.94, 0.94], "switchable": [0.93, 0.935, 0.92]}
PARTS = {"batch": 0.2, "instance": 0.3, "layer": 0.5}


def layers(seed, *, shares=True):
    """What a recipe can ask to be recorded; the first layer has no gain, as in a chain."""
    found = []
    for epoch in range(3):
        for layer in ("stem.norm", "body.norm", "head.norm"):
            if shares:
                found += [
                    (epoch, 0, layer, f"{of} share of {part}", share) for of in ("mean", "var") for part, share in PARTS.items()
                ]
            if layer != "stem.norm":
                found.append((epoch, 0, layer, "gain", 0.9))
        found += [(epoch, 0, layer, "variance", 1.0 + seed) for layer in ("stem.norm", "body.norm", "head.norm")]
    return found


def filled(path, *, crashed=True, **trial):
    """A folder with something of everything."""
    fill(path, LARGE, target_accuracy=0.9, **trial)
    for name, scores in SMALL.items():
        for seed, score in enumerate(scores):
            records = layers(seed) if name == "switchable" else ()
            put(path, name, seed, score, batch=2, records=records, **trial)
    put(path, "rms", 0, 0.2, status="diverged", batch=2, **trial)
    if crashed:
        fault = {"error": f"RuntimeError: {HOSTILE}", "traceback": f"Traceback of {HOSTILE}"}
        for seed in (0, 1):
            put(path, "ghost", seed, None, status="crashed", batch=2, manifest=fault, **trial)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return filled(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def html(folder, tmp_path_factory):
    return Comparison.load(folder).save(tmp_path_factory.mktemp("page") / "report.html").read_text()


def charts_of(html):
    """The data of all charts by their title, columns by name."""
    import re

    store = store_of(html)
    titles = re.findall(r'<figure class="chart">(?:<h4>(.*?)</h4>)?<div class="drawing"[^>]*data-chart="(\d+)"', html)
    found = {}
    for title, index in titles:
        _, tables = store["charts"][int(index)]
        found.setdefault(title, {n: {k: store["columns"][c] for k, c in t.items()} for n, t in tables.items()})
    return found


def unpacked(column):
    codes = np.frombuffer(base64.b64decode(column["p"]), dtype="<u2").astype(float)
    return column["m"] + column["s"] * np.sinh(column["a"] + codes * (column["b"] - column["a"]) / 65534)


def test_the_verdict_comes_first(html, folder):
    text = html.partition("<main")[2].replace("\u00a0", " ").replace("\u2212", "-")
    for sentence in Comparison.load(folder).verdict:
        assert sentence in text
    assert text.count('class="text leading"') == 1
    assert text.index(Comparison.load(folder).verdict[0]) < text.index("<table")
    assert "Batch 2: no winner" in text
    assert '<span class="line small good">+32.7 (+31.2 to +34.1) *</span>' in text
    assert "5 normalizers, 2 settings, 3 seeds: 21 trials, 1 diverged and 2 crashed. Baseline: batch." in text


def test_the_charts_agree_with_the_statistics(html, folder):
    charts = charts_of(html)
    means = charts["Accuracy at batch 2"]["means"]
    assert means["normalizer"] == ["group", "switchable", "batch", "rms"]
    assert means["mean"][0] == pytest.approx(100 * (0.93 + 0.94 + 0.94) / 3, rel=1e-4)
    assert means["ranks"][3] == "1 to 4", "one seed rules nothing out"
    beside = charts["Beside batch at batch 2"]
    assert beside["means"]["clear"] == [True, True, False, False]
    assert beside["seeds"]["score"][:3] == pytest.approx([33, 32, 33])
    pairs = charts["Seed by seed at batch 2"]["pairs"]
    assert pairs["baseline"][:3] == [60, 62, 61]
    assert pairs["score"][:3] == [93, 94, 94]
    by_batch = charts["Accuracy by batch size"]["means"]
    assert sorted(zip(by_batch["normalizer"], by_batch["batch"], strict=True))[:2] == [("batch", 2), ("batch", 32)]
    curve, names = (charts["Test accuracy, %, batch 32"][name] for name in ("curve", "names"))
    own = [at for at, n in enumerate(curve["n"]) if names["normalizer"][names["n"].index(n)] == "batch"]
    assert [curve["epoch"][at] for at in own] == [1, 2, 3]
    assert unpacked(curve["mean"])[own[-1]] == pytest.approx(93.5, rel=1e-3)
    assert (unpacked(curve["low"])[own[-1]], unpacked(curve["high"])[own[-1]]) == pytest.approx((93, 94), rel=1e-3)
    cost = charts["Accuracy over milliseconds a step, batch 32"]
    assert dict(zip(cost["costs"]["normalizer"], cost["costs"]["x"], strict=True))["group"] == 12
    assert cost["front"]["x"] == [10], "nothing is both cheaper and better than batch norm"


def test_layers_are_in_the_order_of_the_model(html):
    charts = charts_of(html)
    end = charts["Shares of the variance at the end"]["shares"]
    assert end["layer"][:3] == ["stem.norm", "body.norm", "head.norm"]
    assert end["depth"][:3] == [1, 2, 3]
    assert dict(zip(end["part"], end["share"], strict=True)) == PARTS
    assert charts["switchable: gain by epoch, batch 2"]["layers"]["depth"] == [2, 3], "though the first has no gain"
    assert charts["Variance by depth at the end"]["depth"]["mean"] == [2, 2, 2], "the mean of seeds 0, 1, 2"


def test_failures_are_told_once_with_their_traceback(html):
    failures = html.partition('<section id="failures"')[2].partition("</section>")[0]
    assert failures.count('<details class="fold">') == 1
    assert "2 trials: RuntimeError: " in failures
    assert "ghost at batch 2, seed 0 (digits, shallow_cnn); ghost at batch 2, seed 1" in failures
    assert "Traceback of &lt;/script&gt;" in failures
    assert "rms" in failures
    assert "<script" not in failures


def test_links_and_files_beside_it(folder, tmp_path):
    comparison = Comparison.load(folder)
    comparison.save(tmp_path / "my report.csv")
    html = comparison.save(tmp_path / "my report.html", links={'a "model" <b>': "examine-best.html"}).read_text()
    assert '<a href="examine-best.html" rel="noreferrer">a &#34;model&#34; &lt;b&gt;</a>' in html
    assert '<a href="my%20report.csv" rel="noreferrer">my report.csv</a>' in html
    assert "my report.json" not in html
    assert not list(tmp_path.glob("*.part"))
    with pytest.raises(OptionError, match=r"links with a path that ends in \.html: got 'r\.json'"):
        comparison.save(tmp_path / "r.json", links={"a": "a.html"})
    for address in ("javascript:alert(1)", "https://example.org/", "//example.org/a"):
        with pytest.raises(OptionError, match="pages beside the report"):
            comparison.save(tmp_path / "r.html", links={"a": address})


def test_the_recipe_and_the_machine(tmp_path):
    fill(tmp_path, LARGE)
    put(tmp_path, "layer", 0, 0.9, source="2", manifest={"notes": ["some files were unreadable"]})
    recipe = {
        "name": "mine",
        "optimizers": [{"name": "sgd", "learning_rate": [0.1, 0.2]}],
        "normalizers": ["batch", {"head": None}],
    }
    (tmp_path / "recipe.json").write_text(__import__("json").dumps(recipe))
    html = Comparison.load(tmp_path).save(tmp_path / "report.html").read_text()
    assert "<h1>Comparison: mine</h1>" in html
    assert ">optimizers.learning_rate</th><td>0.1, 0.2</td>" in html
    assert "batch, {head = as it is}" in html
    assert "1 (9 trials), 2 (1 trial)" in html
    assert "some files were unreadable" in html
    assert "trials of 2 versions of the source stand side by side" in html


def test_one_seed_one_batch_size(tmp_path):
    fill(tmp_path, {"batch": [0.9], "group": [0.8]})
    html = Comparison.load(tmp_path).save(tmp_path / "r.html").read_text()
    assert "which says nothing about the next; run at least 3.</p>" in html
    charts = charts_of(html)
    assert set(charts) == {
        "Accuracy at batch 32",
        "Beside batch at batch 32",
        "Test accuracy, %, batch 32",
        "Training loss, batch 32",
        "Accuracy over milliseconds a step, batch 32",
        "Accuracy over MiB kept for the backward pass, batch 32",
    }


def test_nothing_finished_well(tmp_path):
    put(tmp_path, "batch", 0, None, status="crashed")
    html = Comparison.load(tmp_path).save(tmp_path / "r.html").read_text()
    assert "No accuracy, no verdict." in html
    assert "1 trial crashed and has no accuracy." in html
    assert set(charts_of(html)) == {"Test accuracy, %, batch 32", "Training loss, batch 32"}, "what it came to"


def test_the_best_have_colours_and_the_rest_are_grey(tmp_path):
    fill(tmp_path, {"batch": [0.5, 0.51], **{f"m{number}": [0.6 + number / 100] * 2 for number in range(20)}})
    comparison = Comparison.load(tmp_path)
    colours = palette(comparison.statistics)
    assert colours.colours["batch"] == "var(--ink)"
    assert colours.colours["m19"] == "var(--series-1)"
    assert colours.plain == {f"m{number}" for number in range(12)}
    assert colours.drawn(["m19", "m0", "batch"]) == ["m0", "m19", "batch"], "grey ones do not hide the others"


def test_long_curves_are_thinned_and_keep_their_end(tmp_path, monkeypatch):
    monkeypatch.setattr("normsmith.comparison.page_data.POINTS", 40)
    long = [(epoch, epoch, "", "test loss", 0.0) for epoch in range(3, 1000)]
    for seed in range(2):
        put(tmp_path, "batch", seed, 0.9, records=[*long, *((e, e, "", "accuracy", e / 1000) for e in range(3, 1000))])
    comparison = Comparison.load(tmp_path)
    groups, _ = group(comparison.results.trials)
    [family] = families(comparison.results, comparison.statistics, groups, titles(comparison.statistics.settings))
    curve = family.curves.filter(name="accuracy")
    assert curve["epoch"].max() == 999
    assert 15 <= len(curve) <= 20, "half of 40 points: there are two curves"
    assert curve["mean"].to_list() == [
        epoch / 1000 if epoch > 2 else pytest.approx(0.3 * (epoch + 1)) for epoch in curve["epoch"]
    ]


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Two families, and a normalizer, a layer and a model with names that would run if they were not text."""
    path = filled(tmp_path_factory.mktemp("hostile"))
    for model in (HOSTILE, "shallow_cnn"):
        put(path, HOSTILE, 0, 0.5, model=model, batch=2, records=[(0, 0, HOSTILE, f"mean share of {HOSTILE}", 1.0)])
    put(path, "batch", 0, 0.6, model=HOSTILE, batch=2)
    return Comparison.load(path).save(path / "report.html", links={HOSTILE: "examine.html"})


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    path = filled(tmp_path_factory.mktemp("single"), crashed=False)
    return Comparison.load(path).save(path / "report.html")


def all_drawn(page):
    """Scroll until every chart that is not folded away is drawn."""
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    places = page.locator(".drawing")
    for at in range(places.count()):
        places.nth(at).scroll_into_view_if_needed()
        page.wait_for_function(f"document.querySelectorAll('.drawing')[{at}].dataset.drawn === 'yes'")
    return places.count()


def test_all_charts_are_drawn(browser, single):
    watched = Watched(browser, single, viewport={"width": 1200, "height": 900})
    assert all_drawn(watched.page) > 20
    empty = "[...document.querySelectorAll('.drawing svg')].filter((svg) => !svg.querySelector('.role-mark path, .role-mark line')).length"
    assert watched.page.evaluate(empty) == 0
    overflow = "[...document.querySelectorAll('.drawing')].filter((place) => place.scrollWidth > place.clientWidth + 1).length"
    assert watched.page.evaluate(overflow) == 0
    watched.close(single)


def test_what_is_pushed_in_the_key_stands_out(browser, single):
    watched = Watched(browser, single, viewport={"width": 1200, "height": 900})
    page = watched.page
    page.wait_for_selector(".drawing[data-drawn] svg")
    first = "document.querySelectorAll('.drawing svg')[0]"
    strong = (
        f"[...{first}.querySelectorAll('.mark-line path')].filter((p) => (p.getAttribute('opacity') ?? '1') === '1').length"
    )
    assert page.evaluate(strong) == 4
    key = page.locator(".key button")
    assert key.all_text_contents()[0] == "batch"
    key.nth(1).focus()
    page.keyboard.press("Enter")
    page.wait_for_function(f"{strong} === 1")
    assert key.nth(1).get_attribute("aria-pressed") == "true"
    page.locator("#learning").scroll_into_view_if_needed()
    page.wait_for_selector("#learning .drawing[data-drawn] svg")
    later = strong.replace(first, "document.querySelector('#learning svg')")
    page.wait_for_function(f"{later} === 1")
    page.keyboard.press("Escape")
    page.wait_for_function(f"{strong} === 4")
    watched.close(single)


def test_families_are_rows_that_keys_go_through(browser, hostile):
    watched = Watched(browser, hostile, viewport={"width": 1200, "height": 900})
    page = watched.page
    entries = page.locator(".entry")
    assert entries.count() == 2
    assert page.locator("#settings .level").count() == 0
    assert page.locator(".entry[open]").count() == 1
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert entries.nth(1).get_attribute("open") is not None
    page.locator("#filter").fill("shallow")
    assert page.locator(".entry:visible").count() == 1
    page.locator("#verdict table a").first.click()
    page.wait_for_function("document.querySelectorAll('.entry:not([hidden])').length === 2")
    watched.close(hostile)


def test_hostile_names_do_not_run(browser, hostile):
    watched = Watched(browser, hostile, viewport={"width": 1200, "height": 900})
    all_drawn(watched.page)
    point = watched.page.locator(".drawing svg .role-mark path").first
    point.hover(force=True)
    assert watched.page.evaluate("window.hacked") is None
    assert "window.hacked" in watched.page.locator("#failures").text_content()
    watched.close(hostile)


@pytest.mark.parametrize("which", ["single", "hostile"])
def test_on_a_phone(browser, which, request):
    path = request.getfixturevalue(which)
    watched = Watched(browser, path, viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
    watched.page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    watched.page.locator(".drawing").first.scroll_into_view_if_needed()
    watched.page.wait_for_selector(".drawing[data-drawn]")
    assert watched.page.evaluate("document.documentElement.scrollWidth") <= 360
    assert watched.page.evaluate("document.body.scrollWidth") <= 360
    watched.close(path)


def test_it_stays_small(tmp_path):
    for number in range(60):
        fill(tmp_path, {f"m{number}": [0.9, 0.91]}, batch=8)
    assert len(Comparison.load(tmp_path).save(tmp_path / "r.html").read_bytes()) < 1.6e6
    assert TRIAL["epochs"] == 3
