"""The recipes that have names."""

from rlpips.training.recipe import Recipe

RECIPES = {
    "lpips": Recipe(),
    "r-lpips": Recipe(mode="adversarial"),
    "robust": Recipe(
        weights="standard",
        mode="adversarial",
        train="all",
        dropout=False,
        perturb=("x0", "x1", "ref", "self"),
        eps_range=(0.5, 1.25),
        steps=3,
        ranking="ratio",
        clean=1.0,
        distill=0.5,
        distill_attacked=0.1,
        inflation=1.0,
        lr=1e-3,
        head_lr=5.0,
        bias_lr=30.0,
        beta1=0.9,
        clip=5.0,
        schedule="cosine",
        warmup=50,
        epochs=11,
        decay_epochs=0,
        batch=64,
        ema=0.998,
        symmetries=True,
        precision="bfloat16",
    ),
}
"""Recipes by name: 'lpips' and 'r-lpips' as published, and 'robust', that of the metric in this package."""
