import numpy as np

from pipeline.phantom.hashing import (
    bell,
    key,
    lattice_hash,
    mixed,
    uniform,
    uniform_triples,
)


def test_mixing_is_the_finaliser_of_splitmix64():
    """First outputs of splitmix64 from seed 1234567, as published with it."""
    golden = 0x9E3779B97F4A7C15
    states = [(1234567 + (i + 1) * golden) % 2**64 for i in range(3)]
    assert mixed(np.array(states, dtype=np.uint64)).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


def test_coordinates_and_keys_all_matter():
    near = np.arange(-3, 4)
    hashes = lattice_hash(key(0, 1), near[:, None, None], near[:, None], near)
    assert hashes.shape == (7, 7, 7)
    other = lattice_hash(key(0, 2), near[:, None, None], near[:, None], near)
    assert len(np.unique(np.concatenate([hashes.ravel(), other.ravel()]))) == 2 * 7**3


def test_numbers_are_spread_as_they_say():
    hashes = lattice_hash(key(9), np.arange(20000))
    assert abs(uniform(hashes).mean() - 0.5) < 0.01
    assert abs(uniform(hashes).var() - 1 / 12) < 0.003
    triples = uniform_triples(hashes)
    assert triples.shape == (20000, 3)
    np.testing.assert_allclose(np.corrcoef(triples.T), np.eye(3), atol=0.03)
    assert abs(bell(hashes).mean()) < 0.03
    assert abs(bell(hashes).std() - 1) < 0.02
