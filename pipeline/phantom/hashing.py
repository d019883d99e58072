"""Random numbers that depend on a key and a lattice coordinate, and on nothing else.

The mixing step is the finaliser of splitmix64 (Steele, Lea and Flood 2014). Everything
that follows from it is IEEE arithmetic on single elements, so a value does not depend
on the array in which it was computed.
"""

import numpy as np
from numpy.typing import NDArray

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit integers, one to one.

    Parameters
    ----------
    values : uint64 array
        Any integers; at least one-dimensional, so that products wrap silently.

    Returns
    -------
    uint64 array
        Of the same shape, every bit of which depends on every bit of the input.
    """
    out = values ^ (values >> np.uint64(30))
    out *= _FIRST
    out ^= out >> np.uint64(27)
    out *= _SECOND
    out ^= out >> np.uint64(31)
    return out


def key(seed: int, *purpose: int) -> int:
    """Derive an independent 64-bit key from a seed and what it is for.

    Parameters
    ----------
    seed : int
        Any integer.
    *purpose : int
        Numbers that tell one use of the seed from another.

    Returns
    -------
    int
        In 0 .. 2**64 - 1.
    """
    state = np.array([seed & _MASK], dtype=np.uint64)
    for number in purpose:
        state = mixed(state + np.uint64((_GOLDEN * (number + 1)) & _MASK))
    return int(mixed(state)[0])


def lattice_hash(key: int, *coordinates: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Hash lattice points; the coordinate arrays are broadcast against each other.

    Coordinates are taken in one after another, so a broadcast grid pays for its full
    size only at the last of them.

    Parameters
    ----------
    key : int
        From `key`.
    *coordinates : int64 arrays
        Along each axis; negative ones are as good as any.

    Returns
    -------
    uint64 array
        Of the broadcast shape.
    """
    state = np.array([key], dtype=np.uint64)
    for coordinate in coordinates:
        # two's complement: a negative coordinate becomes a large one, one to one
        step = np.atleast_1d(coordinate).astype(np.int64).view(np.uint64)
        state = mixed(state + mixed(step + np.uint64(_GOLDEN)))
    return state


def uniform(hashes: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Turn hashes into numbers that are uniform in [0, 1).

    Parameters
    ----------
    hashes : uint64 array
        From `lattice_hash`; the upper 53 bits are used.

    Returns
    -------
    float64 array
        Of the same shape.
    """
    return (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53


def uniform_triples(hashes: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Turn each hash into three numbers that are uniform in [0, 1).

    Parameters
    ----------
    hashes : uint64 array
        From `lattice_hash`; 21 bits serve each number.

    Returns
    -------
    float64 array, (..., 3)
        One row per hash.
    """
    low = np.uint64((1 << 21) - 1)
    parts = [(hashes >> np.uint64(shift)) & low for shift in (0, 21, 42)]
    return np.stack(parts, axis=-1).astype(np.float64) * 2.0**-21


def bell(hashes: NDArray[np.uint64]) -> NDArray[np.float32]:
    """Turn hashes into bell-shaped numbers of mean 0 and variance 1.

    Each is the sum of the four 16-bit quarters of its hash, which is as good as a
    normal number up to three standard deviations and exact on every machine.

    Parameters
    ----------
    hashes : uint64 array
        From `lattice_hash`.

    Returns
    -------
    float32 array
        Of the same shape, in -3.47 .. 3.47.
    """
    quarter = np.uint64(0xFFFF)
    total = hashes & quarter
    for shift in (16, 32, 48):
        total += (hashes >> np.uint64(shift)) & quarter
    spread = (4.0 * (2.0**32 - 1.0) / 12.0) ** 0.5
    return ((total.astype(np.float32) - np.float32(131070.0)) / np.float32(spread)).astype(
        np.float32
    )
