"""Every stage there is, by name."""

from pipeline.stages.affinities import Affinities
from pipeline.stages.agglomeration import Agglomeration, SegmentTable
from pipeline.stages.base import Stage
from pipeline.stages.chatter import Chatter
from pipeline.stages.closures import Closures
from pipeline.stages.components import (
    ComponentExtents,
    ComponentGraphs,
    ComponentPieces,
    Components,
    ComponentTable,
)
from pipeline.stages.defects import Defects
from pipeline.stages.downsample import Downsample
from pipeline.stages.embeddings import Embeddings
from pipeline.stages.flows import Fields, Flows, Relaxation
from pipeline.stages.image_quality import ImageQuality
from pipeline.stages.ingest import Ingest
from pipeline.stages.left_out import LeftOut
from pipeline.stages.masks import Masks
from pipeline.stages.meshes import MeshFragments, SurfaceMeshes
from pipeline.stages.misalignment import Misalignments, SegmentationMasks
from pipeline.stages.overlaps import Overlaps
from pipeline.stages.partners import ContactPartners, NetPartners
from pipeline.stages.region_graph import RegionGraphs
from pipeline.stages.relabel import Relabel
from pipeline.stages.seams import Joined, JoinedPoses, Seam, SeamFields, SeamShifts
from pipeline.stages.sections import SectionMatches, SectionPoses
from pipeline.stages.semantic import Semantic
from pipeline.stages.skeletons import CenterlineSkeletons, SkeletonFragments
from pipeline.stages.supervoxels import BasinGraphs, Basins, SupervoxelTable
from pipeline.stages.synapses import (
    Annotations,
    Connectome,
    SynapseCells,
    Synapses,
    SynapseSegments,
)
from pipeline.stages.warp import Warp

STAGES: dict[str, type[Stage]] = {
    "ingest": Ingest,
    "defects": Defects,
    "closures": Closures,
    "chatter": Chatter,
    "section_matches": SectionMatches,
    "section_poses": SectionPoses,
    "embeddings": Embeddings,
    "flows": Flows,
    "relaxation": Relaxation,
    "fields": Fields,
    "warp": Warp,
    "misalignments": Misalignments,
    "left_out": LeftOut,
    "segmentation_masks": SegmentationMasks,
    "seam_shifts": SeamShifts,
    "seam": Seam,
    "seam_fields": SeamFields,
    "joined_poses": JoinedPoses,
    "joined": Joined,
    "affinities": Affinities,
    "masks": Masks,
    "semantic": Semantic,
    "basins": Basins,
    "basin_graph": BasinGraphs,
    "supervoxel_table": SupervoxelTable,
    "relabel": Relabel,
    "region_graph": RegionGraphs,
    "agglomeration": Agglomeration,
    "segment_table": SegmentTable,
    "downsample": Downsample,
    "mesh_fragments": MeshFragments,
    "meshes": SurfaceMeshes,
    "skeleton_fragments": SkeletonFragments,
    "skeletons": CenterlineSkeletons,
    "overlaps": Overlaps,
    "image_quality": ImageQuality,
    "component_pieces": ComponentPieces,
    "component_graph": ComponentGraphs,
    "component_table": ComponentTable,
    "component_extents": ComponentExtents,
    "components": Components,
    "contact_partners": ContactPartners,
    "net_partners": NetPartners,
    "synapse_segments": SynapseSegments,
    "synapses": Synapses,
    "connectome": Connectome,
    "synapse_cells": SynapseCells,
    "annotations": Annotations,
}
"""The table of stages: what ``use`` may say in a recipe."""
