"""A neuron and its synapses, drawn."""

import numpy as np
import pytest
import zmesh
from PIL import Image

from pipeline.connectome_picture import draw_neuron
from pipeline.specs import Mesh


@pytest.fixture
def ball():
    """A ball of 0.8 um in the middle of a box of 2 x 2 x 1 um."""
    x, y, z = np.meshgrid(*(np.arange(n) for n in (50, 50, 25)), indexing="ij")
    inside = (x - 25) ** 2 + (y - 25) ** 2 + (z - 12) ** 2 < 10**2
    mesher = zmesh.Mesher((40, 40, 40))
    mesher.mesh(inside.astype(np.uint8))
    found = mesher.get(1, normals=False)
    return inside, Mesh(found.vertices.astype(np.float32), found.faces)


def drawn(path, ball, **surface):
    inside, _ = ball
    draw_neuron(
        path,
        (inside.sum(axis=2), inside.sum(axis=1)),
        start_nm=np.zeros(3),
        stop_nm=np.array([2000, 2000, 1000]),
        inputs_nm=np.array([[1000.0, 600, 500], [1400.0, 1000, 500]]),
        outputs_nm=np.array([[1000.0, 1400, 500]]),
        title="a ball",
        **surface,
    )
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def near(pixels, colour):
    return int((np.abs(pixels - np.array(colour)).max(axis=2) < 12).sum())


INPUT, OUTPUT = (0x00, 0x90, 0xC8), (0xE0, 0x78, 0x00)


def test_synapses_lie_on_the_surface_and_on_its_shadows(tmp_path, ball):
    flat = drawn(tmp_path / "flat.png", ball)
    with_surface = drawn(tmp_path / "surface.png", ball, surface=ball[1])
    for pixels in (flat, with_surface):
        assert near(pixels, INPUT) > 1.3 * near(pixels, OUTPUT) > 50
    left = with_surface[:, : with_surface.shape[1] // 2]
    coloured = (left.max(axis=2) - left.min(axis=2) > 40).sum()
    assert coloured > 20_000, "the surface, lit and in colour"
    assert near(left, INPUT) > 100, "synapses before it"
