"""The page of an examination: what is on it, that it agrees with the data, and in a browser that it is drawn and stays small."""

import dataclasses
import io

import numpy as np
import pytest
import torch
from report.helpers_report import HOSTILE, Watched, chromium, store_of
from torch import nn

import normsmith as ns
from normsmith.doctor import page_charts
from normsmith.doctor.channel_pictures import png
from normsmith.doctor.layer_page import LayerView, shape_of
from normsmith.doctor.noise import NoisePoint
from normsmith.doctor.observe import observe
from normsmith.doctor.page import page
from normsmith.doctor.profile import Profile
from normsmith.doctor.samples import Sample


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(
            nn.Conv2d(8, 12, 3, stride=2), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 12, 3), nn.GroupNorm(3, 12)
        )

    def forward(self, x):
        return self.body(self.stem(x))


def batches(number=6):
    return [torch.randn(8, 3, 12, 12) * 2 + 1 for _ in range(number)]


def faulty():
    """The running mean of one layer is wrong, an input channel has outliers, one layer has a bias before it."""
    model, data = Net(), batches()
    for x in data:
        x[0, :, 0, 0] = 60.0
    ns.recalibrate(model, data)
    model.body[1].running_mean[5] += 30
    return model, data


@pytest.fixture(scope="module")
def exam():
    torch.manual_seed(0)
    return ns.examine(*faulty())


@pytest.fixture(scope="module")
def path(exam, tmp_path_factory):
    hostile = dataclasses.replace(
        exam,
        model=HOSTILE,
        views=tuple(
            dataclasses.replace(
                view,
                noise=[NoisePoint(b, b**-0.5, b**-0.5 / 2, b**-0.5 / 3, b**-0.5 / 4) for b in (1, 16, 256)],
                samples=[Sample(4, 7, 2, 9.5, torch.arange(64, dtype=torch.uint8).view(1, 8, 8))],
                facts=[("shift", 0.5)],
            )
            if view.name == "body.1"
            else view
            for view in exam.views
        ),
    )
    return hostile.save(tmp_path_factory.mktemp("exam") / "exam.html", pictures={"body.1": 3})


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


def test_findings_are_on_the_page_with_evidence_and_cure(exam):
    html = page(exam, {}).html()
    assert exam.findings[0].code == "NS102"
    for finding in exam.findings:
        assert f'id="{finding.code.lower()}"' in html
        assert finding.cure.replace('"', "&#34;").replace("'", "&#39;").replace(">", "&gt;") in html
        assert finding.title[1:] in html
    assert f"{exam.findings[0].evidence['body.1']['gap']:.3g}" in html
    assert 'class="cell error" title="body.1: NS102' in html
    assert html.count('<details class="entry"') == 3
    assert '<th scope="row"><a href="#at-body.1">body.1</a></th>' in html
    assert '<a href="#ns102">NS102</a>' in html


def test_the_numbers_are_those_of_the_layer(exam):
    store = store_of(page(exam, {}).html())
    heat = next(h for h in store["heatmaps"] if "running mean" in h["labels"] and len(store["columns"][h["names"]]) == 12)
    column = store["columns"][heat["rows"][heat["labels"].index("gap")]]
    codes = np.frombuffer(__import__("base64").b64decode(column["p"]), dtype="<u2")
    assert codes.argmax() == exam.findings[0].evidence["body.1"]["worst channel"] == 5


def test_shapes_are_those_of_the_data():
    """Against numpy's histogram of the standardized elements."""
    x = torch.cat([torch.randn(64, 3, 20, 20), 12 * torch.randn(2, 3, 20, 20)]) * torch.tensor([1.0, 5.0, 0.0]).view(1, 3, 1, 1)
    profile = Profile(3)
    profile.add(x + 7)
    shape = shape_of(profile)
    flat = x[:, :2].double().transpose(0, 1).flatten(1)
    z = ((flat - flat.mean(1, keepdim=True)) / flat.std(1, keepdim=True, correction=0)).flatten().numpy()
    density = np.histogram(z, bins=60, range=(-6, 6))[0] / len(z) / 0.2
    assert np.abs(np.array(shape.density) - density).max() < 0.03 * density.max()
    for t, share in zip(shape.beyond, shape.share, strict=True):
        exact = (np.abs(z) > t).mean()
        assert share == pytest.approx(exact, rel=0.1, abs=2e-4), t
    assert shape.gaussian_share[2] == pytest.approx(0.3173, abs=1e-4)  # beyond one deviation
    assert sum(shape.gaussian) * 0.2 == pytest.approx(1, abs=1e-6)


def test_shapes_of_nothing():
    profile = Profile(2)
    profile.add(torch.ones(4, 2, 3))
    shape = shape_of(profile)
    assert set(shape.density) == {0.0}
    assert set(shape.share) == {None}


def test_of_many_channels_the_unusual_are_shown():
    mean = torch.zeros(1000, dtype=torch.float64)
    mean[[3, 501, 998]] = torch.tensor([5.0, -7.0, 9.0], dtype=torch.float64)
    view = LayerView("x", "BatchNorm2d", {"mean": mean + torch.randn(1000).double() / 10})
    chosen = view.representatives(64).tolist()
    assert len(chosen) == len(set(chosen)) == 64
    assert chosen == sorted(chosen)
    assert {3, 501, 998} <= set(chosen)
    assert view.representatives(1000).tolist() == list(range(1000))


def test_later_changes_of_the_model_are_not_on_the_page():
    model, data = faulty()
    exam = ns.examine(model, data)
    before = page(exam, {}).html()
    ns.recalibrate(model, data)
    assert page(exam, {}).html() == before


@pytest.mark.parametrize("norm", ["switchable", "ibn", "group", "batch:track_running_stats=False", "layer"])
def test_layers_of_all_kinds(norm):
    model = Net()
    ns.convert(model, norm)
    html = page(ns.examine(model, batches(2)), {}).html()
    assert html.count('<details class="entry"') == 3


def test_a_model_without_findings_and_a_layer_out_of_reach():
    model = Net()
    ns.convert(model, "group")
    model.aside = nn.BatchNorm2d(2)
    for conv in (model.stem[0], model.body[0], model.body[3]):
        conv.bias = None
    exam = ns.examine(model, [torch.rand(8, 3, 12, 12) for _ in range(4)])
    html = page(exam, {}).html()
    assert "No batch reached this layer." in html
    assert "Nothing that needs a cure." in html
    assert "Not looked at" in html


def test_the_model_itself_is_a_normalizer():
    model = nn.BatchNorm2d(3)
    ns.recalibrate(model, batches())
    assert '<span class="name">(the model)</span>' in page(ns.examine(model, batches()), {}).html()


def test_layers_of_one_name_differ():
    found = observe(*faulty())
    assert len({layer.name for layer in found.layers}) == 3


def test_samples_have_pictures_while_there_is_room(monkeypatch):
    from normsmith.doctor import page_charts

    def view(name, *indices, thumbnail=True):
        picture = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
        samples = [Sample(index, 1, 2, 5.5, picture if thumbnail else None) for index in indices]
        return LayerView(name, "BatchNorm2d", {}, samples=samples)

    views = [view("a", 3, 4), view("b", 4, 9), view("c", 7), view("d", 8, thumbnail=False)]
    assert set(page_charts.album_of(views)) == {3, 4, 9, 7}
    monkeypatch.setattr(page_charts, "PICTURES", 1)
    album = page_charts.album_of(views)
    assert set(album) == {3}
    (grid,) = page_charts.of_layer(view("x", 3), 64, album)
    assert [picture.png for picture in grid.pieces] == [album[3]]
    (table,) = page_charts.of_layer(views[0], 64, album)
    assert table.rows == [["sample 3", 1, 5.5, 2], ["sample 4", 1, 5.5, 2]]


@pytest.mark.parametrize("colours", [1, 3])
def test_pictures_are_pngs(colours):
    image = pytest.importorskip("PIL.Image")
    pixels = torch.randint(0, 256, (colours, 5, 7), dtype=torch.uint8)
    back = np.asarray(image.open(io.BytesIO(png(pixels))))
    assert np.array_equal(back.reshape(5, 7, colours), pixels.movedim(0, -1).numpy())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pictures": {"body.11": 0}}, "got 'body.11'; did you mean 'body.1'"),
        ({"pictures": {"body.1": 12}}, "from 0 to 11: got 12"),
    ],
)
def test_pictures_of_what_is_not_there(exam, tmp_path, options, words):
    with pytest.raises(ns.OptionError, match=words):
        exam.save(tmp_path / "exam.html", **options)
    with pytest.raises(ns.OptionError, match="only for a page"):
        exam.save(tmp_path / "exam.json", **options)
    assert list(tmp_path.iterdir()) == []


def test_pictures_need_images(tmp_path):
    tokens = nn.Sequential(nn.BatchNorm1d(4))
    exam = ns.examine(tokens, [torch.randn(8, 4) for _ in range(4)])
    with pytest.raises(ns.InputError, match="batches of images"):
        exam.save(tmp_path / "exam.html", pictures={"0": 1})
    by_forward = ns.examine(Net(), batches(2), forward=lambda model, batch: model(batch))
    with pytest.raises(ns.InputError, match="without forward="):
        by_forward.save(tmp_path / "exam.html", pictures={"stem.1": 1})


def test_pictures_leave_the_model_alone(tmp_path):
    model, data = faulty()
    model.train()
    before = {key: t.clone() for key, t in model.state_dict().items()}
    ns.examine(model, data).save(tmp_path / "exam.html", pictures={"stem.1": 2})
    assert all(torch.equal(t, before[key]) for key, t in model.state_dict().items())
    assert model.training


# --- in a browser ---------------------------------------------------------------------------------------------------------------


def test_everything_of_a_layer_is_drawn(browser, path):
    watched = Watched(browser, path, viewport={"width": 1280, "height": 3000})
    opened = watched.page.locator(".entry", has_text="body.1")
    opened.locator("summary").first.click()
    watched.page.wait_for_function("document.querySelectorAll('.entry[open] .drawing[data-drawn]').length === 6")
    titles = opened.locator("h4").all_text_contents()
    assert titles == [
        "Activations that it reads",
        "Outliers",
        "Channels",
        "Running mean against the data",
        "Running deviation against the data",
        "Noise by batch size",
        "Samples furthest out",
    ]
    marks = [chart.locator("path, line, rect").count() for chart in opened.locator(".chart").all()]
    assert min(marks) > 5
    assert opened.locator(".chart").nth(0).locator(".mark-rect path").count() == 60
    assert opened.locator(".chart").nth(2).locator(".mark-symbol path").count() == 12
    pictures = opened.locator("img")
    assert pictures.count() == 3
    assert all(pictures.nth(at).evaluate("i => i.decode().then(() => i.naturalWidth)") > 0 for at in range(3))
    watched.close(path)


def test_a_dot_leads_to_its_layer(browser, path):
    watched = Watched(browser, path, viewport={"width": 1280, "height": 900})
    watched.page.locator(".drawing").first.scroll_into_view_if_needed()
    dots = watched.page.locator("section#network .chart").first.locator(".mark-symbol path")
    dots.first.wait_for()
    dots.nth(1).click()
    watched.page.wait_for_selector(".entry[open]")
    assert watched.page.locator(".entry[open] .name").text_content() == "body.1"
    watched.close(path)


def test_three_hundred_layers_are_small(browser, tmp_path):
    blocks = [block for _ in range(300) for block in (nn.Conv2d(64, 64, 1), nn.BatchNorm2d(64))]
    exam = ns.examine(nn.Sequential(*blocks), [torch.randn(2, 64, 2, 2).exp() for _ in range(4)])
    path = exam.save(tmp_path / "exam.html")
    assert path.stat().st_size < 5e6
    watched = Watched(browser, path, viewport={"width": 390, "height": 844}, is_mobile=True)
    assert watched.page.locator(".entry").count() == 300
    assert watched.page.locator(".map a").count() == 300
    assert watched.page.evaluate("document.documentElement.scrollWidth") <= 390
    watched.page.locator(".map a").nth(250).click()
    watched.page.wait_for_selector(".entry[open] .drawing[data-drawn]")
    assert watched.page.locator(".entry[open] .name").text_content() == "501"
    watched.close(path)


def test_a_number_below_zero_is_drawn_below_zero():
    table = [{"layer": name, "gap": 0.1, "excess kurtosis": value} for name, value in (("a", -0.7), ("b", 2.0))]
    charts = page_charts.across(table, {"a": "clean", "b": "clean"})
    (kurtosis,) = (chart for chart in charts if "kurtosis" in chart.title)
    assert kurtosis.data["layers"]["y"] == [-0.7, 2.0]
