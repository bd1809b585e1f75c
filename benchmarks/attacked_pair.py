"""Draw the README's picture: an attacked photo, a blurred one, and what LPIPS and the robust metric say.

PGD looks for a change of a photo, at most 4/255 a value, that LPIPS measures as large as it can be made. The
picture shows the photo, the attacked photo and a visibly blurred one. Under each copy stands its distance
from the photo, by both metrics. The last line printed says what the same attack makes of the robust metric.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt

import rlpips
from rlpips.attacks import PGD, Inflate


def main() -> None:
    """Print the distances and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photo", type=Path, help="a photo")
    parser.add_argument("blurred", type=Path, help="the same photo, blurred")
    parser.add_argument("--steps", type=int, default=100, help="of the attack (100)")
    parser.add_argument("-o", dest="output", type=Path, required=True, help="the picture, as PNG")
    options = parser.parse_args()
    photo, blurred = (rlpips.im2tensor(rlpips.load_image(path)) for path in (options.photo, options.blurred))
    standard, robust = rlpips.LPIPS(), rlpips.LPIPS(weights="robust")
    attack = PGD("linf", eps=4 / 255, steps=options.steps)
    copies = {
        "attacked:\nno value moves by more than 4/255": attack(Inflate(standard, photo), photo),
        "blurred:\neverybody sees it": blurred,
    }

    figure, row = plt.subplots(1, 3, figsize=(9, 4.4), layout="constrained")
    for axes, image in zip(row, [photo, *copies.values()], strict=True):
        axes.imshow(rlpips.tensor2im(image))
        axes.set_xticks([])
        axes.set_yticks([])
    row[0].set_title("original", fontsize=12)
    row[0].set_xlabel("distance from the original\nby LPIPS\nby the robust metric", fontsize=13)
    for axes, (title, image) in zip(row[1:], copies.items(), strict=True):
        distances = [metric(photo, image).item() for metric in (standard, robust)]
        print("{}: LPIPS {:.3f}, robust {:.3f}".format(title.partition(":")[0], *distances))
        axes.set_title(title, fontsize=12)
        axes.set_xlabel("\n{:.2f}\n{:.2f}".format(*distances), fontsize=13)
    against_robust = attack(Inflate(robust, photo), photo)
    print(f"attacked to fool the robust metric: robust {robust(photo, against_robust).item():.3f}")
    figure.savefig(options.output, dpi=100, pil_kwargs={"optimize": True})


if __name__ == "__main__":
    main()
