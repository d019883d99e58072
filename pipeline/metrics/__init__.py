"""Scores of segmentations and of masks against the truth."""

from pipeline.metrics.masks import CremiScores, VoxelScores, cremi_scores, voxel_scores
from pipeline.metrics.overlap import (
    ContingencyTable,
    RandScore,
    adapted_rand_error,
    contingency,
    merge,
    variation_of_information,
)
from pipeline.metrics.run_length import (
    RunLength,
    Skeleton,
    expected_run_length,
)
from pipeline.metrics.scores import Offender, Scores, scores

__all__ = [
    "ContingencyTable",
    "CremiScores",
    "Offender",
    "RandScore",
    "RunLength",
    "Scores",
    "Skeleton",
    "VoxelScores",
    "adapted_rand_error",
    "contingency",
    "cremi_scores",
    "expected_run_length",
    "merge",
    "scores",
    "variation_of_information",
    "voxel_scores",
]
