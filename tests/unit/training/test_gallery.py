from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.training.gallery import gallery

PICTURE = Path(__file__).parents[3] / "docs/reference/augmentation.png"


@pytest.mark.slow
def test_the_picture_is_current():
    held = np.asarray(Image.open(PICTURE).convert("RGB")).astype(int)
    drawn = np.asarray(gallery().convert("RGB")).astype(int)
    assert drawn.shape == held.shape, "run: python -m pipeline.training.gallery FILE"
    # Fonts differ a little between versions of pillow: the words are left out.
    assert np.abs(drawn - held)[:, 120:].mean() < 1


def test_the_picture_is_small():
    assert PICTURE.stat().st_size < 600_000
