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
from pipeline.metrics.synapses import (
    DetectionScores,
    NeuralReconstructionIntegrity,
    Sites,
    cleft_scores,
    neural_reconstruction_integrity,
    paired_points,
    partner_scores,
    point_scores,
)

__all__ = [
    "ContingencyTable",
    "CremiScores",
    "DetectionScores",
    "NeuralReconstructionIntegrity",
    "Offender",
    "RandScore",
    "RunLength",
    "Scores",
    "Sites",
    "Skeleton",
    "VoxelScores",
    "adapted_rand_error",
    "cleft_scores",
    "contingency",
    "cremi_scores",
    "expected_run_length",
    "merge",
    "neural_reconstruction_integrity",
    "paired_points",
    "partner_scores",
    "point_scores",
    "scores",
    "variation_of_information",
    "voxel_scores",
]
