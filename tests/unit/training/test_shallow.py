"""Patches of few sections, in bfloat16, on whatever processor this is."""

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np

MODEL = """
name = "shallow"
voxel_size_nm = [4.0, 4.0, 40.0]
weights = "weights.safetensors"

[architecture]
name = "rsunet"
widths = [32, 32]

[normalisation]
mean = 128.0
std = 50.0

[inference]
patch = [64, 64, 4]
overlap = [0, 0, 0]
precision = "bfloat16"

[[head]]
name = "cleft"
kind = "masks"
channels = ["cleft"]
"""
TRAIN = """
patch = [64, 64, 4]

[[volume]]
name = "noise"
inputs = { image = "noise.h5:image" }
truth = { cleft = "noise.h5:cleft" }
voxel_size_nm = [4.0, 4.0, 40.0]
train = [0, 4]

[optimisation]
steps = 3
"""


def test_gradients_of_few_sections_do_not_leave_their_memory(tmp_path):
    """Not turned, this ends in "double free or corruption" on processors with AMX."""
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "noise.h5", "w") as file:
        file["image"] = rng.integers(0, 256, (4, 96, 96), dtype=np.uint8)
        file["cleft"] = (rng.random((4, 96, 96)) > 0.8).astype(np.uint8)
    (tmp_path / "model.toml").write_text(MODEL)
    (tmp_path / "train.toml").write_text(TRAIN)
    em = Path(sys.executable).with_name("em")
    command = [em, "train", tmp_path, "--folder", tmp_path / "run", "--data", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run" / "checkpoint.pt").exists()
