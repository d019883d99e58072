"""The recipe that joins two alignments of overlapping sections into one.

What `em join` runs. Nothing is matched: what both say of the sections that they share is
how they stand to one another. Sections before the overlap are the first's, byte for byte;
from there on they are drawn anew, from the loose sections of the second.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.alignment import LooseStack, mask_stages
from pipeline.geometry import Bbox, Vec3
from pipeline.specs import VolumeSpec
from pipeline.stages.seams import seam_nodes

_NODE_NM = 200.0
_WIDEST = 256
"""Nodes along an axis, up to which an overlap is looked at as a whole."""
_SEEN = 10
"""Sections before the seam that maps of misalignment look at."""


@dataclass(frozen=True)
class Alignment:
    """What an alignment left in its root, as far as joining needs it.

    Parameters
    ----------
    root : str
        Its folder.
    identity : str
        Of what it holds: others than these are other sections, or lie elsewhere.
    image, field : VolumeSpec
        Of the layers of these names.
    defects : VolumeSpec or None
        Of the layer ``defects``, if there is one.
    """

    root: str
    identity: str
    image: VolumeSpec
    field: VolumeSpec
    defects: VolumeSpec | None


@dataclass(frozen=True)
class Joint:
    """Two alignments, and how they are joined.

    Parameters
    ----------
    first, second : Alignment
        Of overlapping sections; the second goes on beyond the first.
    defect_mip : int
        Mip at which ``loose_defects`` of the second are drawn.
    loose : str
        Layer of the second that its image is drawn from.
    held : mapping
        Box of what its image, or its defects, are drawn from, by layer, where it is
        another than theirs.
    closures : bool
        Whether its loose sections were put together by point pairs.
    left_out : tuple of int
        Sections that the masks of either leave out.
    interpolation : str
        By which its image is drawn.
    reach_nm : float
        How far its fields move tissue at most [nm].
    limit_nm : float
        Greatest disagreement about the overlap, in the median [nm].
    decay : float
        Sections beyond the overlap in which it fades to 1/e.
    """

    first: Alignment
    second: Alignment
    defect_mip: int = 0
    loose: str = "loose"
    held: Mapping[str, Bbox] = field(default_factory=dict)
    closures: bool = False
    left_out: tuple[int, ...] = ()
    interpolation: str = "linear"
    reach_nm: float = 1200.0
    limit_nm: float = 60.0
    decay: float = 8.0

    @property
    def bounds(self) -> Bbox:
        """Box of the joined image."""
        return self.first.image.bounds.hull(self.second.image.bounds)

    @property
    def overlap(self) -> range:
        """Sections that both hold."""
        return range(self.second.image.bounds.start.z, self.first.image.bounds.stop.z)


def joining_recipe(name: str, joint: Joint) -> dict[str, Any]:
    """Write the recipe of a joining, as `Recipe.parse` reads it.

    It makes layers of the names that an alignment has, so that what is joined can be
    joined again: ``image`` with its pyramid, ``field``, ``section_poses``, ``defects``
    where both have them, ``input_mask`` and ``output_mask``; and ``seam``.
    """
    bounds = joint.bounds
    layers, stages = _joining_stages(joint)
    image = joint.first.image
    return {
        "name": name,
        "grid": {
            "bounds": _limits(bounds),
            "chunk": list(_chunk(bounds, image)),
        },
        "layers": layers,
        "stage": stages,
    }


def _joining_stages(joint: Joint) -> tuple[dict[str, str], list[dict[str, Any]]]:
    first, second, since = joint.first, joint.second, joint.overlap.start
    has_defects = first.defects is not None and second.defects is not None
    shared = ["image", "field", "section_poses", "input_mask", "output_mask"]
    own = ["field", "section_poses"]
    if has_defects:
        shared, own = [*shared, "defects"], [*own, "loose_defects"]
    if joint.closures:
        own = [*own, "closures"]
    layers = {f"first_{name}": f"{first.root}/{name}" for name in shared}
    layers |= {f"second_{name}": f"{second.root}/{name}" for name in own}
    layers["second_loose"] = f"{second.root}/{joint.loose}"

    poses = {"first": "first_section_poses", "second": "second_section_poses"}
    stages = [
        *_seam(joint),
        {
            "use": "joined_poses",
            **poses,
            "since": since,
            "output": "section_poses",
        },
        _joined(joint, "field", first.field),
        _drawn(joint, "image", first.image),
        _joined(joint, "image", first.image),
        {
            "use": "downsample",
            "layer": "image",
            "output": "image/pyramid",
            "mips": max(1, len(first.image.factors) - 1),
            **_cut(joint.bounds, first.image),
        },
    ]
    if first.defects is not None and has_defects:
        stages += [
            _drawn(joint, "defects", first.defects),
            _joined(joint, "defects", first.defects),
        ]
    return layers, stages + _masks(joint, has_defects=has_defects)


def _seam(joint: Joint) -> list[dict[str, Any]]:
    """Return what finds the seam, and puts the second field through it."""
    field = joint.first.field
    x, y, z = field.voxel_size_nm
    stride = 2 ** max(0, round(math.log2(_NODE_NM / x)))
    later = _since(joint.second.field.bounds, joint.overlap.start)
    # A section narrower than a few nodes says nothing at that distance.
    while stride > 1 and min(later.shape.x, later.shape.y) < 4 * stride:
        stride //= 2
    nodes = seam_nodes(later, stride, joint.overlap.stop)
    widest = max(nodes.shape.x, nodes.shape.y)
    mip = max(0, math.ceil(math.log2(widest / _WIDEST)))
    node_size = [x * stride, y * stride, z]
    cut = {"bounds": _limits(nodes), "chunk": [64, 64, 1], "storage_chunk": [64, 64, 1]}
    stages: list[dict[str, Any]] = [
        {
            "use": "seam_shifts",
            "poses": "first_section_poses",
            "field": "first_field",
            "other_poses": "second_section_poses",
            "other_field": "second_field",
            "stride": stride,
            "reach_nm": joint.reach_nm,
            "voxel_size_nm": list(field.voxel_size_nm),
            "of": f"{joint.first.identity} {joint.second.identity}",
            "output": "seam_shifts",
            **cut,
        }
    ]
    if mip:
        stages.append(
            {
                "use": "downsample",
                "layer": "seam_shifts",
                "output": "seam_shifts/pyramid",
                "mips": mip,
                **cut,
            }
        )
    coarse = nodes.coarser(Vec3(2**mip, 2**mip, 1))
    return [
        *stages,
        {
            "use": "seam",
            "shifts": "seam_shifts",
            "mip": mip,
            "limit_nm": joint.limit_nm,
            "voxel_size_nm": [node_size[0] * 2**mip, node_size[1] * 2**mip, z],
            "output": "seam",
            "bounds": _limits(coarse),
            "chunk": list(coarse.shape),
        },
        {
            "use": "seam_fields",
            "shifts": "seam_shifts",
            "seam": "seam",
            "field": "second_field",
            "until": joint.overlap.stop,
            "decay": joint.decay,
            "stride": stride,
            "voxel_size_nm": list(field.voxel_size_nm),
            "output": "later_field",
            **_cut(later, field),
        },
    ]


def _drawn(joint: Joint, layer: str, spec: VolumeSpec) -> dict[str, Any]:
    """Return what draws sections of the second, from the overlap on."""
    what: dict[str, dict[str, Any]] = {
        "image": {"image": "second_loose", "interpolation": joint.interpolation},
        "defects": {
            "image": "second_loose_defects",
            "mip": joint.defect_mip,
            "interpolation": "nearest",
        },
    }
    return {
        "use": "warp",
        **what[layer],
        "poses": "second_section_poses",
        **({"image_bounds": _limits(joint.held[layer])} if layer in joint.held else {}),
        **({"closures": "second_closures"} if joint.closures else {}),
        "field": "later_field",
        "field_voxel_nm": list(joint.second.field.voxel_size_nm),
        "voxel_size_nm": list(spec.voxel_size_nm),
        "output": f"later_{layer}",
        **_cut(_since(_over(joint, spec), joint.overlap.start), spec),
    }


def _joined(joint: Joint, layer: str, spec: VolumeSpec) -> dict[str, Any]:
    """Return what puts the sections of both into one layer."""
    return {
        "use": "joined",
        "first": f"first_{layer}",
        "second": f"later_{layer}",
        "since": joint.overlap.start,
        "output": layer,
        "encoding": spec.encoding,
        **_cut(_over(joint, spec), spec),
    }


def _masks(joint: Joint, *, has_defects: bool) -> list[dict[str, Any]]:
    """Return maps of misalignment and masks from the overlap on, and the joined masks."""
    image, bounds = joint.first.image, joint.bounds
    seen = max(bounds.start.z, joint.overlap.start - _SEEN)
    stack = LooseStack(
        source="",
        bounds=_since(bounds, seen),
        voxel_size_nm=image.voxel_size_nm,
        left_out=tuple(z for z in joint.left_out if z >= seen),
    )
    stages = mask_stages(stack, has_defects=has_defects)
    for entry in stages:
        if entry["use"] == "segmentation_masks":
            entry["output"] = f"later_{entry['output']}"
    masks = ("input_mask", "output_mask")
    return [*stages, *(_joined(joint, name, image) for name in masks)]


def _over(joint: Joint, spec: VolumeSpec) -> Bbox:
    """Return the box of a layer over all sections."""
    box, z = spec.bounds, joint.bounds
    return Bbox(
        Vec3(box.start.x, box.start.y, z.start.z), Vec3(box.stop.x, box.stop.y, z.stop.z)
    )


def _since(box: Bbox, z: int) -> Bbox:
    return Bbox(Vec3(box.start.x, box.start.y, z), box.stop)


def _limits(box: Bbox) -> dict[str, list[int]]:
    return {"start": list(box.start), "stop": list(box.stop)}


def _chunk(box: Bbox, spec: VolumeSpec) -> Vec3:
    """Cut a box into whole storage chunks, wide and flat."""
    storage = spec.storage_chunk
    across = [
        max(s, min(8 * s, -(-n // s) * s)) for n, s in zip(box.shape, storage, strict=True)
    ]
    return Vec3(across[0], across[1], storage.z)


def _cut(box: Bbox, spec: VolumeSpec) -> dict[str, Any]:
    return {
        "bounds": _limits(box),
        "chunk": list(_chunk(box, spec)),
        "storage_chunk": list(spec.storage_chunk),
    }
