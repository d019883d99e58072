"""Ids replaced by the ids that a remap table gives for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.kernels import _cpp
from pipeline.kernels.placement import data_errors, label_volume
from pipeline.kernels.tables import Columns, column


@dataclass(frozen=True, eq=False)
class RemapTable(Columns):
    """What each id becomes.

    Parameters
    ----------
    ids : uint64 array, (n,)
        Ids, ascending, each once.
    targets : uint64 array, (n,)
        What each becomes; 0 drops it.
    """

    ids: NDArray[np.uint64] = field(metadata=column(np.uint64, "id"))
    targets: NDArray[np.uint64] = field(metadata=column(np.uint64, "id"))


def relabel(
    labels: NDArray[Any], table: RemapTable, *, keep_missing: bool = False
) -> NDArray[np.uint64]:
    """Replace the ids of a volume.

    Parameters
    ----------
    labels : unsigned array, (x, y, z)
        Ids; 0 is background and stays so.
    table : RemapTable
        What they become.
    keep_missing : bool
        Whether an id that the table lacks stays as it is.

    Returns
    -------
    uint64 array, (x, y, z)
        The new ids, in Fortran order.

    Raises
    ------
    DataError
        If the table lacks an id and ``keep_missing`` is off.
    """
    with data_errors():
        return _cpp.relabel(label_volume(labels), table.ids, table.targets, keep_missing)
