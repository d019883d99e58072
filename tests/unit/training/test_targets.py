import numpy as np

from pipeline.training.targets import affinities


def test_is_the_definition():
    labels = np.asfortranarray(
        np.random.default_rng(0).integers(0, 3, (5, 6, 4), np.uint16)
    )
    found = affinities(labels)
    assert found.flags.f_contiguous
    for x, y, z in np.ndindex(labels.shape):
        for axis, before in enumerate([(x - 1, y, z), (x, y - 1, z), (x, y, z - 1)]):
            here = labels[x, y, z]
            same = min(before) >= 0 and here != 0 and here == labels[before]
            assert found[x, y, z, axis] == same
