"""Which shard file holds an id (``neuroglancer_uint64_sharded_v1``, murmurhash3)."""

from __future__ import annotations

import numpy as np
import shardcomputer
from numpy.typing import NDArray


def ids_by_shard(
    ids: NDArray[np.uint64], *, shard_bits: int, minishard_bits: int
) -> dict[int, NDArray[np.uint64]]:
    """Group ids by the shard that their hash names.

    Parameters
    ----------
    ids : uint64 array, (n,)
        Distinct ids.
    shard_bits, minishard_bits : int
        Bits of the hash above and within a shard; nothing is shifted out first.

    Returns
    -------
    dict of int to uint64 array
        The ids of each shard, ascending; shards without ids are left out.
    """
    if len(ids) == 0:
        return {}
    groups = shardcomputer.assign_labels_to_shards(
        np.ascontiguousarray(ids, dtype=np.uint64), 0, shard_bits, minishard_bits
    )
    return {
        int(number or "0", 16): np.sort(np.array(members, dtype=np.uint64))
        for number, members in sorted(groups.items())
    }
