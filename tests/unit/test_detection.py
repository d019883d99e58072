"""That clefts are derived where two cells touch, and that what is found is scored so."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
SHAPE = (300, 220, 60)
AT = (150, 100, 30)


@pytest.fixture(scope="module", autouse=True)
def _beside():
    """Let modules of the folder import each other, as a script there does."""
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))


def synapse(at=AT, check="ok"):
    return {
        "psd_centroid_zyx": [*at[::-1]],
        "pre_label": 7,
        "post_label": 9,
        "visual_check": check,
    }


@pytest.fixture
def block():
    """Two cells that touch along a plane, x = 150, with 4 voxels of membrane between."""
    from partners import Block

    labels = np.zeros(SHAPE, np.uint64, order="F")
    labels[:148], labels[152:] = 7, 9
    image = np.full(SHAPE, 180, np.uint8, order="F")
    image[146:154] = 60
    return Block(image, labels, [synapse()])


def test_a_cleft_is_a_disc_between_its_cells(block):
    from derived_clefts import CLEFT, NONE, UNKNOWN, derived

    # The point is off, as annotated ones are; the disc is not.
    box, marks = derived(block, synapse((158, 100, 30)))
    place = np.argwhere(marks == CLEFT) + box.start.astuple()
    assert set(place[:, 0]) <= set(range(145, 156))
    np.testing.assert_allclose(place.mean(axis=0), (150, 100, 30), atol=2)
    radius = np.hypot((place[:, 1] - 100) * 6, (place[:, 2] - 30) * 30).max()
    assert 150 <= radius <= 181
    # Around it, between the cells, nothing is known; within the cells there is no cleft.
    low = box.start
    assert marks[150 - low.x, 145 - low.y, 30 - low.z] == UNKNOWN
    assert marks[150 - low.x, 190 - low.y, 30 - low.z] == NONE
    assert (marks[: 140 - low.x] == NONE).all()


def test_what_was_doubted_is_open(block):
    from derived_clefts import CLEFT, NONE, UNKNOWN, derived

    box, marks = derived(block, synapse(check="doubtful"))
    at = tuple(a - s for a, s in zip(AT, box.start, strict=True))
    assert marks[at] == UNKNOWN
    assert marks[at[0] + 45, at[1], at[2]] == NONE
    assert not (marks == CLEFT).any()


def test_outside_the_coverage_all_is_open_but_clefts(block):
    from derived_clefts import CLEFT, NONE, UNKNOWN, marked

    marks = marked(block, np.zeros(SHAPE, bool))
    assert not (marks == NONE).any()
    assert (marks == CLEFT).sum() > 1000
    assert marks[0, 0, 0] == UNKNOWN


def test_clefts_are_named_and_small_ones_dropped():
    from detection import components

    said = np.zeros((40, 40, 20), np.uint8, order="F")
    said[2:4, 2:4, 2:4] = 127
    said[10:12, 10:12, 10:12] = 128
    said[20:30, 20:30, 5:10] = 255
    clefts, middles = components(said, 9)
    assert np.unique(clefts).tolist() == [0, 1]
    assert (clefts == 1).sum() == 500
    np.testing.assert_allclose(middles, [[24.5, 24.5, 7]])
    assert len(components(said, 8)[1]) == 2


def test_a_lone_cleft_near_a_face_or_uncovered_is_not_wrong(block):
    from detection import inner_scores, scored

    known = np.ones(SHAPE, bool)
    known[200:] = False
    middles = np.array(
        [
            (153, 100, 31),  # of the synapse
            (150, 130, 34),  # near it too, and there is but one
            (20, 100, 30),  # near a face
            (230, 100, 30),  # where nothing was annotated
        ],
        float,
    )
    found = scored(block, middles, known)
    assert (found.hits, found.false_positives, found.ignored) == (1, 1, 2)
    assert (found.found_truths, found.false_negatives) == (1, 0)
    assert scored(block, middles, known, faces=False).false_positives == 2
    assert inner_scores(block, middles, known) == found
    far = scored(block, middles[2:], known)
    assert (far.hits, far.false_positives, far.false_negatives) == (0, 0, 1)
    assert (far.precision, far.recall) == (0, 0)


def test_a_synapse_near_a_face_does_not_count_far_from_faces(block):
    from dataclasses import replace

    from detection import inner_scores

    known = np.ones(SHAPE, bool)
    near = replace(block, synapses=[synapse(), synapse((150, 100, 3))])
    middles = np.array([(150, 100, 4)], float)
    found = inner_scores(near, middles, known)
    assert (found.hits, found.false_positives, found.false_negatives) == (0, 0, 1)


def test_a_synapse_has_both_partners_and_a_pair_has_one_nearby(block):
    from detection import Found, middles_of, partners_of, synapses_of

    from pipeline.kernels.partners import Assignment

    right, wrong, alone = Assignment(7, 9), Assignment(9, 7), Assignment(0, 9)
    found = [
        Found((150.0, 90.0, 30.0), 300, contact=wrong, net=right, order=right),
        Found((150.0, 110.0, 30.0), 100, contact=wrong, net=right, order=right),
        Found((20.0, 110.0, 30.0), 100, contact=right, net=wrong, order=alone),
    ]
    rows = synapses_of(found, "order")
    np.testing.assert_allclose(middles_of(rows), [[150, 95, 30]])
    assert rows.clefts.tolist() == [2]
    assert partners_of(block, rows) == {"n": 1, "right": 1, "pair": 1, "accuracy": 1.0}
    told = partners_of(block, synapses_of(found, "contact"))
    assert told == {"n": 1, "right": 0, "pair": 1, "accuracy": 0.0}


def test_without_data_the_targets_are_missed():
    told = subprocess.run(
        [sys.executable, FOLDER / "detection.py", "--json", "--check"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "EM_DATA": "", "COLUMNS": "200"},
    )
    assert told.returncode == 1
    verdicts = {v["figure"]: v["is_met"] for v in json.loads(told.stdout)["targets"]}
    assert verdicts == {"f1": False, "partner_accuracy": False}
