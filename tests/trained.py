"""What a training run left: the tensors of its metric, and its tables."""

import csv

import torch

import rlpips


def tensors(path):
    return rlpips.LPIPS(weights=path, use_dropout=False).state_dict()


def rows(path):
    with path.open() as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def changed(a, b):
    return {key for key in a if not torch.equal(a[key], b[key])}
