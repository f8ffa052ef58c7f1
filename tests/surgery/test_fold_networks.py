"""Folding networks that nobody here wrote."""

import monai.networks.nets as monai
import pytest
import torch
import transformers
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import normsmith as ns

HUGGING = {
    "resnet": lambda: transformers.ResNetForImageClassification(
        transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 2, 1, 1])
    ),
    "resnet basic": lambda: transformers.ResNetForImageClassification(
        transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[2, 1], layer_type="basic")
    ),
    "regnet": lambda: transformers.RegNetForImageClassification(
        transformers.RegNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], groups_width=8)
    ),
    "mobilenet": lambda: transformers.MobileNetV2ForImageClassification(transformers.MobileNetV2Config(depth_multiplier=0.2)),
    "efficientnet": lambda: transformers.EfficientNetForImageClassification(
        transformers.EfficientNetConfig(width_coefficient=0.2, depth_coefficient=0.3, hidden_dim=256)
    ),
}
MONAI = {  # with how many norms have a convolution right before or after them
    "unet": (lambda: monai.UNet(3, 1, 2, (4, 8, 8), (2, 2), num_res_units=2, norm="batch"), None),
    "dynunet": (lambda: monai.DynUNet(3, 1, 2, [3] * 3, [1, 2, 2], [2, 2], norm_name="batch", filters=[4, 8, 8]), None),
    "basicunet": (lambda: monai.BasicUNet(3, 1, 2, (4, 4, 8, 8, 8, 4), norm="batch"), None),
    "densenet": (lambda: monai.DenseNet(2, 1, 3, init_features=8, growth_rate=4, block_config=(2, 2)), "before its activation"),
    "segresnet": (lambda: monai.SegResNet(3, 4, 1, 2, norm="batch"), "before its activation"),
}


def trained(model, x, steps=3):
    """The model with statistics and affine maps that a few steps made."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(steps):
        output = model(x + torch.randn_like(x))
        output = output.logits if hasattr(output, "logits") else output
        loss = output.square().mean() if isinstance(output, torch.Tensor) else output[0].square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.5)
    return model.eval()


def checked(model, x):
    """Fold, compare, undo, compare; return the result, and how many batch norms there were."""
    norms = sum(isinstance(module, _BatchNorm) for module in model.modules())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        expected, other = [get(model(data)) for data in (x, x.flip(0).mul(2))]
        result = ns.fold(model, x)
        for found, wanted in ((model(x), expected), (model(x.flip(0).mul(2)), other)):
            assert (get(found) - wanted).abs().max() < 1e-10 * wanted.abs().max()
    assert result.error.relative < 1e-10
    assert sum(isinstance(module, _BatchNorm) for module in model.modules()) == norms - len(result.folded)
    result.undo()
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    with torch.no_grad():
        assert torch.equal(get(model(x)), expected)
    return result, norms


def get(output):
    return output.logits if hasattr(output, "logits") else output


@pytest.mark.parametrize("name", HUGGING)
def test_every_norm_of_transformers(name):
    x = torch.randn(2, 3, 40, 40, dtype=torch.float64)
    result, norms = checked(trained(HUGGING[name]().double(), x), x)
    assert len(result.folded) == norms > 5, result.left


def test_hidden_states_that_are_returned():
    """All blocks' outputs are, and none of them is a convolution's."""
    x = torch.randn(2, 3, 40, 40, dtype=torch.float64)
    model = trained(HUGGING["resnet"]().double(), x)
    with torch.no_grad():
        expected = model(x, output_hidden_states=True).hidden_states
        result = ns.fold(model, {"pixel_values": x, "output_hidden_states": True})
        assert not result.left
        for found, wanted in zip(model(x, output_hidden_states=True).hidden_states, expected, strict=True):
            assert (found - wanted).abs().max() < 1e-10 * wanted.abs().max()


@pytest.mark.parametrize("name", MONAI)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore:.*monai.*:UserWarning")
def test_monai(name):
    make, unfolded = MONAI[name]
    size, spatial = 32, 3 if name in {"unet", "dynunet", "basicunet", "segresnet"} else 2
    x = torch.randn(2, 1, *[size] * spatial, dtype=torch.float64)
    if spatial == 3:
        x = x[..., :16, :16, :16]
    result, norms = checked(trained(make().double(), x, steps=1), x)
    if unfolded is None:
        assert len(result.folded) == norms, result.left
    else:
        assert 0 < len(result.folded) < norms
        assert set(result.left.values())


@pytest.mark.slow
def test_resnet_50():
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    result, norms = checked(trained(transformers.ResNetForImageClassification(transformers.ResNetConfig()).double(), x), x)
    assert len(result.folded) == norms == 53
