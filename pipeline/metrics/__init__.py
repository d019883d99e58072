"""Scores of a segmentation against the truth: overlap, run length, and their summary."""

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
    "Offender",
    "RandScore",
    "RunLength",
    "Scores",
    "Skeleton",
    "adapted_rand_error",
    "contingency",
    "expected_run_length",
    "merge",
    "scores",
    "variation_of_information",
]
