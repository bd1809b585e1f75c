"""The triplets of a step as tensors, and some of them after an attack."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Triplets:
    """A batch of triplets: all those of a step, or some of them.

    Attributes:
        ref: references `(N, 3, H, W)` in [-1, 1].
        x0: the first distorted images.
        x1: the second distorted images.
        judge: `(N,)`, the share of people who chose `x1`.
        teacher: `(N, 2)`, the first teacher's log distances from `ref` to `x0` and `x1`, if there are
            teachers.
        other: unrelated images `(N, 3, H, W)` for the attack 'ssa': the references of the next triplets.
        positions: `(N,)`, positions in the whole step's batch. They seed the attack's random numbers and
            decide what is attacked, so that neither depends on the number of processes.
        step_total: the number of triplets in the whole step, over all processes and parts.
    """

    ref: Tensor
    x0: Tensor
    x1: Tensor
    judge: Tensor
    teacher: Tensor | None
    other: Tensor
    positions: Tensor
    step_total: int

    def __getitem__(self, index: Tensor | slice) -> "Triplets":
        """Select some triplets of the batch."""
        teacher = None if self.teacher is None else self.teacher[index]
        ref, x0, x1, judge, other, positions = (
            each[index] for each in (self.ref, self.x0, self.x1, self.judge, self.other, self.positions)
        )
        return Triplets(ref, x0, x1, judge, teacher, other, positions, self.step_total)


@dataclass(frozen=True)
class Attacked:
    """Some triplets of a batch after an attack.

    Attributes:
        perturb: what was attacked: 'x0', 'x1', 'ref', 'x0+x1' or 'self'.
        rows: `(M,)`, which triplets of the batch.
        images: what the attack found, `(M, 3, H, W)`, or `(M, 2, 3, H, W)` for 'x0+x1'.
    """

    perturb: str
    rows: Tensor
    images: Tensor

    def replacements(self) -> dict[str, Tensor]:
        """Return the attacked images by the name of what they replace: 'ref', 'x0' or 'x1'."""
        if self.perturb == "x0+x1":
            return dict(zip(("x0", "x1"), self.images.unbind(1), strict=True))
        return {"ref" if self.perturb == "self" else self.perturb: self.images}
