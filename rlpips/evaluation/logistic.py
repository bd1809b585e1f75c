"""The curve through which scores are predicted from distances before Pearson's correlation is computed.

The curve is VQEG's logistic with four parameters (VQEG 2000, phase I, final report; monotone):

    curve(d) = low + (high - low) / (1 + exp(-(d - centre) / width))

Its least squares fit to scores is a search over two numbers only: for a given centre and width, the best low
and high are those of linear regression on the sigmoid, and the squared error is least where the correlation
of sigmoid and scores is largest. So the search compares correlations of many sigmoids with the scores.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_WIDTHS, _CENTRES = 30, 33  # of the curves from which the search begins
_HALVINGS = 24  # of its step
_OUTSIDE = 10  # widths from the distances to a centre; beyond, the curve is an exponential
_AT_ONCE = 2**22  # numbers in an intermediate array


@dataclass(frozen=True)
class Logistic:
    """A monotone curve from distances to scores; it falls if `high` is less than `low`."""

    low: float
    high: float
    centre: float
    width: float

    def __call__(self, d: Array) -> Array:
        """Return the predicted scores of distances, `(N,)`."""
        sigmoid = _sigmoids(d, np.array([[self.centre, self.width]]))[0]
        scores: Array = self.low + (self.high - self.low) * sigmoid
        return scores


def fit_logistic(d: Array, scores: Array) -> Logistic:
    """Fit VQEG's logistic curve with four parameters to people's scores, by least squares.

    Args:
        d: distances, `(N,)`.
        scores: people's scores, `(N,)`.

    Raises:
        ValueError: all distances, or all scores, are equal.
    """
    if not np.ptp(d) > 0 or not np.ptp(scores) > 0:
        raise ValueError("a curve needs distances that differ, and scores that differ")
    ((centre, width),) = best = _refined(d, scores)
    sigmoid = _sigmoids(d, best)[0]
    slope = np.cov(sigmoid, scores)[0, 1] / np.var(sigmoid, ddof=1)
    low = float(scores.mean() - slope * sigmoid.mean())
    return Logistic(low, low + float(slope), float(centre), float(width))


def candidates(d: Array, scores: Array) -> Array:
    """Return centres and widths `(K, 2)` of curves all over the distances.

    The last is the best for these scores. The others are for resampled scores.
    """
    return np.concatenate([_coarse(d), _refined(d, scores)])


def sigmoid_blocks(d: Array, curves: Array) -> Iterator[Array]:
    """Yield the sigmoids of curves as blocks `(k, N)`, each row of mean 0 and standard deviation 1.

    A row that is constant up to rounding is 0.
    """
    for block in np.array_split(curves, 1 + len(curves) * len(d) // _AT_ONCE):
        sigmoids = _sigmoids(d, block)
        sigmoids -= sigmoids.mean(axis=1, keepdims=True)
        deviation = sigmoids.std(axis=1, keepdims=True)
        yield np.where(deviation > 1e-9, sigmoids / np.maximum(deviation, 1e-9), 0)


def _sigmoids(d: Array, curves: Array) -> Array:
    """Return `1 / (1 + exp(-(d - centre) / width))`, `(K, N)`, for curves `(K, 2)` of centre and width."""
    steepness = np.clip((d - curves[:, :1]) / curves[:, 1:], -500, 500)
    return 1 / (1 + np.exp(-steepness))


def _coarse(d: Array) -> Array:
    """Return centres and widths `(K, 2)` of curves from steep to straight, all over the distances."""
    span = np.ptp(d)
    # A few large distances, as of MSE, must not make all curves straight where most distances are.
    typical = min(float(np.std(d)), float(np.ptp(np.quantile(d, [0.25, 0.75])))) or float(np.std(d))
    widths = np.geomspace(typical / 8, 64 * span, _WIDTHS)[:, None]
    inside = np.broadcast_to(np.quantile(d, np.linspace(0, 1, _CENTRES)), (_WIDTHS, _CENTRES))
    steps = np.array([1.0, 2.0, 4.0])
    centres = np.concatenate([inside, d.min() - widths * steps, d.max() + widths * steps], axis=1)
    return np.stack([centres, np.broadcast_to(widths, centres.shape)], axis=-1).reshape(-1, 2)


def _refined(d: Array, scores: Array) -> Array:
    """Return centre and width `(1, 2)` of the best curve, by a pattern search from the best coarse one."""
    scores = scores - scores.mean()

    def best_of(curves: Array) -> Array:
        k = int(np.argmax(np.concatenate([np.abs(block @ scores) for block in sigmoid_blocks(d, curves)])))
        return curves[k : k + 1]

    coarse = _coarse(d)
    best, step = best_of(coarse), 1.0
    narrowest, widest = coarse[0, 1], coarse[-1, 1]
    directions = np.array([(0, 0), *((i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0))])
    halved = 0
    while halved < _HALVINGS:
        centre, width = best[0]
        widths = np.clip(width * np.exp(0.4 * step * directions[:, 1]), narrowest, widest)
        centres = centre + step * width * directions[:, 0]
        centres = np.clip(centres, d.min() - _OUTSIDE * widths, d.max() + _OUTSIDE * widths)
        found = best_of(np.stack([centres, widths], axis=1))
        if np.array_equal(found, best):  # the first, where nothing is better
            step, halved = step / 2, halved + 1
        best = found
    return best
