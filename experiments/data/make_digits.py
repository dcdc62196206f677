"""Write scikit-learn's 1,797 digits beside this file, as images: no binary file is kept in git.

- digits.npz: ``X`` (1797, 8, 8, 1) float32 within 0 and 1, and ``y``, the digits;
- digits.csv: a table with a column of paths, ``image``, beside three measurements of each and its digit;
- digits/0000.png and so on: the images, 8 x 8 grey values.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.datasets import load_digits

FOLDER = Path(__file__).parent


def main() -> None:
    """Write everything anew; the same content each time."""
    found = load_digits()
    images = found.images / 16
    np.savez(FOLDER / "digits.npz", X=images[..., None].astype(np.float32), y=found.target)
    names = [f"digits/{row:04}.png" for row in range(len(images))]
    (FOLDER / "digits").mkdir(exist_ok=True)
    for name, image in zip(names, images, strict=True):
        Image.fromarray((255 * image).astype(np.uint8)).save(FOLDER / name)
    measured = {
        "ink": images.mean(axis=(1, 2)).round(4),
        "width": (images > 0.25).any(axis=1).sum(axis=1),
        "upper": (images[:, :4].sum(axis=(1, 2)) / images.sum(axis=(1, 2))).round(4),
    }
    pd.DataFrame({"image": names, **measured, "digit": found.target}).to_csv(FOLDER / "digits.csv", index=False)
    print(FOLDER / "digits.npz", FOLDER / "digits.csv")


if __name__ == "__main__":
    main()
