"""Tiny triplets, in memory and on disk, and a random metric to train on them."""

import numpy as np
import torch
from peers import images, peers
from PIL import Image

import rlpips

SIZE = 32


class Triplets(torch.utils.data.Dataset):
    """Triplets of noise, judged at random, by a metric, or (`judge=None`) by nobody."""

    def __init__(self, count=16, seed=0, judge="random", size=SIZE):
        generator = torch.Generator().manual_seed(seed)
        self.ref = 0.8 * images(count, 3, size, size, seed=seed).clamp(-1, 1)
        strengths = 0.2 + 0.04 * torch.rand(2, count, 1, 1, 1, generator=generator)
        self.p0, self.p1 = (
            (self.ref + s * images(count, 3, size, size, seed=1000 + 2 * seed + k)).clamp(-1, 1)
            for k, s in enumerate(strengths)
        )
        self.judge = torch.rand(count, generator=generator)
        if judge is None:
            self.judge[:] = torch.nan
        elif judge != "random":
            with torch.no_grad():
                self.judge = (judge(self.p1, self.ref) < judge(self.p0, self.ref)).float().flatten()

    def __len__(self):
        return len(self.ref)

    def __getitem__(self, i):
        i = range(len(self))[i]
        judge = self.judge[i].view(1, 1, 1)
        return {"ref": self.ref[i], "p0": self.p0[i], "p1": self.p1[i], "judge": judge, "index": i}

    def write(self, root, subset="train/toy"):
        """Write them in BAPPS' layout, as bytes."""
        for item in self:
            for name in ("ref", "p0", "p1"):
                path = root / "2afc" / subset / name / f"{item['index']:06}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rlpips.tensor2im(item[name][None])).save(path)
            path = root / "2afc" / subset / "judge" / f"{item['index']:06}.npy"
            path.parent.mkdir(exist_ok=True)
            np.save(path, item["judge"].numpy())
        return root


def random_metric(seed=None):
    """Return a frozen metric with a random AlexNet; heads are all alike, or sparse and random with a seed."""
    metric = rlpips.LPIPS(pnet_rand=True, use_dropout=False, check_range=False)
    metric.load_state_dict(
        {k.replace("model.1", "model.0"): v for k, v in peers("alex")[0].state_dict().items()}, strict=True
    )
    generator = torch.Generator().manual_seed(seed or 0)
    for lin in metric.lins:
        lin.channel_weights.data.fill_(0.1)
        if seed is not None:
            lin.channel_weights.data *= 10 * (
                torch.rand(lin.channel_weights.shape, generator=generator) < 0.05
            )
    return metric


def saved_metric(path):
    """Save a random metric for `weights=`, and return the path as text."""
    torch.save(random_metric().state_dict(), path)
    return str(path)
