"""Who is before and behind 37 annotated synapses of cortex: by contact, and by a net.

The truth says where a density is and which two labels it joins, and no voxel of a cleft:
the cleft that a net is shown is what is dark around that point, whatever the labels.

``python benchmarks/partners.py contact``; ``prepare`` makes what a net learns from, each
half of the block apart, and ``score`` holds a net against the half that it did not see.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import h5py
import numpy as np
import typer
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, label
from typer import Option

from pipeline.geometry import Bbox, Vec3
from pipeline.kernels.partners import (
    Assignment,
    Surroundings,
    by_contact,
    by_means,
    sample_centres,
    surroundings,
)
from pipeline.phantom import Phantom

if TYPE_CHECKING:
    from pipeline.nets.model import Model

BLOCK, TRUTH = "ac3_x0_512.h5", "ac3_x0_512_synapses.json"
VOXEL = (6.0, 6.0, 30.0)
REACH_NM = 40.0
NEAR_NM, AROUND_NM = 130.0, 400.0
"""A cleft lies within the first, and is darker than most of the second."""
CROP = Vec3(150, 150, 32)
AROUND = Vec3(130, 130, 30)
MIDDLE = 256
"""Regions are the two halves of the block along x."""

Data = Annotated[Path, Option(envvar="EM_DATA", help=f"Folder that holds {BLOCK}.")]
app = typer.Typer(no_args_is_help=True)


@dataclass(frozen=True)
class Block:
    """The annotated block.

    Parameters
    ----------
    image : uint8 array, (x, y, z)
        Grey levels.
    labels : uint64 array, (x, y, z)
        Cells; 0 is membrane.
    synapses : list of dict
        What is annotated.
    """

    image: NDArray[np.uint8]
    labels: NDArray[np.uint64]
    synapses: list[dict[str, Any]]

    @classmethod
    def load(cls, data: Path) -> Block:
        """Read it."""
        with h5py.File(data / BLOCK) as file:
            image = np.asfortranarray(file["raw"][:].T)
            labels = np.asfortranarray(file["labels"][:].T.astype(np.uint64))
        return cls(image, labels, json.loads((data / TRUTH).read_text())["synapses"])

    def around(self, at: Vec3) -> tuple[Block, Vec3]:
        """Return what lies around a point, with room for patches, and where it begins."""
        box = Bbox(at - AROUND, at + AROUND).intersection(Bbox.of_shape(self.image.shape))
        image, labels = (
            np.asfortranarray(a[box.slices()]) for a in (self.image, self.labels)
        )
        return Block(image, labels, []), box.start


def place_of(synapse: dict[str, Any]) -> Vec3:
    """Return the voxel of the density."""
    return Vec3.of(synapse["psd_centroid_zyx"][::-1])


def attention(image: NDArray[np.uint8], at: Vec3) -> NDArray[np.bool_]:
    """Mark what is dark around a point and hangs together, nearest to the point.

    Parameters
    ----------
    image : uint8 array, (x, y, z)
        Grey levels.
    at : Vec3
        The point.
    """
    size = np.array(VOXEL)
    half = Vec3.of([int(v) for v in AROUND_NM // size])
    box = Bbox(at - half, at + half + 1).intersection(Bbox.of_shape(image.shape))
    # Wide enough that vesicles, dark rings of 40 nm, give way to what is dark throughout.
    smooth = gaussian_filter(image[box.slices()].astype(np.float32), (2.5, 2.5, 0))
    # Sections differ in brightness.
    limit = np.percentile(smooth, 10, axis=(0, 1))
    away = [
        (np.arange(a, b) - c) * s
        for a, b, c, s in zip(*box_sides(box), at, size, strict=True)
    ]
    distance = np.sqrt(away[0][:, None, None] ** 2 + away[1][:, None] ** 2 + away[2] ** 2)
    dark = (distance <= NEAR_NM) & (smooth <= limit)
    parts, n = label(dark, structure=np.ones((3, 3, 3)))
    found = np.zeros(image.shape, bool)
    if n:
        # Many voxels near the point; a speck that is nearest does not do.
        weight = np.bincount(parts[dark], np.exp(-distance[dark] / 60.0))
        weight[0] = 0
        found[box.slices()] = parts == int(weight.argmax())
    return found


def box_sides(box: Bbox) -> tuple[Vec3, Vec3]:
    """Return the corners of a box."""
    return box.start, box.stop


def seen(block: Block, cleft: NDArray[np.bool_]) -> Surroundings | None:
    """Cut out a cleft and the cells around it."""
    place = np.argwhere(cleft)
    if not len(place):
        return None
    extent = Bbox(Vec3.of(place.min(0).tolist()), Vec3.of((place.max(0) + 1).tolist()))
    return surroundings(
        cleft.astype(np.uint64, order="F"),
        block.labels,
        1,
        window=Bbox.of_shape(cleft.shape),
        origin=Vec3(0, 0, 0),
        extent=extent,
        reach_nm=REACH_NM,
        voxel_size_nm=VOXEL,
    )


def told(
    synapses: list[dict[str, Any]], assigned: list[Assignment], as_json: bool, name: str
) -> None:
    """Print how many are right, in order and whatever the order."""
    rows = []
    for kind in ("ok", "doubtful", "all"):
        chosen = [
            (s, a)
            for s, a in zip(synapses, assigned, strict=True)
            if kind in ("all", s["visual_check"])
        ]
        both = sum((a.pre, a.post) == (s["pre_label"], s["post_label"]) for s, a in chosen)
        pair = sum({a.pre, a.post} == {s["pre_label"], s["post_label"]} for s, a in chosen)
        rows.append({"check": kind, "n": len(chosen), "right": both, "pair": pair})
    if as_json:
        print(json.dumps({"partners": name, "scores": rows}, indent=1))
        return
    for row in rows:
        print(
            f"{name}: of {row['n']} synapses ({row['check']}) {row['right']} have the "
            f"right partners, {row['pair']} the right pair"
        )


@app.command()
def contact(data: Data, as_json: Annotated[bool, Option("--json")] = False) -> None:
    """Assign by contact alone."""
    block = Block.load(data)
    assigned = []
    for synapse in block.synapses:
        here, start = block.around(place_of(synapse))
        found = seen(here, attention(here.image, place_of(synapse) - start))
        assigned.append(Assignment() if found is None else by_contact(found))
    told(block.synapses, assigned, as_json, "contact")


@app.command()
def picture(data: Data, to: Annotated[Path, Option(help="PNG.")]) -> None:
    """Draw the clefts that were derived, to be checked by eye."""
    from PIL import Image

    block, tiles = Block.load(data), []
    for synapse in block.synapses:
        at, half = place_of(synapse), Vec3(50, 50, 0)
        low = (at - half).maximum(Vec3(0, 0, 0)).minimum(Vec3(412, 924, 99))
        box = Bbox(low, low + Vec3(100, 100, 1))
        grey = np.stack([block.image[box.slices()][..., 0].T] * 3, axis=2)
        marked = grey.copy()
        near, start = block.around(at)
        cleft = np.zeros(block.image.shape, bool)
        cleft[Bbox.of_shape(near.image.shape, start).slices()] = attention(
            near.image, at - start
        )
        marked[cleft[box.slices()][..., 0].T] = [255, 60, 60]
        here = block.labels[box.slices()][..., 0].T
        marked[here == synapse["pre_label"], 2] = 255
        marked[here == synapse["post_label"], 1] = 255
        tiles.append(np.concatenate([grey, marked], axis=1))
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % 4)
    rows = [np.concatenate(tiles[i : i + 4], axis=1) for i in range(0, len(tiles), 4)]
    Image.fromarray(np.concatenate(rows)).save(to)


@app.command()
def prepare(
    data: Data,
    to: Annotated[Path, Option(help="Folder for HDF5 and train.toml.")],
    region: Annotated[int, Option(help="0 or 1: the half that is learnt from; 2 is both.")],
    head: Annotated[Path, Option(help="TOML that the volumes are added to.")],
    phantoms: Annotated[int, Option(help="Synapses of the phantom beside.")] = 24,
) -> None:
    """Write crops around synapses of a region, and of the phantom, for em train."""
    to.mkdir(parents=True, exist_ok=True)
    block, lines = Block.load(data), [head.read_text()]
    bounds = Bbox.of_shape(block.image.shape)
    if region < 2:
        low, high = (0, MIDDLE) if region == 0 else (MIDDLE, bounds.stop.x)
        bounds = Bbox(Vec3(low, 0, 0), Vec3(high, bounds.stop.y, bounds.stop.z))
    n = 0
    for number, synapse in enumerate(block.synapses):
        at = place_of(synapse)
        if synapse["visual_check"] != "ok" or not bounds.contains(Bbox(at, at + 1)):
            continue
        around, start = block.around(at)
        cleft = attention(around.image, at - start)
        put_crop(to / f"s{number}.h5", block, synapse, bounds, cleft, start)
        lines.append(volume_of(f"s{number}", 1.0))
        n += 1
    names = put_phantoms(to, phantoms)
    lines += [volume_of(name, 0.5 * max(n, 1) / len(names)) for name in names]
    (to / "train.toml").write_text("\n".join(lines))
    print(f"{n} synapses of cortex and {len(names)} of the phantom in {to}")


def put_crop(
    path: Path,
    block: Block,
    synapse: dict[str, Any],
    bounds: Bbox,
    cleft: NDArray[np.bool_],
    start: Vec3,
) -> None:
    """Write what a net of partners learns from one synapse.

    Parameters
    ----------
    path : Path
        HDF5.
    block : Block
        The annotated block.
    synapse : dict
        One of its synapses.
    bounds : Bbox
        What may be learnt from [voxel].
    cleft : bool array, (x, y, z)
        The cleft that the net is shown.
    start : Vec3
        First voxel of it.
    """
    crop = Bbox.of_shape(CROP, place_of(synapse) - CROP // 2)
    low = crop.start.maximum(bounds.start).minimum(bounds.stop - CROP)
    box = Bbox(low, low + CROP)
    shown = np.zeros(CROP.astuple(), bool)
    common = box.intersection(Bbox.of_shape(cleft.shape, start))
    shown[common.slices(low)] = cleft[common.slices(start)]
    here = block.labels[box.slices()]
    pre, post = (here == synapse[f"{side}_label"] for side in ("pre", "post"))
    _put(path, block.image[box.slices()], shown, pre, post)


def put_phantoms(to: Path, count: int) -> list[str]:
    """Write synapses of the phantom likewise; return the names of the files."""
    phantom, names = Phantom(seed=11, synapses=0.95), []
    for number, one in enumerate(phantom.synapses_in((0, 0, 0), (500, 500, 100))[:count]):
        low = Vec3.of([int(c) for c in one.centre]) - CROP // 2
        corners = (low.astuple(), (low + CROP).astuple())
        labels = phantom.labels(*corners)
        cleft = phantom.clefts(*corners) == one.id
        pre, post = labels == one.pre, labels == one.post
        names.append(f"p{number}")
        _put(to / f"{names[-1]}.h5", phantom.image(*corners), cleft, pre, post)
    return names


def _put(
    path: Path,
    image: NDArray[Any],
    cleft: NDArray[Any],
    pre: NDArray[Any],
    post: NDArray[Any],
) -> None:
    with h5py.File(path, "w") as file:
        for name, array in {"raw": image, "cleft": cleft, "pre": pre, "post": post}.items():
            file[name] = np.ascontiguousarray(np.asarray(array, np.uint8).T)


def volume_of(name: str, weight: float) -> str:
    """Return the lines of train.toml for a file of those."""
    return f"""
[[volume]]
name = "{name}"
inputs = {{ image = "{name}.h5:raw", cleft = "{name}.h5:cleft" }}
truth = {{ pre = "{name}.h5:pre", post = "{name}.h5:post" }}
voxel_size_nm = [6.0, 6.0, 30.0]
train = [0, {CROP.z}]
weight = {weight:.3f}
"""


@app.command()
def score(
    data: Data,
    model: Annotated[Path, Option(help="Folder of the model.")],
    region: Annotated[int, Option(help="0 or 1: the half that is scored; 2 is both.")],
    as_json: Annotated[bool, Option("--json")] = False,
) -> None:
    """Assign by a net, in a region that it did not learn from."""
    from pipeline.nets.model import load_model

    block, net = Block.load(data), load_model(model)
    chosen, assigned = [], []
    for synapse in block.synapses:
        at = place_of(synapse)
        if region < 2 and (at.x >= MIDDLE) != bool(region):
            continue
        here, start = block.around(at)
        found = seen(here, attention(here.image, at - start))
        chosen.append(synapse)
        assigned.append(
            Assignment()
            if found is None
            else by_means(found.candidates, outputs_of(net, here, found))
        )
    told(chosen, assigned, as_json, model.name)


def outputs_of(
    net: Model, here: Block, found: Surroundings
) -> list[tuple[NDArray[np.uint64], NDArray[np.float32]]]:
    """Return labels around a cleft and what a net says of them, as the stage has it.

    Parameters
    ----------
    net : Model
        Of partners.
    here : Block
        What the cleft lies in.
    found : Surroundings
        The cleft, in voxels of `here`.
    """
    patch, outputs = net.config.inference.patch, []
    for centre in sample_centres(found, patch):
        box = Bbox.of_shape(patch, centre - patch // 2)
        inputs = np.zeros((*patch, 2), np.float32)
        ids = np.zeros(patch.astuple(), np.uint64, order="F")
        common = box.intersection(Bbox.of_shape(here.image.shape))
        inputs[(*common.slices(box.start), 0)] = here.image[common.slices()]
        ids[common.slices(box.start)] = here.labels[common.slices()]
        common = box.intersection(found.box)
        inputs[(*common.slices(box.start), 1)] = found.cleft[common.slices(found.box.start)]
        outputs.append((ids, net.probabilities(inputs)))
    return outputs


if __name__ == "__main__":
    app()
