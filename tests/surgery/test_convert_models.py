"""Conversion of models nobody here wrote: transformers' and monai's, from their configurations, moved by a few steps of training."""

import copy
import warnings

import pytest
import torch
from helpers import ONE_INPUT
from surgery.helpers_surgery import assert_untouched, everything
from torch import nn

import normsmith as ns

transformers = pytest.importorskip("transformers", reason="needs transformers")
monai = pytest.importorskip("monai", reason="needs monai")
pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries themselves

IMAGE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
LARGE = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))


def _resnet():
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], layer_type="bottleneck")
    return transformers.ResNetForImageClassification(config), IMAGE


def _regnet():
    config = transformers.RegNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], groups_width=8)
    return transformers.RegNetModel(config), IMAGE


def _mobilenet():
    config = transformers.MobileNetV2Config(depth_multiplier=0.25, depth_divisible_by=4, min_depth=4, image_size=64)
    return transformers.MobileNetV2Model(config), LARGE


def _efficientnet():
    config = transformers.EfficientNetConfig(
        image_size=64, width_coefficient=0.1, depth_coefficient=0.1, hidden_dim=128, depth_divisor=8, num_block_repeats=[1] * 7
    )
    return transformers.EfficientNetModel(config), LARGE


def _convnext():
    return transformers.ConvNextModel(transformers.ConvNextConfig(num_stages=2, hidden_sizes=[8, 16], depths=[1, 1])), IMAGE


def _conformer():
    config = transformers.Wav2Vec2ConformerConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, conv_dim=(8, 8), conv_stride=(5, 2),
        conv_kernel=(10, 3), num_feat_extract_layers=2, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    mask = torch.ones(2, 400, dtype=torch.long)
    mask[1, 250:] = 0
    return transformers.Wav2Vec2ConformerModel(config), {"input_values": torch.randn(2, 400), "attention_mask": mask}


def _llama():
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2
    )
    return transformers.LlamaForCausalLM(config), torch.randint(0, 50, (2, 6))


def _unet():
    net = monai.networks.nets.UNet(3, 1, 2, channels=(8, 16), strides=(2,), num_res_units=1, norm="batch")
    return net, torch.randn(2, 1, 8, 8, 8)


def _segresnet():
    return monai.networks.nets.SegResNet(3, init_filters=8, blocks_down=(1, 1), blocks_up=(1,)), torch.randn(2, 1, 8, 8, 8)


def _dynunet():
    net = monai.networks.nets.DynUNet(3, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[8, 8, 8])
    return net, torch.randn(2, 1, 16, 16, 16)


MODELS = {
    make.__name__.lstrip("_"): make
    for make in (_resnet, _regnet, _mobilenet, _efficientnet, _convnext, _conformer, _llama, _unet, _segresnet, _dynunet)
}
OWN = {  # conversions that change nothing
    nn.modules.batchnorm._BatchNorm: "batch",
    nn.GroupNorm: "group",
    nn.InstanceNorm3d: "instance",
    nn.LayerNorm: "layer",
}


def _first(output):
    return next(t for t in ([output] if isinstance(output, torch.Tensor) else output.to_tuple()) if t.is_floating_point())


def _call(model, example):
    return _first(model(**example) if isinstance(example, dict) else model(example))


@pytest.fixture(scope="module")
def trained():
    """Each model after a few steps, so that no statistic or parameter is where it began."""
    done = {}

    def get(name):
        if name not in done:
            torch.manual_seed(0)
            model, example = MODELS[name]()
            optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
            model.train()
            for _ in range(3):
                optimizer.zero_grad()
                _call(model, example).square().mean().backward()
                optimizer.step()
            done[name] = model, example
        model, example = done[name]
        return copy.deepcopy(model), example

    return get


@pytest.mark.parametrize("name", MODELS)
def test_to_its_own_kind_is_the_same_model(name, trained):
    model, example = trained(name)
    expected = _call(model.eval(), example)
    before = everything(model)
    kinds = {**OWN, **({type(model.model.norm): "rms"} if name == "llama" else {}), **_positions(model)}
    conversion = ns.convert(model, kinds, verify=example)
    assert conversion.output_error < 2e-4
    torch.testing.assert_close(_call(model, example), expected, rtol=2e-4, atol=2e-4 * float(expected.detach().abs().max()))
    assert not any(row.new is None for row in conversion.rows)
    conversion.undo()
    assert_untouched(model, before)


def _positions(model):
    """Channels-first layer norms, which are position norms."""
    return {name: "position" for name, m in model.named_modules() if getattr(m, "data_format", "") == "channels_first"}


def _pairs():
    """Every model with every method; each method with one model, and each model with some, in the quick run."""
    for i, name in enumerate(MODELS):
        for j, method in enumerate(ONE_INPUT):
            yield pytest.param(name, method, marks=[] if (i + j) % len(MODELS) == 0 else pytest.mark.slow)


@pytest.mark.parametrize(("name", "method"), list(_pairs()))
def test_every_method_that_fits(name, method, trained):
    model, example = trained(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    before = everything(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            conversion = ns.convert(model, method, optimizer=optimizer, verify=example)
        except ns.ModelError as error:
            assert_untouched(model, before)
            pytest.skip(f"does not fit: {error}")
        assert conversion.converted
        model.train()
        _call(model, example).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        model.eval()
        again = copy.deepcopy(model)
        again.load_state_dict(model.state_dict(), strict=True)
        torch.testing.assert_close(_call(again, example), _call(model, example))
    conversion.undo()
    for (key, tensor), old in zip(model.state_dict().items(), before["state"].values(), strict=True):
        if any(key.startswith(name + ".") for name in conversion.converted):
            assert torch.equal(tensor, old), key
    assert dict(model.named_modules(remove_duplicate=False)).keys() == before["modules"].keys()
