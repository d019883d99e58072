"""Ids replaced by the ids that a remap table gives for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.kernels import _cpp
from pipeline.kernels.placement import data_errors, label_volume
from pipeline.kernels.tables import Columns, column
from pipeline.kernels.threads import require_threads


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
    labels: NDArray[Any],
    table: RemapTable,
    *,
    keep_missing: bool = False,
    threads: int = 1,
    out: NDArray[np.uint64] | None = None,
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
    threads : int
        Threads to share the work; the result does not depend on them.
    out : writable uint64 array, (x, y, z), in Fortran order, or None
        Where the new ids go; may be ``labels``, whose ids are then replaced in place.
        None makes an array.

    Returns
    -------
    uint64 array, (x, y, z)
        The new ids, in Fortran order; ``out`` if that was given.

    Raises
    ------
    ValueError
        If there are no threads.
    DataError
        If the table lacks an id and ``keep_missing`` is off, which leaves ``out`` with old
        and new ids; or if ``out`` cannot take the ids.
    """
    require_threads(threads)
    ids = label_volume(labels)
    if out is None:
        out = np.empty(ids.shape, np.uint64, order="F")
    else:
        _require_out(out, ids)
    with data_errors():
        _cpp.relabel(ids, table.ids, table.targets, keep_missing, out, threads)
    return out


def _require_out(out: NDArray[np.uint64], ids: NDArray[np.uint64]) -> None:
    fits = out.dtype == np.uint64 and out.shape == ids.shape
    if not (fits and out.flags.f_contiguous and out.flags.writeable):
        raise DataError(
            f"out is {out.dtype} of shape {out.shape} with strides {out.strides}"
            f"{'' if out.flags.writeable else ', read-only'}; give a writable uint64 array "
            f"of shape {ids.shape} in Fortran order"
        )
    is_labels = out.ctypes.data == ids.ctypes.data
    if not is_labels and np.may_share_memory(out, ids):
        raise DataError(
            f"out lies {out.ctypes.data - ids.ctypes.data} bytes from the labels and "
            "overlaps them; give the labels themselves or memory apart from them"
        )
