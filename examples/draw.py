"""Draw `fruit.png` and `mountains.png`, the pictures beside the cat in the notebooks.

    python examples/draw.py

They are computed, three times as large and then averaged, from a fixed seed.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

Values = npt.NDArray[np.float64]

SIDE, FINER = 192, 3


def clouds(rng: np.random.Generator, side: int, octaves: range, fall: float = 0.5) -> Values:
    """Return smooth noise `(side, side)` of standard deviation 1, each octave `fall` times the one before."""
    total = np.zeros((side, side))
    for k in octaves:
        grid = Image.fromarray(rng.standard_normal((2**k + 1, 2**k + 1)).astype(np.float32))
        total += fall**k * np.asarray(grid.resize((side, side), Image.Resampling.BICUBIC))
    return (total - total.mean()) / total.std()


def mix(a: Values | list[float], b: Values | list[float], share: Values) -> Values:
    """Go from `a` (share 0) to `b` (share 1), colours or pictures `(..., 3)`."""
    share = np.clip(share, 0, 1)[..., None]
    return np.asarray(a) * (1 - share) + np.asarray(b) * share


def mountains() -> Values:
    """Draw ridges in the haze of an evening, mirrored in a lake."""
    rng = np.random.default_rng(4)
    side = SIDE * FINER
    shore = int(0.7 * side)
    y, x = np.mgrid[:side, :side] / side
    picture = mix([0.20, 0.33, 0.55], [0.98, 0.74, 0.50], (y / 0.62) ** 1.3)
    sun = np.hypot(x - 0.68, y - 0.36)
    picture = mix(picture, [1.0, 0.90, 0.70], 0.55 * np.exp(-((sun / 0.16) ** 2)))
    picture = mix(picture, [1.0, 0.97, 0.86], (0.055 - sun) * side / 3)
    wisps = clouds(rng, side, range(2, 8), 0.6)[:, : side // 5].astype(np.float32)
    wisps = np.asarray(Image.fromarray(wisps).resize((side, side), Image.Resampling.BICUBIC))
    picture = mix(picture, [1.0, 0.86, 0.76], 0.45 * np.clip(wisps - 0.3, 0, 1))

    for depth in range(4):
        roughness = clouds(rng, side, range(2, 9), 0.52)[side // 2]
        crest = 0.40 + 0.075 * depth + (0.060 - 0.008 * depth) * roughness
        below = np.clip((y - crest) * side / 2, 0, 1)
        stone = clouds(rng, side, range(4, 9), 0.75)
        colour = mix([0.60, 0.55, 0.62], [0.07, 0.13, 0.15], np.full((side, side), depth / 3))
        colour = colour * (1 + (0.05 + 0.05 * depth) * stone)[..., None]
        colour = mix(colour, [0.93, 0.72, 0.58], (0.55 - 0.13 * depth) * (y - crest) / 0.2)
        if depth < 2:
            colour = mix(colour, [0.97, 0.91, 0.90], 3 * (0.025 + 0.012 * stone - (y - crest)) / 0.05)
        picture = mix(picture, colour, below)

    rows = np.clip(2 * shore - np.arange(shore, side), 0, shore - 1)
    ripples = clouds(rng, side, range(4, 8), 0.8)[shore:]
    near = np.arange(side - shore)[:, None] / (side - shore)
    columns = np.arange(side)[None] + np.round((2 + 9 * near) * ripples).astype(int)
    lake = picture[rows[:, None], np.clip(columns, 0, side - 1)]
    picture[shore:] = mix(0.82 * lake, [0.16, 0.24, 0.33], 0.25 + 0.35 * near + np.zeros(side))
    return picture


def fruit() -> Values:
    """Draw an orange, a plum and a lime on a cloth, by casting a ray for each pixel."""
    rng = np.random.default_rng(7)
    side = SIDE * FINER
    v, u = np.mgrid[:side, :side] / side
    eye = np.array([0.0, 1.15, -3.6])
    ray = np.stack([1.3 * (u - 0.48), 1.3 * (0.33 - v), np.full(u.shape, 1.9)], axis=-1)
    ray /= np.linalg.norm(ray, axis=-1, keepdims=True)
    light = np.array([-0.55, 0.75, -0.45]) / np.linalg.norm([-0.55, 0.75, -0.45])
    balls = [  # centre, radius, colour, roughness of the skin, gloss
        (np.array([-0.38, 0.60, 0.25]), 0.60, [0.95, 0.50, 0.08], 0.050, 0.25),
        (np.array([0.55, 0.43, -0.15]), 0.43, [0.40, 0.12, 0.28], 0.012, 0.55),
        (np.array([-0.02, 0.30, -0.72]), 0.30, [0.50, 0.66, 0.16], 0.030, 0.40),
    ]

    far = np.where(ray[..., 1] < -1e-3, -eye[1] / np.minimum(ray[..., 1], -1e-3), np.inf)
    place = eye + np.minimum(far, 50)[..., None] * ray
    on_cloth = np.isfinite(far) & (place[..., 2] < 1.6)
    check = (np.sin(9 * place[..., 0]) > 0).astype(float) + (np.sin(9 * place[..., 2]) > 0)
    weave = clouds(rng, side, range(5, 10), 0.9)
    cloth = mix([0.93, 0.90, 0.84], [0.30, 0.42, 0.58], 0.45 * check) * (1 + 0.04 * weave)[..., None]
    dark = np.ones(u.shape)
    for centre, radius, *_ in balls:
        off = np.linalg.norm(np.cross(place - centre, light), axis=-1)
        dark *= 1 - 0.55 * np.clip((1.12 * radius - off) / (0.24 * radius), 0, 1)
        foot = np.linalg.norm((place - centre)[..., [0, 2]], axis=-1)
        dark *= 1 - 0.5 * np.exp(-((foot / (0.62 * radius)) ** 2))
    wall = mix([0.24, 0.22, 0.24], [0.52, 0.46, 0.42], 1.1 - np.hypot(u - 0.15, v - 0.05))
    wall = wall * (1 + 0.05 * clouds(rng, side, range(1, 9), 0.6))[..., None]
    picture = np.where(on_cloth[..., None], cloth * dark[..., None], wall)

    nearest = np.full(u.shape, np.inf)
    for centre, radius, colour, rough, gloss in balls:
        along = ray @ (centre - eye)
        miss = (centre - eye) @ (centre - eye) - along**2
        hit = along - np.sqrt(np.maximum(radius**2 - miss, 0))
        seen = (miss < radius**2) & (hit < nearest)
        nearest = np.where(seen, hit, nearest)
        normal = (eye + hit[..., None] * ray - centre) / radius
        pores = clouds(rng, side, range(6, 9), 0.95)
        skin = clouds(rng, side, range(2, 7), 0.6)
        bump = np.stack([*np.gradient(pores)[::-1], np.zeros(u.shape)], axis=-1)
        normal = normal + rough * bump / np.abs(bump).mean()
        normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
        lit = np.clip(normal @ light, 0, 1)
        shade = np.ones(u.shape)
        for other, size, *_ in balls:
            if other is not centre:
                point = eye + hit[..., None] * ray - other
                off = np.linalg.norm(np.cross(point, light), axis=-1)
                shade *= 1 - 0.7 * np.clip((size - off) / (0.2 * size), 0, 1) * (point @ light < 0)
        body = np.asarray(colour) * (1 + 0.06 * skin)[..., None]
        bounce = 0.16 + 0.16 * np.clip(-normal[..., 1], 0, 1)
        body = body * (bounce + 0.95 * lit * shade)[..., None]
        half = light - ray
        half /= np.linalg.norm(half, axis=-1, keepdims=True)
        shine = gloss * np.clip((normal * half).sum(-1), 0, 1) ** 40 * shade
        picture = np.where(seen[..., None], body + shine[..., None], picture)
    return picture


def save(picture: Values, path: Path) -> None:
    """Average blocks of pixels, and write a PNG."""
    values = np.clip(picture, 0, 1).reshape(SIDE, FINER, SIDE, FINER, 3).mean(axis=(1, 3))
    Image.fromarray(np.rint(255 * values).astype(np.uint8)).save(path, optimize=True)


if __name__ == "__main__":
    folder = Path(__file__).parent
    save(mountains(), folder / "mountains.png")
    save(fruit(), folder / "fruit.png")
