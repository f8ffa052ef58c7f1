"""Weights of VGG-19 from a file, told by order and shape; the files here are made up."""

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same

from normsmith.errors import ModelError
from normsmith.models import StyleTransfer, load_decoder, load_encoder

SHAPES = [(64, 3), (64, 64), (128, 64), (128, 128), (256, 128), *[(256, 256)] * 3, (512, 256), (512, 512)]
FIRST = {0, 2, 4, 8}  # the convolutions whose ReLU is the first of its stage
MIRRORED = [(256, 512), *[(256, 256)] * 3, (128, 256), (128, 128), (64, 128), (64, 64), (3, 64)]


def weights(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pairs = []
    for after, before in shapes:
        pairs.append((torch.randn(after, before, 3, 3, generator=generator) / (3 * before**0.5), torch.randn(after) / 9))
    return pairs


def named(pairs, prefix="features."):
    return {
        f"{prefix}{2 * i}.{key}": t for i, pair in enumerate(pairs) for key, t in zip(("weight", "bias"), pair, strict=True)
    }


def by_hand(x, pairs):
    features = []
    for number, (weight, bias) in enumerate(pairs[:9]):
        x = F.max_pool2d(x, 2, ceil_mode=True) if number in {2, 4, 8} else x
        x = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), weight, bias).relu()
        features += [x] if number in FIRST else []
    return features


@pytest.fixture
def path(tmp_path):
    return tmp_path / "vgg.pth"


def test_torchvisions(path):
    pairs = weights(SHAPES)
    torch.save({**named(pairs), "classifier.0.weight": torch.ones(3, 2)}, path)
    encoder, x = load_encoder(path), torch.rand(1, 3, 20, 24)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    for one, other in zip(encoder(x), by_hand((x - mean) / std, pairs), strict=True):
        assert_same(one, other)
    assert not any(p.requires_grad for p in encoder.parameters())


def test_the_normalised_one_with_the_decoder_of_its_authors(path, tmp_path):
    pairs, colours = weights(SHAPES), (torch.randn(3, 3, 1, 1), torch.randn(3))
    torch.save({"0.weight": colours[0], "0.bias": colours[1], **named(pairs, "vgg.")}, path)
    encoder, x = load_encoder(path), torch.rand(1, 3, 24, 24)
    for one, other in zip(encoder(x), by_hand(F.conv2d(x, *colours), pairs), strict=True):
        assert_same(one, other)
    mirror, decoder_path = weights(MIRRORED, 1), tmp_path / "decoder.pth"
    torch.save(named(mirror, ""), decoder_path)
    model = StyleTransfer(encoder, load_decoder(decoder_path)).double()
    x, y = x.double(), encoder(x.double())[-1]
    for number, pair in enumerate(mirror):
        y = F.interpolate(y, scale_factor=2) if number in {1, 5, 7} else y
        y = F.conv2d(F.pad(y, (1, 1, 1, 1), mode="reflect"), *(part.double() for part in pair))
        y = y.relu() if number < len(mirror) - 1 else y
    assert_same(model(x, x, alpha=0.0), y)


def broken(kind):
    pairs = weights(SHAPES)
    state = named(pairs)
    if kind == "vgg16":
        return named([*pairs[:6], *pairs[7:]])
    if kind == "vgg19_bn":
        return {k: v for n, t in state.items() for k, v in ((n, t), *([(f"{n} norm", torch.ones(t.shape[0]))] * ("bias" in n)))}
    if kind == "cut":
        return dict(list(state.items())[:7])
    return {"state_dict": state} if kind == "wrapped" else list(state.values())


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("vgg16", r"tensor 15 of shape \(256, 256, 3, 3\): got shape \(512, 256, 3, 3\)"),
        ("vgg19_bn", r"tensor 3 of shape \(64, 64, 3, 3\): got shape \(64,\)"),
        ("cut", r"tensor 8 of shape \(128,\): got no more"),
        ("wrapped", "got 'state_dict', which is no tensor"),
        ("list", "got list; save a state_dict"),
    ],
)
def test_other_files_are_told_apart(path, kind, sentence):
    torch.save(broken(kind), path)
    with pytest.raises(ModelError, match=sentence) as error:
        load_encoder(path)
    assert "\n" not in str(error.value)


def test_a_decoder_of_something_else(path):
    torch.save(named(weights([*MIRRORED, (3, 3)])), path)
    with pytest.raises(ModelError, match="got 20 tensors, not 18"):
        load_decoder(path)


class Harmful:
    def __reduce__(self):
        return (print, ("run",))


def test_nothing_that_a_file_holds_is_run(path, capsys):
    torch.save({"weight": Harmful()}, path)
    with pytest.raises(ModelError, match="got UnpicklingError"):
        load_encoder(path)
    assert not capsys.readouterr().out


def test_no_file(path):
    with pytest.raises(ModelError, match="No such file"):
        load_encoder(path)
