"""The semantic similarity attack of R-LPIPS."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from rlpips.attacks.objectives import Objective, RankFlip, SemanticSimilarity
from rlpips.attacks.pgd import PGD


@dataclass(frozen=True)
class SSA(PGD):
    """Semantic similarity attack, with which R-LPIPS trains (after Luo et al. 2022, CVPR).

    It is PGD on another objective, `SemanticSimilarity`: it pushes the image that people chose away from its
    own reference and towards an unrelated one. An image that people did not choose goes the other way. The
    arguments are those of `PGD`. The objective must be `RankFlip` on 'x0' or 'x1'.

    Raises:
        TypeError: when called, if the objective is another one.
    """

    def __call__(self, objective: Objective, x: Tensor, image_ids: Sequence[int] | None = None) -> Tensor:
        """Search, from images `x`, for images that are semantically far from where they should be.

        Args:
            objective: `RankFlip` on 'x0' or 'x1'.
            x: `(N, 3, H, W)` within `bounds`, floating point.
            image_ids: a number for each image, which selects its random stream. By default it is the image's
                position in the batch.

        Returns:
            Images of the same shape and dtype, within the budget around `x` and within `bounds`.
        """
        if not isinstance(objective, RankFlip) or objective.perturb not in ("x0", "x1"):
            raise TypeError(
                "SSA attacks x0 or x1 of a triplet; the objective must be RankFlip on one of them"
            )
        return super().__call__(SemanticSimilarity(objective), x, image_ids)
