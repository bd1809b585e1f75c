"""Recipes: everything that decides how a metric is trained, but for the data."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from rlpips.attacks import objectives
from rlpips.attacks.base import Attack
from rlpips.attacks.parse import parse_attack
from rlpips.backbones.architectures import ARCHITECTURES

MODES = ("natural", "adversarial", "contrastive")
TRAIN = ("heads", "all", "scratch")
PERTURB = (*objectives.PERTURB, "self")


@dataclass(frozen=True)
class Recipe:
    """How a metric is trained; the defaults are LPIPS' published recipe (Zhang et al. 2018).

    Attributes:
        net: the backbone: 'alex', 'vgg' or 'squeeze'.
        weights: where to start: 'imagenet', with random heads, as LPIPS did; or as for `rlpips.LPIPS`.
        mode: 'natural' trains on triplets as they are, 'adversarial' on attacked ones (R-LPIPS, Ghazanfari et
            al. 2023), 'contrastive' tells a reference's attacked copy and its judged versions from other
            references (InfoNCE, van den Oord et al. 2018).
        train: 'heads', 'all' (backbone and heads) or 'scratch' (both, from random weights, whatever `weights`
            says).
        dropout: before the heads, while they train.
        perturb: what is attacked: 'x0', 'x1', 'ref', 'x0+x1', or 'self', which pushes references away from
            themselves. Of several, each takes an equal share of every batch.
        attack: the kind of attack: 'linf', 'l2' (PGD), 'apgd-linf', 'apgd-l2', 'ssa' or 'stadv'.
        eps: its budget, on the [0, 1] scale, in pixels for 'stadv'.
        eps_range: the budget of a step is drawn uniformly between these multiples of `eps`.
        steps: gradient steps of the attack.
        step_size: of the attack; by default what the attack thinks best.
        ranking: 'network' learns, as LPIPS does, how people choose from two distances; 'ratio' takes the
            logarithm of their ratio, times 4, as the logit.
        clean: weight of the ranking loss on triplets as they are, beside that on attacked ones.
        distill: weight of the mean squared difference of log distances from the teachers'.
        distill_attacked: the same for attacked triplets.
        inflation: weight of the distance of references attacked by 'self', which needs one, in units of the
            teachers' median distance, where there are teachers.
        lr: learning rate of Adam.
        head_lr: multiplies it for the heads.
        bias_lr: multiplies it for the backbone's biases.
        beta1: of Adam.
        weight_decay: decoupled, as in AdamW.
        clip: the longest gradient, over all parameters; longer ones are scaled down.
        schedule: 'linear' keeps the rate for `epochs` and lets it fall in steps for `decay_epochs`; 'cosine'
            lets it fall over all of them.
        warmup: steps in which the rate rises linearly, a fifth of the run at most.
        epochs: passes over the data at the full rate.
        decay_epochs: passes more, while it falls.
        minutes: train for so long instead, beside what teachers and validation take; the rate changes with
            the time that steps have taken, so such a run does not repeat to the digit.
        batch: triplets of a step, over all processes.
        ema: decay of the moving average of weights that is kept instead of the last ones; of a young average
            it is less, so that it covers a ninth of the run so far at most. 0 keeps the last.
        symmetries: turn and mirror each triplet at random; where there are teachers, always in the same way,
            in which they see it.
        precision: 'float32' or 'bfloat16', for the backbone only; sums and losses are in float32.
        patience: stop after so many epochs without a better validation score, and keep the best; 0 never
            stops and keeps the last.
        seed: of all that is random.

    Raises:
        ValueError: a value is out of range or does not fit the others.
    """

    net: str = "alex"
    weights: str = "imagenet"
    mode: str = "natural"
    train: str = "heads"
    dropout: bool = True
    perturb: tuple[str, ...] = ("x0",)
    attack: str = "linf"
    eps: float = 4 / 255
    eps_range: tuple[float, float] = (1.0, 1.0)
    steps: int = 10
    step_size: float | None = None
    ranking: str = "network"
    clean: float = 0.0
    distill: float = 0.0
    distill_attacked: float = 0.0
    inflation: float = 0.0
    lr: float = 1e-4
    head_lr: float = 1.0
    bias_lr: float = 1.0
    beta1: float = 0.5
    weight_decay: float = 0.0
    clip: float = math.inf
    schedule: str = "linear"
    warmup: int = 0
    epochs: int = 5
    decay_epochs: int = 5
    minutes: float | None = None
    batch: int = 50
    ema: float = 0.0
    symmetries: bool = False
    precision: str = "float32"
    patience: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        choices: dict[str, tuple[str, ...]] = {
            "net": tuple(ARCHITECTURES),
            "mode": MODES,
            "train": TRAIN,
            "ranking": ("network", "ratio"),
            "schedule": ("linear", "cosine"),
            "precision": ("float32", "bfloat16"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; choose {', '.join(allowed)}")
        for target in self.perturb:
            if target not in PERTURB:
                raise ValueError(f"perturb={target!r} is unknown; choose {', '.join(PERTURB)}")
        if not self.perturb:
            raise ValueError("perturb is empty")
        least = {"eps": 0, "epochs": 0, "decay_epochs": 0, "warmup": 0, "batch": 1, "patience": 0, "seed": 0}
        weights = ("clean", "distill", "distill_attacked", "inflation", "weight_decay", "eps_range")
        for name, lowest in {**least, **dict.fromkeys(weights, 0)}.items():
            values = getattr(self, name)
            if not all(lowest <= value < math.inf for value in (values if name == "eps_range" else [values])):
                raise ValueError(f"{name}={values} must be at least {lowest}, and finite")
        if self.eps_range[0] > self.eps_range[1]:
            raise ValueError(f"eps_range={self.eps_range} must rise")
        if self.epochs + self.decay_epochs < 1:
            raise ValueError("epochs and decay_epochs are both 0")
        for name in ("lr", "head_lr", "bias_lr", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise ValueError(f"minutes={self.minutes} must be positive")
        for name in ("beta1", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be in [0, 1)")
        if self.attack == "ssa" and not {"x0", "x1"} >= set(self.perturb):
            raise ValueError(f"ssa attacks x0 or x1, not {', '.join(self.perturb)}")
        if ("self" in self.perturb) != (self.inflation > 0):
            raise ValueError("'self' in perturb and a positive inflation need each other")
        if self.perturb == ("self",) and not self.clean:
            raise ValueError("perturb='self' alone needs a positive weight of triplets as they are (clean)")
        if self.mode == "contrastive" and self.perturb != ("ref",):
            raise ValueError("mode='contrastive' attacks references: perturb must be 'ref'")
        self.make_attack(self.eps, 0)  # checks the rest

    @property
    def total_epochs(self) -> int:
        """All passes over the data."""
        return self.epochs + self.decay_epochs

    def make_attack(self, eps: float, seed: int) -> Attack:
        """Make the attack of one step."""
        attack = parse_attack(f"{self.attack}:{eps!r}:{self.steps}", seed=seed)
        return attack if self.step_size is None else dataclasses.replace(attack, step_size=self.step_size)  # type: ignore[type-var]

    def to_json(self) -> dict[str, Any]:
        """Return the values for `json.dumps`; what is infinite is None."""
        values = dataclasses.asdict(self)
        return {
            k: None if v == math.inf else list(v) if isinstance(v, tuple) else v for k, v in values.items()
        }


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
"""Recipes by name: LPIPS' and R-LPIPS' published ones, and that of the robust metric which ships."""
