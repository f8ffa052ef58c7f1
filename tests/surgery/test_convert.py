"""Conversion: what is carried, what is chosen, what is refused, and that undoing it leaves no bit behind."""

import copy
import functools
import json
import re

import pytest
import torch
from helpers import ONE_INPUT
from surgery.foreign import BatchNormAct2d, FrozenBatchNorm2d, GemmaRMSNorm, GroupNormAct, LlamaRMSNorm
from surgery.helpers_surgery import ConvNet, assert_untouched, everything, shaken
from torch import nn
from torch.nn.utils import parametrize

import normsmith as ns


@pytest.fixture
def x():
    return torch.randn(4, 3, 8, 8, dtype=torch.float64)


@pytest.fixture
def net():
    return shaken(ConvNet()).double()


@pytest.mark.parametrize("method", ONE_INPUT)
def test_every_method_takes_over_and_gives_back(method, net, x):
    net(x)
    before = everything(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    conversion = ns.convert(net, {"backbone": method}, optimizer=optimizer, verify=x)
    assert conversion.converted == ["backbone.1", "backbone.4"]
    cls = ns.catalog()[method].load()
    assert isinstance(net.backbone[1], cls)
    assert type(net.head["norm"]) is nn.BatchNorm1d
    if "weight" in dict(net.backbone[1].named_parameters()):
        assert net.backbone[1].weight is before["parameters"]["backbone.1.weight"]
    net(x).square().sum().backward()
    optimizer.step()
    copy.deepcopy(net)
    net.load_state_dict(net.state_dict())
    assert len({*net.parameters()}) == sum(len(g["params"]) for g in optimizer.param_groups)
    conversion.undo()
    for name, tensor in before["state"].items():
        if "conv" not in name and (name.startswith(("backbone.1", "backbone.4"))):
            assert torch.equal(tensor, net.state_dict()[name]), name


def test_undo_to_the_bit(net, x):
    before = everything(net)
    conversion = ns.convert(net, "switchable", verify=x)
    with torch.no_grad():
        for norm in (net.backbone[1], net.backbone[4]):
            norm.weight.mul_(3)
            norm.running_mean.add_(1)
    assert conversion.undo() is net
    assert_untouched(net, before)
    with pytest.raises(ns.ModelError, match="undone already"):
        conversion.undo()


def test_batch_to_batch_is_the_same_function(net, x):
    expected = {mode: net.train(mode)(x) for mode in (False,)}
    conversion = ns.convert(net, "batch", verify=x)
    assert conversion.output_error < 1e-14
    assert all(row.error < 1e-14 for row in conversion.rows)
    torch.testing.assert_close(net.eval()(x), expected[False], rtol=0, atol=1e-12)


def test_there_and_back_by_torchs_own_classes(net, x):
    expected = net.eval()(x)
    ns.convert(net, "frozen")
    ns.convert(net, {"backbone": nn.BatchNorm2d, "head": nn.BatchNorm1d})
    assert type(net.backbone[1]) is nn.BatchNorm2d
    torch.testing.assert_close(net(x), expected, rtol=0, atol=1e-12)
    ns.convert(net, {"backbone": nn.GroupNorm})
    assert (net.backbone[1].num_groups, net.backbone[1].num_channels) == (4, 8)


def test_options_are_carried(net):
    net.backbone[1].eps, net.backbone[1].momentum = 1e-3, 0.3
    net.backbone[4].weight.requires_grad_(False)
    net.backbone[4].eval()
    ns.convert(net, "ibn:ratio=0.25")
    first, second = net.backbone[1], net.backbone[4]
    assert (first.eps, first.momentum, first.ratio) == (1e-3, 0.3, 0.25)
    assert not second.weight.requires_grad
    assert second.bias.requires_grad
    assert (first.training, second.training) == (True, False)


def test_a_plain_average_stays_one():
    net = nn.Sequential(nn.BatchNorm2d(3, momentum=None))
    ns.convert(net, "switchable")
    assert net[0].momentum is None


def test_converted_kalman_layers_can_be_linked(net, x):
    expected = net.eval()(x)
    conversion = ns.convert(net, {"backbone": "kalman"}, verify=x)
    assert conversion.output_error < 1e-12  # alone, each is batch norm
    torch.testing.assert_close(net(x), expected)
    assert ns.link(net, x) == {"backbone.1": [], "backbone.4": ["backbone.1"]}
    net.train()(x).sum().backward()
    conversion.undo()
    assert type(net.backbone[4]) is nn.BatchNorm2d


def test_a_layer_kept_from_training_stays_so_with_what_is_new_in_it(net):
    net.backbone[1].requires_grad_(False)
    ns.convert(net, "switchable")
    assert not any(p.requires_grad for p in net.backbone[1].parameters())
    assert all(p.requires_grad for p in net.backbone[4].parameters())


def test_what_is_given_wins_over_what_is_carried(net):
    net.backbone[1].eps = 1e-3
    ns.convert(net, {"backbone.1": "group:eps=1e-4", "backbone.4": functools.partial(ns.GroupNorm, num_groups=2, eps=1e-2)})
    assert net.backbone[1].eps == 1e-4
    assert (net.backbone[4].eps, net.backbone[4].num_groups) == (1e-2, 2)


def test_statistics_that_do_not_fit_are_in_the_table(net):
    row = ns.convert(net, "group").rows[0]
    assert set(row.dropped) == {"running_mean", "running_var", "num_batches_tracked"}
    assert "weight" in row.carried
    net = ConvNet(lambda c: nn.GroupNorm(4, c))
    row = ns.convert(net, {"backbone": "batch"}).rows[0]
    assert {"running_mean", "running_var"} <= set(row.fresh)
    assert "num_groups=4" in row.dropped


def test_ibn_takes_the_statistics_of_its_batch_half(net):
    mean = net.backbone[1].running_mean.clone()
    ns.convert(net, "ibn")
    assert torch.equal(net.backbone[1].running_mean, mean[4:])


# --- choosing -------------------------------------------------------------------------------------------------------------------


def test_a_mapping_by_parts_patterns_and_types(net):
    conversion = ns.convert(net, {"backbone": "frozen", "head": "switchable"})
    assert [type(net.get_submodule(n)).__name__ for n in conversion.converted] == ["FrozenNorm", "FrozenNorm", "SwitchableNorm"]
    net = ConvNet()
    ns.convert(net, {"backbone.4": None, r"re:backbone\.\d": "group", nn.BatchNorm1d: "renorm"})
    kinds = [type(m).__name__ for m in (net.backbone[1], net.backbone[4], net.head["norm"])]
    assert kinds == ["GroupNorm", "BatchNorm2d", "BatchRenorm"]
    net = ConvNet()
    ns.convert(net, {re.compile(r".*norm"): "group"}, where=lambda module, name: name == "head.norm")
    assert type(net.head["norm"]) is ns.GroupNorm


def _nothing():
    return nn.Identity()


@pytest.mark.parametrize(
    ("to", "options", "error", "says"),
    [
        ("gruop", {}, ns.UnknownMethodError, "did you mean 'group'"),
        ("group:groups=2", {}, ns.OptionError, "num_groups"),
        ({"bakbone": "group"}, {}, ns.OptionError, "did you mean 'backbone'"),
        ({"re:nothing": "group"}, {}, ns.OptionError, "matches none"),
        ({"re:(": "group"}, {}, ns.OptionError, "regular expression"),
        (3, {}, ns.OptionError, "a catalog name, a class"),
        ("adain", {}, ns.OptionError, "second one"),
        ("group:num_groups=3", {}, ns.ModelError, "divides"),
        ("group", {"where": lambda m, n: False}, ns.ModelError, "none of 3"),
        ("group", {"keep": "function"}, ns.OptionError, "verify"),
        ("group", {"keep": "all"}, ns.OptionError, "keep"),
        ("switchable", {"keep": "function", "verify": torch.zeros(2, 3, 8, 8)}, ns.OptionError, "without running"),
        ("group", {"verify": torch.zeros(2, 5, 8, 8)}, ns.InputError, r"\(2, 5, 8, 8\)"),
        ("group", {"verify": "text"}, ns.InputError, "str"),
        ("instance", {"verify": torch.zeros(2, 3, 8, 8)}, ns.ModelError, "'head.norm'"),
        ("group", {"optimizer": torch.optim.SGD([nn.Parameter(torch.zeros(1))])}, ns.OptionError, "none of its parameters"),
        ("group", {"optimizer": "sgd"}, ns.OptionError, "Optimizer"),
        ({"head.norm": lambda c: 3}, {}, ns.OptionError, "factory of modules"),
        (nn.ReLU, {}, ns.OptionError, "a normalizer of torch.nn"),
        (_nothing, {}, ns.OptionError, "takes the number of channels"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_has_changed(to, options, error, says):
    net = ConvNet()
    before = everything(net)
    with pytest.raises(error, match=says) as caught:
        ns.convert(net, to, **options)
    assert "\n" not in str(caught.value)
    assert_untouched(net, before)


def test_a_model_without_norms_says_what_it_holds():
    with pytest.raises(ns.ModelError, match="2 Linear"):
        ns.convert(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.ReLU()), "group")


def test_a_model_of_layers_that_are_left_says_why():
    with pytest.raises(ns.ModelError, match=r"'0'.*GemmaRMSNorm computes something else"):
        ns.convert(nn.Sequential(GemmaRMSNorm(4)), "layer")
    net = nn.Sequential(GemmaRMSNorm(4), LlamaRMSNorm(4))
    conversion = ns.convert(net, "layer")
    assert [row.new for row in conversion.rows] == [None, "LayerNorm"]
    with pytest.raises(ns.ModelError, match="'0'"):
        ns.convert(net, {"0": "layer"})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile itself
def test_wrapped_models_are_refused():
    net = ConvNet()
    lazy = nn.Sequential(nn.LazyBatchNorm2d())
    compiled = nn.Sequential(ConvNet())
    compiled[0].compile()
    for model, says in [
        (torch.compile(net), "_orig_mod"),
        (nn.DataParallel(net), r"\.module"),
        (nn.Sequential(torch.compile(net)), "'0'"),
        (compiled, "in place"),
        (lazy, "run it once"),
        ("model", "torch.nn.Module"),
    ]:
        with pytest.raises(ns.ModelError, match=says):
            ns.convert(model, "group")


def test_sharded_models_are_refused(tmp_path):
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        with pytest.raises(ns.ModelError, match=r"DistributedDataParallel.*\.module"):
            ns.convert(nn.parallel.DistributedDataParallel(ConvNet()), "group")
        from torch.distributed.device_mesh import init_device_mesh

        with pytest.raises(ns.ModelError, match="before sharding"):
            ns.convert(fully_shard(ConvNet(), mesh=init_device_mesh("cpu", (1,))), "group")
    finally:
        dist.destroy_process_group()


# --- structure ------------------------------------------------------------------------------------------------------------------


def test_a_shared_layer_is_converted_once_and_stays_shared(x):
    norm = nn.BatchNorm2d(3)
    net = nn.Sequential(norm, nn.Sequential(norm), nn.ModuleList([norm]))
    net.forward = lambda x: net[1](net[0](x))
    before = everything(net)
    conversion = ns.convert(net, "group")
    assert net[0] is net[1][0] is net[2][0]
    assert conversion.rows[0].also == ("1.0", "2.0")
    conversion.undo()
    assert_untouched(net, before)


def test_tied_weights_stay_tied():
    net = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    net[1].weight = net[0].weight
    ns.convert(net, "switchable")
    assert net[0].weight is net[1].weight


class Double(nn.Module):
    def forward(self, w):
        return 2 * w


def test_parametrizations_go_along(x):
    net = nn.Sequential(shaken(nn.BatchNorm2d(3))).double()
    parametrize.register_parametrization(net[0], "weight", Double())
    parametrize.register_parametrization(net[0], "weight", Double())
    before, expected = everything(net), net.eval()(x)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    conversion = ns.convert(net, "batch", optimizer=optimizer, verify=x)
    assert parametrize.is_parametrized(net[0], "weight")
    assert net[0].parametrizations.weight.original is before["parameters"]["0.parametrizations.weight.original"]
    torch.testing.assert_close(net(x), expected)
    assert sum(len(g["params"]) for g in optimizer.param_groups) == 2
    conversion.undo()
    net.train()
    assert_untouched(net, before)


def test_hooks_go_along_and_their_handles_still_work(net, x):
    seen = []
    handles = [
        net.backbone[1].register_forward_hook(lambda *_: seen.append("after")),
        net.backbone[1].register_forward_pre_hook(lambda m, args, kw: seen.append("before"), with_kwargs=True),
        net.backbone[1].register_full_backward_hook(lambda *_: seen.append("backward")),
    ]
    ns.convert(net, "group")
    net(x).sum().backward()
    assert seen == ["before", "after", "backward"]
    for handle in handles:
        handle.remove()
    net(x).sum().backward()
    assert len(seen) == 3


def test_a_fused_activation_is_kept(x):
    layer = shaken(BatchNormAct2d(3, act_layer=nn.LeakyReLU, drop_layer=lambda: nn.Dropout(0.5)))
    act = layer.act
    net = nn.Sequential(layer).double()
    expected = net.eval()(x)
    conversion = ns.convert(net, "batch", verify=x)
    assert conversion.output_error < 1e-14
    assert net[0].act is act
    torch.testing.assert_close(net(x), expected)
    assert {"activation", "dropout"} <= set(conversion.rows[0].carried)
    assert net[0].weight is layer.weight  # for models that reach into their layers
    again = ns.convert(net, "switchable", verify=x)  # an adapted layer is a layer like any other
    assert net[0].act is act
    assert [row.layer for row in again.rows] == ["0"], "and its norm is not one beside it"
    again.undo()
    conversion.undo()
    assert net[0] is layer


def test_group_norm_with_activation(x):
    net = nn.Sequential(nn.Conv2d(3, 8, 1), shaken(GroupNormAct(8))).double()
    expected = net(x)
    assert ns.convert(net, "group", verify=x).output_error < 1e-13
    torch.testing.assert_close(net(x), expected)


def test_channels_in_the_last_dimension():
    tokens = torch.randn(3, 5, 6, dtype=torch.float64)
    net = nn.Sequential(nn.Linear(6, 6), shaken(nn.LayerNorm(6, bias=False)), nn.Linear(6, 6), shaken(nn.RMSNorm(6))).double()
    expected = net(tokens)
    assert ns.convert(net, {"1": "layer", "3": "rms"}, verify=tokens).output_error < 1e-14
    torch.testing.assert_close(net(tokens), expected)
    assert (net[1].num_features, net[1].bias) == ((6,), None)
    ns.convert(net, {"1": "position", "3": "batch"}, verify=tokens)
    normalized = nn.functional.layer_norm(net[0](tokens), (6,), net[1].weight)
    torch.testing.assert_close(net[1](net[0](tokens)), normalized)
    y = net[3](tokens)
    flat = tokens.reshape(-1, 6)
    expected = (flat - flat.mean(0)) / (flat.var(0, unbiased=False) + net[3].eps).sqrt() * net[3].weight + net[3].bias
    torch.testing.assert_close(y.reshape(-1, 6), expected)
    assert y.shape == tokens.shape


def test_trailing_shapes_only_become_what_can_have_them():
    net = nn.Sequential(nn.LayerNorm((3, 4, 4)))
    with pytest.raises(ns.ModelError, match="trailing"):
        ns.convert(net, "batch")
    assert ns.convert(net, "rms").rows[0].dropped == ("bias",)


def test_synchronised_batch_norm_comes_back(net, x):
    expected = net.eval()(x)
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    row = ns.convert(synced, "batch", verify=None).rows[0]
    assert row.old == "SyncBatchNorm"
    assert any("process_group" in item for item in row.dropped)
    torch.testing.assert_close(synced(x), expected)


def test_frozen_layers_of_detection_libraries(x):
    net = nn.Sequential(shaken(FrozenBatchNorm2d(3))).double()
    expected = net(x)
    assert ns.convert(net, "frozen", verify=x).output_error < 1e-12
    torch.testing.assert_close(net.train()(x), expected)
    assert not any(p.requires_grad for p in net.parameters())


def test_the_model_itself_may_be_the_layer():
    layer = nn.BatchNorm2d(4)
    conversion = ns.convert(layer, "group", verify=torch.randn(2, 4, 3, 3))
    assert isinstance(conversion.model, ns.GroupNorm)
    assert conversion.model.weight is layer.weight
    assert conversion.undo() is layer


def test_a_graph_module_is_a_model_too(net, x):
    traced = torch.fx.symbolic_trace(net)
    expected = traced.eval()(x)
    ns.convert(traced, "batch")
    torch.testing.assert_close(traced(x), expected)


# --- optimizers -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("named", [False, True])
def test_a_live_optimizer_goes_on(net, x, named):
    norms = [p for n, p in net.named_parameters() if "1" in n.split(".")]
    rest = [p for p in net.parameters() if all(p is not q for q in norms)]
    if named:
        names = {p: n for n, p in net.named_parameters()}
        optimizer = torch.optim.Adam(
            [{"params": [(names[p], p) for p in norms], "lr": 1e-3}, {"params": [(names[p], p) for p in rest]}]
        )
    else:
        optimizer = torch.optim.Adam([{"params": norms, "lr": 1e-3}, {"params": rest}])
    net(x).square().sum().backward()
    optimizer.step()
    groups, state = [list(g["params"]) for g in optimizer.param_groups], copy.deepcopy(optimizer.state_dict())
    weight = net.backbone[1].weight
    momentum, bias = optimizer.state[weight]["exp_avg"], net.head["norm"].bias
    conversion = ns.convert(net, {"backbone.1": "switchable", "head": "rms"}, optimizer=optimizer)
    assert optimizer.state[weight]["exp_avg"] is momentum
    assert bias not in optimizer.state
    added = [p for p in optimizer.param_groups[0]["params"] if all(p is not q for q in norms)]
    assert {id(p) for p in added} == {id(net.backbone[1].mean_weight), id(net.backbone[1].var_weight)}
    if named:
        assert optimizer.param_groups[0]["param_names"][-1] == "backbone.1.var_weight"
        assert "head.norm.bias" not in optimizer.param_groups[1]["param_names"]
    ns_before = net.backbone[1].mean_weight.clone()
    net(x).square().sum().backward()
    optimizer.step()
    assert not torch.equal(ns_before, net.backbone[1].mean_weight)
    conversion.undo()
    assert [[id(p) for p in g["params"]] for g in optimizer.param_groups] == [[id(p) for p in g] for g in groups]
    assert torch.equal(optimizer.state[weight]["exp_avg"], state["state"][0]["exp_avg"])


# --- proof ----------------------------------------------------------------------------------------------------------------------


def test_the_errors_are_those_of_the_outputs(net, x):
    original = copy.deepcopy(net).eval()
    conversion = ns.convert(net, {"backbone": "group"}, verify=x)
    before, after = original(x), net.eval()(x)
    expected = float(((after - before).abs().max() / before.abs().max()).detach())
    assert conversion.output_error == pytest.approx(expected)
    inner = original.backbone[0](x)
    a, b = original.backbone[1](inner), net.backbone[1](inner)
    assert conversion.rows[0].error == pytest.approx(float(((a - b).abs().max() / a.abs().max()).detach()))
    assert conversion.rows[0].error > 0.01


def test_keep_function_is_the_least_squares_fit(net, x):
    original = copy.deepcopy(net).eval()
    plain = ns.convert(net, {"backbone": "group"}, verify=x)
    plain.undo()
    fitted = ns.convert(net, {"backbone": "group"}, verify=x, keep="function")
    inner = original.backbone[0](x)
    z = nn.functional.group_norm(inner, 4, eps=net.backbone[1].eps).movedim(1, 0).flatten(1)
    y = original.backbone[1](inner).movedim(1, 0).flatten(1)
    for channel in range(8):
        design = torch.stack([z[channel], torch.ones_like(z[channel])], 1)
        weight, bias = torch.linalg.lstsq(design, y[channel][:, None]).solution.flatten()
        torch.testing.assert_close(net.backbone[1].weight[channel], weight)
        torch.testing.assert_close(net.backbone[1].bias[channel], bias)
    fitted.undo()


def test_keep_function_recovers_a_function_that_can_be_kept(x):
    net = nn.Sequential(nn.Conv2d(3, 6, 1), shaken(nn.InstanceNorm2d(6, affine=True))).double()
    expected = net(x)
    conversion = ns.convert(
        net,
        lambda c: ns.GroupNorm(c, num_groups=c, eps=1e-5, dtype=torch.float64),
        verify=x,
        keep="function",
    )
    assert conversion.output_error < 1e-12
    torch.testing.assert_close(net(x), expected)


def test_a_layer_that_cannot_be_fitted_says_so(net, x):
    weight = net.backbone[1].weight.clone()
    row = ns.convert(net, {"backbone.1": "filter_response"}, verify=x, keep="function").rows[0]
    assert "not its weight times" in row.reason  # a threshold cuts it
    assert torch.equal(net.backbone[1].weight, weight)


def test_a_successor_that_works_in_evaluation_only_is_refused():
    net = nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6))
    before = everything(net)
    with pytest.raises(ns.ModelError, match=r"IBN.*when training"):
        ns.convert(net, "ibn", verify=torch.randn(4, 3))
    assert_untouched(net, before)
    net = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6)).eval()
    ns.convert(net, "batch", verify=torch.randn(1, 3))  # neither works in training on one sample


def test_verification_leaves_no_trace(net, x):
    net.train()
    net.backbone.append(nn.Dropout(0.5))
    before, random = everything(net), torch.get_rng_state()
    ns.convert(net, "batch", verify=x).undo()
    assert torch.equal(random, torch.get_rng_state())
    assert_untouched(net, before)


def test_a_model_that_fails_with_its_new_layers_is_put_back(x):
    class Reaches(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x):
            return self.norm(x) * self.norm.running_var.sum()

    net = Reaches().double()
    before = everything(net)
    with pytest.raises(ns.ModelError, match="AttributeError"):
        ns.convert(net, "group", verify=x)
    assert_untouched(net, before)


def test_undo_in_the_wrong_order_is_refused(net):
    first = ns.convert(net, "group")
    second = ns.convert(net, "layer")
    with pytest.raises(ns.ModelError, match="later conversions first"):
        first.undo()
    second.undo()
    first.undo()
    assert type(net.backbone[1]) is nn.BatchNorm2d


def test_table_and_report(net, x):
    conversion = ns.convert(net, {"backbone": "switchable"}, verify=x)
    text = str(conversion)
    assert "BatchNorm2d → SwitchableNorm" in text
    assert "running statistics" in text
    report = json.loads(json.dumps(conversion.report))
    assert (report["converted"], report["left"], len(report["layers"])) == (2, 0, 2)
    assert report["layers"][0]["fresh"] == ["mean_weight", "var_weight"]
    assert "2 layers converted" in repr(conversion)
