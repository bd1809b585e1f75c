import re
from pathlib import Path

import lpips
import pytest
import torch
from torchvision.models import AlexNet_Weights, SqueezeNet1_1_Weights, VGG16_Weights

import rlpips
from rlpips.backbones import ARCHITECTURES
from rlpips.hub import load_tensors, loading, read_metadata, registry, store, tensors_digest


def test_every_entry_says_where_it_comes_from():
    entries = rlpips.list_weights()
    assert len(entries) == 18
    for name, entry in entries.items():
        assert entry.name == name
        assert entry.net in ARCHITECTURES
        assert entry.kind in ("backbone", "heads", "metric")
        assert (entry.version is None) == (entry.kind == "backbone")
        assert re.fullmatch(r"sha256:[0-9a-f]{64}|git-blob-sha1:[0-9a-f]{40}", entry.digest)
        assert entry.paper.startswith("https://arxiv.org/abs/")
        assert entry.licence
        assert entry.recipe
        assert all(url.startswith("https://") and url.endswith(entry.file) for url in entry.urls)
        assert entry.urls or (registry.data_dir() / entry.file).exists()


@pytest.mark.parametrize(
    ("name", "weights"),
    [("alexnet", AlexNet_Weights), ("vgg16", VGG16_Weights), ("squeezenet1_1", SqueezeNet1_1_Weights)],
    ids=str,
)
def test_backbones_are_torchvisions(name, weights):
    published = weights.IMAGENET1K_V1
    entry = registry.entry(name)
    assert entry.urls == (published.url,)
    assert entry.digest.startswith("sha256:" + re.search(r"-([0-9a-f]{8})\.pth", published.url)[1])
    if entry.size:
        assert entry.size / 2**20 == pytest.approx(published.meta["_file_size"], abs=1e-3)


@pytest.mark.parametrize("version", ["0.0", "0.1"])
@pytest.mark.parametrize("net", ARCHITECTURES)
def test_shipped_heads_are_those_of_lpips(net, version):
    published = torch.load(
        Path(lpips.__file__).parent / "weights" / f"v{version}" / f"{net}.pth",
        map_location="cpu",
        weights_only=True,
    )
    heads = loading.load("standard", ARCHITECTURES[net], version, pnet_rand=True).heads
    assert len(heads) == len(published)
    for k, head in enumerate(heads):
        assert torch.equal(head, published[f"lin{k}.model.1.weight"])


@pytest.mark.parametrize(
    ("file", "digest"),
    [
        ("lpips-heads", "67163c0ccbbca390d0005e78be4a466b088a9718a38fbd0308aeaaf229893afd"),
        ("rlpips-heads", "dde7a6529d4ff0683dc33df33da62c8314ae67ad4393f664cecbc1ca0e16644b"),
        ("rlpips-alex", "902012d7fe072229f078a5a5a7285c08c0f32dfce6a6cd31c1f9c6e52d768c8b"),
    ],
)
def test_shipped_weights_have_the_numbers_that_were_trained(file, digest):
    """Whatever file they come in: distances that somebody published stay."""
    tensors = load_tensors(registry.data_dir() / f"{file}.safetensors")
    assert tensors_digest(tensors) == f"sha256:{digest}"


def test_shipped_weights_say_how_they_were_made():
    for name, entry in rlpips.list_weights().items():
        if entry.urls:
            continue
        metadata = read_metadata(store.path_of(entry))
        assert metadata["licence"] == entry.licence
        about = metadata if entry.kind == "metric" else metadata.get(name)
        if name.startswith("rlpips-"):
            assert about["recipe"]["net"] == entry.net
            assert about["data"]["count"] == int(entry.recipe["data"].split()[0])


def test_r_lpips_checkpoints_are_named_by_their_git_blobs():
    digests = {
        name: entry.digest for name, entry in rlpips.list_weights().items() if name.startswith("r-lpips")
    }
    assert digests == {
        "r-lpips-alex-linf-x0": "git-blob-sha1:f1435696083bf5b16385efd794af44fcbe49f175",
        "r-lpips-alex-linf-x1": "git-blob-sha1:aa4bfe7ffaed14127b0de360f6e7e08da286b760",
        "r-lpips-alex-linf-ref": "git-blob-sha1:9c94a5bdf515e1724a0229f07b0442ba309490b5",
        "r-lpips-alex-linf-x0-x1": "git-blob-sha1:148f72f8edb5ce28bd8c8092018251f63890a388",
        "r-lpips-alex-linf-x0-tune": "git-blob-sha1:fcbd70019fadddff346f3ddccfae448dea771fa3",
        "r-lpips-alex-ssa-x0": "git-blob-sha1:4c8e8ea53ab9bc6acfb3246f9f650498ed3a31bd",
    }


def test_unknown_names_are_answered_with_those_most_alike():
    with pytest.raises(ValueError, match="did you mean 'alexnet'?"):
        registry.entry("alexnett")
    with pytest.raises(ValueError, match="the names are alexnet, vgg16"):
        registry.entry("zzz")


def test_what_is_no_name_for_the_metric_is_answered_with_the_short_names_too():
    with pytest.raises(ValueError, match="'robsut' is neither a file nor a name: did you mean 'robust'\\?"):
        rlpips.LPIPS(weights="robsut")
    with pytest.raises(ValueError, match="the names are robust, standard, alexnet, vgg16"):
        rlpips.LPIPS(weights="zzz")
