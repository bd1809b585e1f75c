"""Metrics whose parts have been replaced, wrapped or hooked, beside `lpips` with the same change."""

import copy
from collections import namedtuple

import pytest
import torch
from peers import images, peers
from torch import nn

import rlpips
from rlpips import pairwise

Features = namedtuple("Features", "a b c d e")


class Wrapper(nn.Module):
    """What has no attributes of what it wraps, and changes the result."""

    def __init__(self, inner, output=None):
        super().__init__()
        self.inner, self.output = inner, output

    def forward(self, x):
        found = self.inner(x)
        return self.output(found) if self.output else 1.5 * found


class LowRank(nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.conv = conv
        self.down = nn.Conv2d(conv.in_channels, 2, conv.kernel_size, padding=conv.padding, bias=False)
        self.up = nn.Conv2d(2, conv.out_channels, 1, bias=False)

    def forward(self, x):
        return self.conv(x) + self.up(self.down(x))


def biased(conv):
    new = nn.Conv2d(conv.in_channels, 1, 1)
    new.load_state_dict({"weight": conv.weight.detach(), "bias": torch.tensor([0.3])})
    return new


def no_scaling(m):
    m.scaling_layer = nn.Identity()


def five_channels(m):
    m.scaling_layer = nn.Identity()
    m.net.slice1[0] = nn.Conv2d(5, 64, 11, stride=4, padding=2)


def wider_scaling(m):
    scaling = m.scaling_layer
    five_channels(m)
    m.scaling_layer = scaling
    m.scaling_layer.shift = torch.full((1, 5, 1, 1), 0.1)
    m.scaling_layer.scale = torch.full((1, 5, 1, 1), 0.5)


def net_of(output):
    def change(m):
        m.net = Wrapper(m.net, output)

    return change


def another_net(m):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv2d(3, channels, 3) for channels in m.chns)

        def forward(self, x):
            return [conv(x).relu() for conv in self.convs]

    m.net = Net()


def other_head(m):
    m.lins[1] = nn.Conv2d(m.chns[1], 1, 1)


def wrapped_head(m):
    m.lins[2] = Wrapper(m.lins[2])


def name_alone(m):
    m.lin0 = nn.Conv2d(m.chns[0], 1, 1)


def biased_head(m):
    m.lins[0].model[-1] = biased(m.lins[0].model[-1])


def head_in_place(m):
    m.lins[3].model = Wrapper(m.lins[3].model)


def low_rank_head(m):
    m.lins[1].model[-1] = LowRank(m.lins[1].model[-1])


def normed_head(m):
    nn.utils.parametrizations.weight_norm(m.lins[1].model[-1])
    with torch.no_grad():
        m.lins[1].model[-1].parametrizations.weight.original0.mul_(2)


def hooked_head(m):
    m.lins[1].register_forward_hook(lambda module, args, out: 2 * out)


def hooked_convolution(m):
    m.lins[1].model[-1].register_forward_pre_hook(lambda module, args: (args[0] * 2,))


def patched_head(m):
    m.lins[1].forward = lambda x: x[:, :1]


def hooked_slice(m):
    m.net.slice2.register_forward_hook(lambda module, args, out: out * (out > 0.1))
    m.net.slice3.register_forward_pre_hook(lambda module, args: (args[0] + 0.1,))


def low_rank_layer(m):
    m.net.slice3[1] = LowRank(m.net.slice3[1])


def normed_layer(m):
    nn.utils.parametrizations.weight_norm(m.net.slice3[1])
    with torch.no_grad():
        m.net.slice3[1].parametrizations.weight.original0.mul_(2)


def fewer_layers(m):
    m.L = 3


CHANGES = {
    f.__name__: f
    for f in (
        no_scaling, five_channels, wider_scaling, another_net, other_head, wrapped_head, name_alone,
        biased_head, head_in_place, low_rank_head, normed_head, hooked_head, hooked_convolution,
        patched_head, hooked_slice, low_rank_layer, normed_layer, fewer_layers,
    )
} | {
    "list": net_of(list), "tuple": net_of(tuple), "named": net_of(lambda found: Features(*found)),
    "changed": net_of(lambda found: [2 * f + 1 for f in found]),
}  # fmt: skip


@pytest.mark.parametrize("version", ["0.1", "0.0"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_metric_measures_as_lpips_does(change, version):
    found = []
    for metric in peers("alex", torch.float64, version):
        metric = copy.deepcopy(metric)
        torch.manual_seed(0)
        change(metric)
        metric.double()
        channels = 5 if change in (five_channels, wider_scaling) else 3
        x, y = (images(2, channels, 40, 47, seed=s, dtype=torch.float64) for s in (0, 1))
        x.requires_grad_()
        total, layers = metric(x, y, retPerLayer=True)
        found.append((total, *layers, torch.autograd.grad(total.sum(), x)[0]))
    for ours, expected in zip(*found, strict=True):
        assert ours.shape == expected.shape
        assert torch.allclose(ours, expected, rtol=1e-10, atol=1e-12)


def test_what_needs_to_know_a_part_refuses_another():
    x = images(1, 3, 64, 64)
    metric = rlpips.LPIPS(pnet_rand=True)
    hooked_head(metric)
    with pytest.raises(ValueError, match="lin1 of the metric has been replaced or has hooks"):
        pairwise.embed(metric, x)
    low_rank_layer(metric)
    with pytest.raises(ValueError, match="LowRank that has been put into it"):
        metric(x, x, tile=32)
    another_net(metric)
    with pytest.raises(ValueError, match="net has been replaced"):
        metric(x, x, tile=32)
    with pytest.raises(TypeError, match="net has been replaced"):
        rlpips.export_metric(metric, "metric.pt2")


@pytest.mark.parametrize(
    ("name", "together"),
    [("net.slice1", True), ("net.slice2.3", True), ("scaling_layer", True), ("net", False)],
)
def test_hooks_see_both_batches_at_once_as_the_guide_says(name, together):
    ours = rlpips.LPIPS(pnet_rand=True)
    seen = []
    ours.get_submodule(name).register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    x, y = images(2, 3, 64, 64), images(2, 3, 64, 64, seed=1)
    ours(x, y)
    assert seen == ([4] if together else [2, 2])
    seen.clear()
    ours(x.requires_grad_(), y)
    assert seen == [2, 2]
