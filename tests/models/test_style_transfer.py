"""Style transfer: the network against the formulas, in float64, and what must hold of alpha, styles and colours."""

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same
from torch import nn

import normsmith as ns
from normsmith.errors import InputError, ModelError, OptionError
from normsmith.models import StyleDecoder, StyleEncoder, StyleTransfer, match_colours

EPS = 1e-5


def transfer(depths=(1, 2), width=4, **options):
    model = StyleTransfer(StyleEncoder(depths, width=width), **options).double()
    model.encoder.see((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
    return model


def pictures(*shape, seed=0):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_hand(convolution, x):
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), convolution.weight, convolution.bias)


def encoded(encoder, x):
    """The first ReLU of each stage, step by step."""
    mean, std = (torch.tensor(v, dtype=x.dtype).view(1, 3, 1, 1) for v in ((0.4, 0.5, 0.6), (0.2, 0.3, 0.25)))
    x, features = (x - mean) / std, []
    for index, stage in enumerate(encoder.stages):
        x = F.max_pool2d(x, 2, ceil_mode=True) if index else x
        for number, unit in enumerate(stage):
            x = by_hand(unit.conv, x).relu()
            features += [x] if number == 0 else []
    return features


def decoded(decoder, x):
    convolutions = [m for m in decoder if isinstance(m, nn.Conv2d)]
    after_pool = {1, 3}  # of depths (1, 2): 8 up 8 → 4 up 4 → 3
    for number, convolution in enumerate(convolutions):
        x = x.repeat_interleave(2, 2).repeat_interleave(2, 3) if number in after_pool else x
        x = by_hand(convolution, x)
        x = x.relu() if number < len(convolutions) - 1 else x
    return x


def statistics(x):
    mean = x.mean((2, 3), keepdim=True)
    return mean, ((x - mean).square().mean((2, 3), keepdim=True) + EPS).sqrt()


def adain(x, style):
    (mean, std), (style_mean, style_std) = statistics(x), statistics(style)
    return style_std * (x - mean) / std + style_mean


def oracle(model, content, style):
    """The two losses of the paper."""
    wanted = encoded(model.encoder, style)
    target = adain(encoded(model.encoder, content)[-1], wanted[-1])
    drawn = encoded(model.encoder, decoded(model.decoder, target))
    to_style = torch.zeros((), dtype=content.dtype)
    for one, other in zip(drawn, wanted, strict=True):
        for a, b in zip(statistics(one), statistics(other), strict=True):
            to_style = to_style + (a - b).square().mean()
    return (drawn[-1] - target).square().mean(), to_style


def test_losses_and_all_gradients_are_those_of_the_formulas():
    model = transfer(style_weight=3.0)
    content, style = (pictures(2, 3, 12, 16, seed=s).requires_grad_() for s in (1, 2))
    parts = [content, style, *model.decoder.parameters()]
    losses = model.losses(content, style)
    to_content, to_style = oracle(model, content, style)
    assert_same(losses.content, to_content)
    assert_same(losses.style, to_style)
    assert_same(losses.total, to_content + 3 * to_style)
    ours = torch.autograd.grad(losses.total, parts)
    for one, other in zip(ours, torch.autograd.grad(to_content + 3 * to_style, parts), strict=True):
        assert float(other.abs().max()) > 0
        assert_same(one, other, "gradient")


def test_the_encoder_is_frozen_and_the_decoder_is_not():
    model = StyleTransfer(StyleEncoder((1,), width=4, norm="batch")).train()
    assert not any(p.requires_grad for p in model.encoder.parameters())
    assert all(p.requires_grad for p in model.decoder.parameters())
    assert not model.encoder.training
    assert model.decoder.training


def test_of_vgg_19_the_decoder_is_that_of_the_paper():
    found = [(m.in_channels, m.out_channels) if isinstance(m, nn.Conv2d) else type(m).__name__
             for m in StyleDecoder((2, 2, 4), width=64) if not isinstance(m, nn.ReLU)]  # fmt: skip
    assert found == [(512, 256), "Upsample", *[(256, 256)] * 3, (256, 128), "Upsample", (128, 128), (128, 64), "Upsample",
                     (64, 64), (64, 3)]  # fmt: skip
    shapes = [tuple(f.shape) for f in StyleEncoder((2, 2, 4), width=8)(torch.rand(1, 3, 32, 40))]
    assert shapes == [(1, 8, 32, 40), (1, 16, 16, 20), (1, 32, 8, 10), (1, 64, 4, 5)]


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (7, 3), (16, 16), (17, 33)])
def test_pictures_and_styles_of_any_size(size):
    model = transfer((1, 1, 1))
    styles = [pictures(1, 3, 5, 40), pictures(2, 3, 2, 2)]
    drawn = model(pictures(2, 3, *size), styles, weights=[0.5, 0.5], alpha=0.7)
    assert drawn.shape == (2, 3, *size)
    assert drawn.isfinite().all()
    assert model(pictures(2, 3, *size), styles, preserve_colour=True).isfinite().all()


def seen_by_decoder(model, *arguments, **options):
    seen = []
    with model.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
        drawn = model(*arguments, **options)
    return seen[0], drawn


def test_alpha_0_draws_content_anew():
    model, content, style = transfer(), pictures(1, 3, 16, 20), pictures(1, 3, 12, 12, seed=1)
    seen, drawn = seen_by_decoder(model, content, style, alpha=0.0)
    assert_same(seen, encoded(model.encoder, content)[-1])
    assert_same(drawn, decoded(model.decoder, seen))
    assert_same(seen_by_decoder(model, content, content)[0], seen, "a picture in its own style")


def test_alpha_1_has_the_statistics_of_the_style_and_between_is_between():
    model, content, style = transfer(), pictures(1, 3, 16, 20), pictures(1, 3, 12, 12, seed=1) ** 2
    of_content, of_style = (encoded(model.encoder, x)[-1] for x in (content, style))
    full, _ = seen_by_decoder(model, content, style)
    assert_same(full, adain(of_content, of_style))
    assert_same(full.mean((2, 3)), of_style.mean((2, 3)))
    part, _ = seen_by_decoder(model, content, style, alpha=0.3)
    assert_same(part, 0.3 * full + 0.7 * of_content)


def test_several_styles_are_mixed_by_their_weights():
    model, content = transfer(), pictures(2, 3, 16, 20)
    first, second = pictures(1, 3, 12, 12, seed=1) ** 2, pictures(1, 3, 8, 20, seed=2) / 2
    alone = [seen_by_decoder(model, content, style)[0] for style in (first, second)]
    assert_same(seen_by_decoder(model, content, [first, second], weights=[0.8, 0.2])[0], 0.8 * alone[0] + 0.2 * alone[1])
    assert_same(seen_by_decoder(model, content, [first, second], weights=[0, 1])[0], alone[1])
    assert_same(seen_by_decoder(model, content, [first, second])[0], (alone[0] + alone[1]) / 2)


def colours(x):
    points = x.flatten(2)
    mean = points.mean(2, keepdim=True)
    return mean, (points - mean) @ (points - mean).mT / points.shape[2]


def test_matched_colours_have_mean_and_covariance_of_the_other():
    mixing = torch.tensor([[1.0, 0.5, 0], [0, 0.7, 0.2], [0.1, 0, 0.3]], dtype=torch.float64)
    picture, like = pictures(2, 3, 9, 7), torch.einsum("ij,njhw->nihw", mixing, pictures(2, 3, 5, 30, seed=1))
    for one, other in zip(colours(match_colours(picture, like)), colours(like), strict=True):
        assert_same(one, other)
    for one, other in zip(colours(match_colours(picture[:1], like)), colours(like), strict=True):
        assert_same(one, other, "a batch of 1 serves all")
    assert_same(match_colours(picture, picture), picture)


def test_colours_of_grey_and_of_constant_pictures():
    coloured, grey = pictures(1, 3, 9, 7), pictures(1, 1, 9, 7, seed=1).expand(1, 3, 9, 7)
    made_grey = match_colours(coloured, grey)
    assert_same(made_grey, made_grey.mean(1, keepdim=True).expand_as(made_grey), tolerance=1e-7)
    assert_same(colours(made_grey)[1], colours(grey)[1])
    assert_same(colours(match_colours(grey, coloured))[0], colours(coloured)[0])
    for noise in (0, 1e-3):  # such as bytes have
        from_grey = match_colours(grey + noise * pictures(1, 3, 9, 7, seed=2), coloured)
        assert int(torch.linalg.matrix_rank(colours(from_grey)[1][0], rtol=1e-9)) == 1, "no colour from nothing"
    assert_same(match_colours(torch.full_like(coloured, 0.3), coloured), colours(coloured)[0][..., None].expand_as(coloured))


def test_preserved_colours_are_those_of_content():
    model, content = transfer(), pictures(2, 3, 16, 20) ** 2
    drawn = model(content, pictures(1, 3, 16, 16, seed=1), preserve_colour=True)
    for one, other in zip(colours(drawn), colours(content), strict=True):
        assert_same(one, other, tolerance=1e-6)
    plain = model(content, pictures(1, 3, 16, 16, seed=1)).detach()
    assert float((colours(plain)[0] - colours(content)[0]).abs().max()) > 1e-2


def test_a_file_of_it(tmp_path):
    model, path = transfer(style_weight=2.0).float(), tmp_path / "style.pt"
    model.about = {"steps": 3}
    model.save(path)
    again = StyleTransfer.load(path)
    content, style = pictures(1, 3, 9, 9).float(), pictures(1, 3, 9, 9, seed=1).float()
    assert torch.equal(again(content, style), model(content, style))
    assert (again.about, again.style_weight, again.training) == ({"steps": 3}, 2.0, False)
    assert [p.name for p in tmp_path.iterdir()] == ["style.pt"]


@pytest.mark.parametrize("content", [None, b"", b"words", b"PK\x03\x04 cut short"])
def test_a_file_that_is_none(tmp_path, content):
    path = tmp_path / "style.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match="expected to be a model that normsmith stylize") as error:
        StyleTransfer.load(path)
    assert "\n" not in str(error.value)


def test_a_file_of_something_else(tmp_path):
    path = tmp_path / "other.pt"
    torch.save({"weight": torch.ones(2)}, path)
    with pytest.raises(ModelError, match="got None"):
        StyleTransfer.load(path)
    torch.save([1], path)
    with pytest.raises(ModelError, match="got list"):
        StyleTransfer.load(path)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda m, x: m(x[0], x), r"floats of shape \(N, 3, H, W\): got torch.float64 of shape \(3, 16, 16\)"),
        (lambda m, x: m((x * 255).byte(), x), "got torch.uint8"),
        (lambda m, x: m(x, x[:, :1]), r"\(1, 1, 16, 16\)"),
        (lambda m, x: m(x, x[..., :0]), r"\(1, 3, 16, 0\)"),
        (lambda m, x: m(x, [x, x], weights=[1, 1]), "divide them by their sum"),
        (lambda m, x: m(x, []), "one weight per style"),
        (lambda m, x: m(x, x, alpha=1.5), "alpha, the strength of the style"),
        (lambda m, x: m(x, x.expand(3, -1, -1, -1)), "batch 1 or 1"),
        (lambda m, x: m(x.expand(2, -1, -1, -1), x.expand(3, -1, -1, -1), preserve_colour=True), "got 3 and 2"),
        (lambda m, x: m.losses(x[..., :3], x), "more than 4 pixels a side"),
        (lambda m, x: StyleEncoder(2), "depths"),
        (lambda m, x: StyleEncoder((1,), width=0), "width as a positive integer"),
        (lambda m, x: StyleTransfer(StyleEncoder((1,), width=2), style_weight=-1), "style_weight from 0"),
        (lambda m, x: match_colours(x, x[:, :2]), r"like as floats of shape \(N, 3, H, W\)"),
    ],
)
def test_what_is_wrong_is_said(call, sentence):
    with pytest.raises((InputError, OptionError), match=sentence):
        call(transfer(), pictures(1, 3, 16, 16))


def test_public_names():
    assert ns.models.StyleTransfer is StyleTransfer
    assert ns.train_style_transfer.__module__ == "normsmith.style.training"
