"""The recipe of an alignment: from loose sections to an aligned image and its masks.

What `em align` runs. Sections are laid on one another as a whole at a coarse mip, then
patch by patch at a finer one, twice; the image is drawn once, from the loose sections.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pipeline.geometry import Bbox, Vec3
from pipeline.reconstruction import ingest_chunks
from pipeline.specs import VoxelSize
from pipeline.stages.closures import PointPair

_STORAGE = 64
_CHUNK = 512
_WORK_NM = 12.0
_ROUGH_PIXELS = 192
_SEARCH, _NEAR = 20, 8
"""How far patches are looked for, first and when nearly aligned [work pixel]."""
_MAP_PIXELS = 32
"""Work pixels of a voxel of the maps of misalignment."""
_NOWHERE = Vec3(0, 0, 0)
_STORED = Vec3(64, 64, 64)


@dataclass(frozen=True)
class LooseStack:
    """What is aligned, and how.

    Parameters
    ----------
    source : str
        Location of the sections.
    bounds : Bbox
        Box of them, in voxels of the output.
    voxel_size_nm : (x, y, z)
        Extent of a voxel [nm].
    shift : Vec3
        Offset of the output from the source [voxel].
    natural_chunk : Vec3
        What the source decodes at once [voxel].
    defect_model : str
        Model that finds folds, cracks and resin; empty for none.
    defect_threshold : float
        Least probability of a defect.
    defect_source : str
        Location of a mask of defects that is known already; empty for none.
    defect_mip : int
        Mip of the sections that the mask has the voxels of; below 0 if it is finer.
    defect_shift : Vec3 or None
        Offset of the output at that mip from the mask; that of the sections if None.
    embedding_model : str
        Model of what patches are compared by; empty for local contrast.
    farthest_nm : float
        Greatest shift between sections that are near one another [nm].
    turn_degrees : float
        Greatest turn between them.
    distance : int
        To how many sections before and after each is compared.
    interpolation : str
        Of the image: linear or lanczos.
    intensity_range : (float, float) or None
        Values that become 0 and 255, for an image that is not uint8.
    pairs : tuple of PointPair
        By which large cracks are closed before anything is matched.
    left_out : tuple of int
        Sections that the masks leave out [voxel].
    chatter : (float, float, float) or None
        Orientation [degree] and shortest and longest wavelength [nm] of the bands that are
        damped in what is matched, see `Chatter`; None for none.
    chatter_in_image : bool
        Whether they are damped in the aligned image too.
    """

    source: str
    bounds: Bbox
    voxel_size_nm: VoxelSize
    shift: Vec3 = _NOWHERE
    natural_chunk: Vec3 = _STORED
    defect_model: str = "defects-cortex"
    defect_threshold: float = 0.5
    defect_source: str = ""
    defect_mip: int = 0
    defect_shift: Vec3 | None = None
    embedding_model: str = "embedding-cortex"
    farthest_nm: float = 720.0
    turn_degrees: float = 4.0
    distance: int = 3
    interpolation: str = "linear"
    intensity_range: tuple[float, float] | None = None
    pairs: tuple[PointPair, ...] = ()
    left_out: tuple[int, ...] = ()
    chatter: tuple[float, float, float] | None = None
    chatter_in_image: bool = False

    @property
    def aligned(self) -> Bbox:
        """Box of what is aligned, see `aligned_box`."""
        return aligned_box(self.bounds, self.voxel_size_nm)


def work_mip(voxel_size_nm: VoxelSize) -> int:
    """Return the mip that patches of sections are matched at."""
    return max(0, round(math.log2(_WORK_NM / voxel_size_nm[0])))


def aligned_box(bounds: Bbox, voxel_size_nm: VoxelSize) -> Bbox:
    """Return the box that is aligned of sections: whole voxels of maps of misalignment.

    What that is beyond the sections is blank, but for what was moved there.
    """
    wide = 2 ** work_mip(voxel_size_nm) * _MAP_PIXELS
    across = Vec3(wide, wide, 1)
    return bounds.coarser(across).finer(across)


def alignment_recipe(name: str, stack: LooseStack) -> dict[str, Any]:
    """Write the recipe of an alignment, as `Recipe.parse` reads it."""
    layers, stages = alignment_stages(stack)
    bounds = stack.bounds
    return {
        "name": name,
        "grid": {
            "bounds": {"start": list(bounds.start), "stop": list(bounds.stop)},
            "chunk": _cut(bounds)["chunk"],
        },
        "layers": layers,
        "stage": stages,
    }


def alignment_stages(stack: LooseStack) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Return the layers and the stages of an alignment, as a recipe has them.

    The last image is the layer ``image``, with ``input_mask`` and ``output_mask`` in its
    voxels, and ``defects`` at the scale that patches were matched at.
    """
    size = stack.voxel_size_nm
    work = work_mip(size)
    shape = stack.bounds.shape
    rough = max(work, math.floor(math.log2(max(1, min(shape.x, shape.y) / _ROUGH_PIXELS))))
    mips = max(rough, work + 2)
    step, stride = 16, 2

    def at(mip: int) -> tuple[Bbox, list[float]]:
        factor = Vec3(2**mip, 2**mip, 1)
        return stack.bounds.coarser(factor), [size[0] * 2**mip, size[1] * 2**mip, size[2]]

    loose, _ = at(0)
    loose_work, work_size = at(work)
    coarse, coarse_size = at(rough)
    fine, fine_size = stack.aligned, list(size)
    box = fine.coarser(Vec3(2**work, 2**work, 1))
    node_box = box.coarser(Vec3(step, step, 1))
    field_box = box.coarser(Vec3(stride, stride, 1))
    node_size = [work_size[0] * step, work_size[1] * step, size[2]]
    field_size = [work_size[0] * stride, work_size[1] * stride, size[2]]
    chunk, storage = ingest_chunks(shape, stack.natural_chunk, sharded=False)
    layers = {"source": stack.source}
    pyramid_chunk = [chunk.x, chunk.y, chunk.z]
    stages: list[dict[str, Any]] = [
        {
            "use": "ingest",
            "source": "source",
            "output": "loose",
            "voxel_size_nm": list(size),
            "shift": list(stack.shift),
            **_cut(loose),
            "chunk": pyramid_chunk,
            "storage_chunk": list(storage),
            **(
                {"intensity_range": list(stack.intensity_range)}
                if stack.intensity_range
                else {}
            ),
        },
        {
            "use": "downsample",
            "layer": "loose",
            "output": "loose/pyramid",
            "mips": mips,
            **_cut(loose),
            "chunk": pyramid_chunk,
            "storage_chunk": list(storage),
        },
    ]
    shown, damped_from = "loose", 0
    if stack.chatter is not None:
        shown, damped_from = "damped", 0 if stack.chatter_in_image else work
        stages += _damped(stack.chatter, *at(damped_from), damped_from, mips)
    has_defects = bool(stack.defect_model or stack.defect_source)
    if stack.defect_source:
        layers["defect_source"] = stack.defect_source
        stages += _known_defects(stack, stages, work)
    elif stack.defect_model:
        stages.append(
            {
                "use": "defects",
                "image": "loose",
                "mip": work,
                "model": stack.defect_model,
                "threshold": stack.defect_threshold,
                "output": "loose_defects",
                **_cut(loose_work),
            }
        )
    closures = {"closures": "closures"} if stack.pairs else {}
    poses = {"poses": "section_poses", **closures}
    if stack.pairs:
        stages += [
            {
                "use": "closures",
                "pairs": [pair.model_dump() for pair in stack.pairs],
                "voxel_size_nm": coarse_size,
                "output": "closures",
                **_plain(_cut(coarse)),
            },
            {
                "use": "warp",
                "image": shown,
                "mip": rough - damped_from,
                **closures,
                "voxel_size_nm": coarse_size,
                "output": "closed",
                **_cut(coarse),
            },
        ]
    stages += [
        {
            "use": "section_matches",
            "image": "closed" if stack.pairs else shown,
            "mip": 0 if stack.pairs else rough - damped_from,
            "voxel_size_nm": coarse_size,
            "distance": stack.distance,
            "turn_degrees": stack.turn_degrees,
            "shift_nm": stack.farthest_nm,
            "output": "section_matches",
            **_plain(_cut(coarse)),
        },
        {
            "use": "section_poses",
            "matches": "section_matches",
            "voxel_size_nm": coarse_size,
            "output": "section_poses",
            **_plain(_cut(coarse)),
        },
    ]

    def held(mip: int) -> dict[str, Any]:
        """Say which box the loose sections have at a mip, where more is aligned."""
        box = at(mip)[0]
        limits = {"start": list(box.start), "stop": list(box.stop)}
        return {} if stack.aligned == stack.bounds else {"image_bounds": limits}

    def seen_through(field: str, output: str) -> dict[str, Any]:
        """Say how sections are drawn at the scale of the matching, through a field."""
        through = {"field": field, "field_voxel_nm": field_size} if field else {}
        return {
            "use": "warp",
            **poses,
            **through,
            **held(work),
            "voxel_size_nm": work_size,
            **_cut(box),
            "output": output,
        }

    def defects_through(field: str, output: str) -> dict[str, Any]:
        mip = work - stack.defect_mip if stack.defect_source else 0
        mask = {"image": "loose_defects", "mip": mip, "interpolation": "nearest"}
        return {**seen_through(field, output), **mask}

    def drawn(field: str, name: str) -> list[dict[str, Any]]:
        """Draw sections, and what is compared of them, as far as they are aligned."""
        found = [{**seen_through(field, name), "image": shown, "mip": work - damped_from}]
        if has_defects:
            found.append(defects_through(field, f"{name}_defects"))
        if stack.embedding_model:
            found.append(
                {
                    "use": "embeddings",
                    "image": name,
                    "model": stack.embedding_model,
                    "output": f"{name}_embedding",
                    **_cut(box),
                }
            )
        return found

    def matched(name: str, before: str, first: str, search: int) -> list[dict[str, Any]]:
        """Match patches, solve for displacements, and compose them with the first field."""
        defects = {"defects": f"{name}_defects"} if has_defects else {}
        embedding = {"embedding": f"{name}_embedding"} if stack.embedding_model else {}
        return [
            {
                "use": "flows",
                "image": name,
                **defects,
                **embedding,
                "step": step,
                "search": search,
                "distance": stack.distance,
                "voxel_size_nm": work_size,
                "output": f"{before}flows",
                **_nodes(_cut(node_box, 64)),
            },
            {
                "use": "relaxation",
                "flows": f"{before}flows",
                "distance": stack.distance,
                "voxel_size_nm": node_size,
                "output": f"{before}relaxation",
                **_nodes(_cut(node_box, 64), z=24),
            },
            {
                "use": "fields",
                "relaxation": f"{before}relaxation",
                **defects,
                **({"first": first} if first else {}),
                "step": step,
                "stride": stride,
                "voxel_size_nm": work_size,
                "output": f"{before}field",
                **_cut(field_box),
            },
        ]

    stages += drawn("", "rough") + matched("rough", "rough_", "", _SEARCH)
    stages += drawn("rough_field", "near") + matched("near", "", "rough_field", _NEAR)
    if has_defects:
        stages.append(defects_through("field", "defects"))
    stages += [
        {
            "use": "warp",
            "image": shown if stack.chatter_in_image else "loose",
            **poses,
            "field": "field",
            "field_voxel_nm": field_size,
            **held(0),
            "interpolation": stack.interpolation,
            "voxel_size_nm": fine_size,
            "output": "image",
            **_cut(fine),
        },
        {
            "use": "downsample",
            "layer": "image",
            "output": "image/pyramid",
            "mips": mips,
            **_cut(fine),
        },
    ]
    stages += mask_stages(stack, has_defects=has_defects)
    return layers, stages


def _damped(
    chatter: tuple[float, float, float], box: Bbox, size: list[float], mip: int, mips: int
) -> list[dict[str, Any]]:
    """Return what damps bands in the sections at a mip, and makes the mips above."""
    orientation, shortest, longest = chatter
    damped = {
        "use": "chatter",
        "image": "loose",
        "mip": mip,
        "orientation_degrees": orientation,
        "shortest_nm": shortest,
        "longest_nm": longest,
        "voxel_size_nm": size,
        "output": "damped",
        **_cut(box),
    }
    pyramid = {
        "use": "downsample",
        "layer": "damped",
        "output": "damped/pyramid",
        "mips": mips - mip,
        **_cut(box),
    }
    return [damped, pyramid]


def _known_defects(
    stack: LooseStack, image: list[dict[str, Any]], work: int
) -> list[dict[str, Any]]:
    """Return what copies a mask of defects, as far as the mip that patches are matched at.

    Takes the stages that copy the sections and make their pyramid.
    """
    mip = stack.defect_mip
    # Whatever is marked becomes 255, so that no average over pixels loses it.
    copied, pyramid = (
        {
            **image[0],
            "source": "defect_source",
            "output": "loose_defects",
            "intensity_range": [0.0, 1.0],
        },
        {**image[1], "layer": "loose_defects", "output": "loose_defects/pyramid"},
    )
    if stack.defect_shift is not None:
        copied["shift"] = list(stack.defect_shift)
    if mip:
        factor = Vec3(2 ** abs(mip), 2 ** abs(mip), 1)
        box = stack.bounds.coarser(factor) if mip > 0 else stack.bounds.finer(factor)
        x, y, z = stack.voxel_size_nm
        copied |= {"voxel_size_nm": [x * 2.0**mip, y * 2.0**mip, z], **_cut(box)}
        pyramid |= {"mips": work - mip, **_cut(box)}
    return [copied, pyramid] if work > mip or not mip else [copied]


def mask_stages(stack: LooseStack, *, has_defects: bool) -> list[dict[str, Any]]:
    """Return maps of misalignment at two resolutions, and the two masks.

    They are made of the layer ``image`` and of ``defects``, where these are known.
    """
    work = work_mip(stack.voxel_size_nm)
    x, y, z = stack.voxel_size_nm
    wide = 2**work * _MAP_PIXELS
    defects = {"defects": "defects", "defect_block": 2**work} if has_defects else {}
    maps = stack.aligned.coarser(Vec3(wide, wide, 1))
    stages: list[dict[str, Any]] = []
    names = ("misalignments", "coarse_misalignments")
    for mip, name in zip((work + 1, work + 2), names, strict=True):
        stages.append(
            {
                "use": "misalignments",
                "image": "image",
                "mip": mip,
                "block": wide // 2**mip,
                "around": 3,
                "voxel_size_nm": [x * 2**mip, y * 2**mip, z],
                "output": name,
                **_cut(maps),
            }
        )
    if stack.left_out:
        stages.append(
            {
                "use": "left_out",
                "image": "image",
                "mip": work,
                **({"defects": "defects"} if has_defects else {}),
                "sections": list(stack.left_out),
                "output": "left_out",
                **_cut(stack.aligned.coarser(Vec3(2**work, 2**work, 1))),
            }
        )
        defects = {"defects": "left_out", "defect_block": 2**work}
    stages += [
        {
            "use": "segmentation_masks",
            "image": "image",
            "kind": kind,
            **defects,
            **{name: name for name in names},
            "block": wide,
            "coarse_block": wide,
            "output": f"{kind}_mask",
            **_cut(stack.aligned),
        }
        for kind in ("input", "output")
    ]
    return stages


def _cut(box: Bbox, extent: int = _CHUNK, z: int = 1) -> dict[str, Any]:
    """Cut a box into chunks of whole sections, or of squares of them."""
    across = [max(_STORAGE, min(extent, -(-n // _STORAGE) * _STORAGE)) for n in box.shape]
    return {
        "bounds": {"start": list(box.start), "stop": list(box.stop)},
        "chunk": [across[0], across[1], z],
        "storage_chunk": [_STORAGE, _STORAGE, z],
    }


def _plain(form: dict[str, Any]) -> dict[str, Any]:
    """Leave out what a stage that writes records has no use for."""
    return {k: v for k, v in form.items() if k != "storage_chunk"}


def _nodes(form: dict[str, Any], z: int = 1) -> dict[str, Any]:
    """Keep many sections of a coarse grid in a chunk."""
    x, y, _ = form["chunk"]
    return {**form, "chunk": [x, y, z], "storage_chunk": [x, y, z]}
