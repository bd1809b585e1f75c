"""Parameters are plain contiguous tensors; the copies that convolutions read follow every change of them."""

import copy
import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peers import images, peers
from safetensors.torch import load_file, save_file

import rlpips
from rlpips.backbones import convolutions


@pytest.fixture
def pair():
    return images(2, 3, 64, 64), images(2, 3, 64, 64, seed=1)


def build():
    return copy.deepcopy(peers("alex")[0]).requires_grad_(False)


@pytest.mark.parametrize("net", ["alex", "vgg", "squeeze"])
def test_parameters_and_features_are_contiguous(net, pair, tmp_path):
    metric = copy.deepcopy(peers(net)[0])
    metric.float()(*pair)
    assert all(p.is_contiguous() and p.view(-1).shape == (p.numel(),) for p in metric.parameters())
    vector = torch.nn.utils.parameters_to_vector(metric.parameters())
    assert len(vector) == sum(p.numel() for p in metric.parameters())
    assert all(f.view(2, -1).shape[0] == 2 for f in metric.net(pair[0]))
    metric.requires_grad_(True)
    metric(*pair).sum().backward()
    assert all(p.grad.is_contiguous() for p in metric.parameters())


def test_safetensors_saves_and_loads_a_metric(pair, tmp_path):
    metric = build()
    expected = metric(*pair)
    save_file(metric.state_dict(), tmp_path / "metric.safetensors")
    other = rlpips.LPIPS(pnet_rand=True)
    other.load_state_dict(load_file(tmp_path / "metric.safetensors"))
    assert torch.equal(other(*pair), expected)


def data_copy(m):
    for p in m.net.parameters():
        p.data.copy_(p.data.flip(0))


def data_of_one_value(m):
    m.net.slice5[0].weight.data[3, 5, 1, 2] += 3


def data_of_a_layer_reordered(m):
    m.net.slice2[1].weight.data.copy_(m.net.slice2[1].weight.flip(0))


def data_set(m):
    for p in m.net.parameters():
        p.data = p.data * 1.5


def in_place(m):
    with torch.no_grad():
        m.net.slice2[1].weight[3, 5] = 2


def in_inference(m):
    with torch.inference_mode():
        m.net.slice2[1].weight[3, 5] = 2


def initialised(m):
    m.net.slice3[1].weight.data.normal_(std=0.02)


def averaged(m):
    for p in m.net.parameters():
        p.data.mul_(0.9).add_(0.01)


def loaded(m):
    torch.manual_seed(3)
    m.load_state_dict(rlpips.LPIPS(pnet_rand=True).state_dict())


def assigned(m):
    torch.manual_seed(3)
    m.load_state_dict(rlpips.LPIPS(pnet_rand=True).state_dict(), assign=True)


def replaced(m):
    m.net.slice2[1].weight = torch.nn.Parameter(m.net.slice2[1].weight * 2, requires_grad=False)


def from_a_vector(m):
    vector = torch.nn.utils.parameters_to_vector(m.parameters())
    torch.nn.utils.vector_to_parameters(vector * 0.9, m.parameters())


def half_and_back(m):
    m.bfloat16().float()


def trained(m):
    m.net.requires_grad_(True)
    optimizer = torch.optim.Adam(m.net.parameters(), lr=1e-3)
    m(images(1, 3, 64, 64), images(1, 3, 64, 64, seed=1)).sum().backward()
    optimizer.step()
    m.net.requires_grad_(False)


def moved(m):
    m.to(memory_format=torch.channels_last)
    data_set(m)


CHANGES = [
    data_copy, data_of_one_value, data_of_a_layer_reordered, data_set, in_place, in_inference, initialised, averaged, loaded, assigned, replaced,
    from_a_vector, half_and_back, trained, moved,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_parameters_counts_at_once(change, pair):
    metric = build()
    before = metric(*pair)  # which lays them out
    change(metric)
    fresh = rlpips.LPIPS(pnet_rand=True)
    fresh.load_state_dict(metric.state_dict())
    assert torch.allclose(metric(*pair), fresh(*pair), rtol=1e-5)
    assert not torch.allclose(metric(*pair), before, rtol=1e-5)


def test_copies_are_neither_saved_nor_kept_longer_than_their_parameters(pair):
    metric = build()
    size = len(pickle.dumps(metric))
    count = len(convolutions._laid_out)
    metric(*pair)
    assert len(convolutions._laid_out) > count
    assert len(pickle.dumps(metric)) == size
    buffer = io.BytesIO()
    torch.save(metric, buffer)
    other = copy.deepcopy(metric)
    data_set(other)
    assert not torch.allclose(other(*pair), metric(*pair), rtol=1e-5)
    del other, metric
    assert len(convolutions._laid_out) == count


def test_parameters_given_for_a_call_count_for_it_alone(pair):
    metric = build()
    expected = metric(*pair)
    given = {k: v * 1.1 for k, v in metric.named_parameters() if k.startswith("net.")}
    other = torch.func.functional_call(metric, given, pair)
    assert not torch.allclose(other, expected, rtol=1e-5)
    assert torch.equal(metric(*pair), expected)


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 7), reason="torch 2.6 shards modules only on GPUs"
)
def test_a_metric_can_be_sharded():
    script = (
        "import torch, rlpips\n"
        "from torch.distributed.device_mesh import init_device_mesh\n"
        "from torch.distributed.fsdp import fully_shard\n"
        "store = torch.distributed.HashStore()\n"
        "torch.distributed.init_process_group('gloo', store=store, rank=0, world_size=1)\n"
        "metric = rlpips.LPIPS(pnet_rand=True, check_range=False)\n"
        "x, y = torch.rand(2, 1, 3, 64, 64)\n"
        "expected = metric(x, y)\n"
        "fully_shard(metric, mesh=init_device_mesh('cpu', (1,)))\n"
        "assert all(torch.equal(metric(x, y), expected) for _ in range(2))\n"
        "torch.distributed.destroy_process_group()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(rlpips.__file__).parents[1])}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
