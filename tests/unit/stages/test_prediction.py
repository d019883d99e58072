"""What stages make of the heads of a net, of masks, and of what a run settles."""

import hashlib
import sys

import numpy as np
import pytest
import torch

from pipeline.errors import BackendError, ModelError
from pipeline.geometry import Bbox, ChunkKey, Vec3
from pipeline.nets import ModelConfig, backends
from pipeline.nets.inference import Runner, predict, quantise
from pipeline.nets.model import build_net, load_model, pack_weights
from pipeline.specs import VolumeSpec
from pipeline.stages import STAGES, prediction

TOML = """
name = "tiny"
voxel_size_nm = [8.0, 8.0, 40.0]
sha256 = "{sha256}"
architecture = {{ widths = [2], fold = [2, 2, 1] }}
normalisation = {{ mean = 128.0, std = 50.0 }}
inference = {{ patch = [12, 12, 6], overlap = [4, 4, 2] }}

[[head]]
name = "affinities"
kind = "affinities"
offsets = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]

[[head]]
name = "wrappings"
kind = "masks"
channels = ["vessel wall", "myelin"]

[[head]]
name = "semantic"
kind = "classes"
channels = ["glia", "unknown", "soma"]

[[head]]
name = "embedding"
kind = "embedding"
channels = ["a", "b"]
"""

BOUNDS = Bbox.of_shape((24, 20, 10), Vec3(3, 4, 5))
KEY = ChunkKey(0, 1, 0, 0)
CORE = (slice(12, 24), slice(None), slice(None))


@pytest.fixture
def model(tmp_path):
    (tmp_path / "model.toml").write_text(TOML.format(sha256=""))
    torch.manual_seed(2)
    content = pack_weights(build_net(ModelConfig.load(tmp_path)).state_dict())
    (tmp_path / "weights.safetensors").write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    (tmp_path / "model.toml").write_text(TOML.format(sha256=sha256))
    return tmp_path


@pytest.fixture
def image():
    rng = np.random.default_rng(3)
    return np.asfortranarray(rng.integers(1, 255, BOUNDS.shape.astuple(), np.uint8))


def stage(use, model, **fields):
    fixed = {"bounds": BOUNDS, "chunk": Vec3(12, 20, 10), "storage_chunk": Vec3(12, 20, 10)}
    return STAGES[use](
        **{"image": "i", "model": str(model), "output": "o", "backend": "torch"}
        | fixed
        | fields
    )


def processed(s, volumes):
    task = s.task(KEY)
    return s.process(
        task,
        **{
            name: volumes[name][read.box.slices(BOUNDS.start)]
            for name, read in s.reads(task).items()
        },
    )


def said(model, image, head):
    runner = Runner(load_model(model), head=head)
    return predict(runner, image, read=BOUNDS, core=BOUNDS, bounds=BOUNDS)[CORE]


def test_masks_are_one_channel(model, image):
    exact = said(model, image, "wrappings")
    for channel, name in enumerate(("vessel wall", "myelin")):
        fields = {"head": "wrappings", "channel": name}
        as_bytes = processed(stage("masks", model, **fields), {"image": image})
        np.testing.assert_array_equal(as_bytes, quantise(exact)[..., channel])
        floats = processed(
            stage("masks", model, **fields, dtype="float32"), {"image": image}
        )
        np.testing.assert_array_equal(floats, exact[..., channel])


def test_semantic_labels_are_those_of_the_region_graph(model, image):
    exact = said(model, image, "semantic")
    numbers = np.array([4, 0, 1], np.uint8)  # glia, unknown, soma
    labels = processed(stage("semantic", model), {"image": image})
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, numbers[exact.argmax(axis=3)])
    assert {1, 4} <= set(np.unique(labels))
    least = float(np.median(exact.max(axis=3)))
    unsure = processed(stage("semantic", model, least=least), {"image": image})
    np.testing.assert_array_equal(unsure[exact.max(axis=3) < least], 0)
    np.testing.assert_array_equal(
        unsure[exact.max(axis=3) >= least], labels[exact.max(axis=3) >= least]
    )


def test_embeddings_are_all_channels_of_their_head(model, image):
    exact = said(model, image, "embedding")
    found = processed(stage("embeddings", model), {"image": image})
    assert found.shape[3] == 2
    np.testing.assert_array_equal(found, quantise(exact))


def test_embeddings_of_another_head_are_refused(model):
    (fault,) = stage("embeddings", model, head="wrappings").check({})
    assert "gives masks; take an embedding" in fault


def test_a_model_that_lacks_the_head_is_named(model):
    lacking = stage("embeddings", model, head="x")
    with pytest.raises(ModelError, match=r"has no head x; it gives .*embedding: take one"):
        _ = lacking.head_of_model


def test_how_thick_sections_are_is_nothing_to_a_net_of_sections():
    spec = VolumeSpec(
        dtype="uint8",
        bounds=BOUNDS,
        voxel_size_nm=(12.0, 12.0, 50.0),
        kind_of_values="image",
        storage_chunk=BOUNDS.shape,
    )
    net = stage("embeddings", "embedding-cortex")
    assert not any("was trained at" in fault for fault in net.check({"i": spec}))
    wide = spec.model_copy(update={"voxel_size_nm": (24.0, 24.0, 50.0)})
    assert any("was trained at" in fault for fault in net.check({"i": wide}))


def test_the_image_mask_hides_the_image(model, image):
    mask = np.ones_like(image)
    mask[8:, 9:] = 0
    masked = processed(
        stage("affinities", model, image_mask="m"), {"image": image, "image_mask": mask}
    )
    hidden = processed(stage("affinities", model), {"image": image * mask})
    np.testing.assert_array_equal(masked, hidden)
    assert (masked != processed(stage("affinities", model), {"image": image})).any()


def test_the_output_mask_cuts_the_output_and_changes_nothing_else(model, image):
    plain = processed(stage("affinities", model), {"image": image})
    mask = np.zeros_like(image)
    mask[20:, 3:7, 2:] = 7
    masked = processed(
        stage("affinities", model, output_mask="m"), {"image": image, "output_mask": mask}
    )
    np.testing.assert_array_equal(masked, np.where(mask[CORE][..., None] > 0, plain, 0))
    assert masked.any()


@pytest.mark.parametrize("use", ["affinities", "masks", "semantic"])
def test_nothing_is_loaded_for_a_blank_chunk(use, model, image, monkeypatch):
    def no_runner(*args):
        raise AssertionError("a net was opened")

    monkeypatch.setattr(prediction, "_runner", no_runner)
    fields = {"head": "wrappings", "channel": "myelin"} if use == "masks" else {}
    blank, one = np.zeros_like(image), np.ones_like(image)
    s = stage(use, model, image_mask="m", output_mask="m", **fields)
    for volumes in (
        {"image": blank, "image_mask": one, "output_mask": one},
        {"image": image, "image_mask": blank, "output_mask": one},
        {"image": image, "image_mask": one, "output_mask": blank},
    ):
        out = processed(s, volumes)
        assert not out.any()
        assert out.shape[:3] == (12, 20, 10)
        assert out.dtype == np.uint8


def test_patches_that_nobody_wants_are_not_computed(model, image):
    mask = np.zeros_like(image)
    mask[23, 19, 9] = 1
    model_ = load_model(model)
    calls = []
    model_.net.register_forward_hook(lambda *_: calls.append(1))
    runner = Runner(model_)
    predict(runner, image, read=BOUNDS, core=BOUNDS, bounds=BOUNDS, wanted=mask)
    assert len(calls) == 1
    predict(runner, image, read=BOUNDS, core=BOUNDS, bounds=BOUNDS)
    assert len(calls) > 10


def test_a_run_settles_what_computes(model, monkeypatch):
    open_ = stage("affinities", model, backend="auto")
    pinned = open_.pinned()
    assert (pinned.backend, pinned.device) == ("openvino", "cpu")
    monkeypatch.setattr(backends, "has_openvino", lambda: False)
    assert pinned.pinned() == pinned, "what is settled stays"
    without = open_.pinned()
    assert without.backend == "torch"
    assert without.digest != pinned.digest
    with pytest.raises(BackendError, match="does not run on cuda"):
        stage("affinities", model, backend="openvino", device="cuda").pinned()


def test_a_worker_without_a_gpu_says_so(model, image, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    prediction._runner.cache_clear()
    s = stage("affinities", model, device="cuda")
    with pytest.raises(BackendError, match="no GPU that torch can use"):
        processed(s, {"image": image})


def spec(**fields):
    return VolumeSpec(
        **{
            "dtype": "uint8",
            "bounds": BOUNDS,
            "voxel_size_nm": (8.0, 8.0, 40.0),
            "kind_of_values": "image",
        }
        | fields
    )


@pytest.mark.parametrize(
    ("use", "fields", "says"),
    [
        (
            "masks",
            {"head": "semantic"},
            "head semantic .* gives classes; take one of masks",
        ),
        ("masks", {"head": "wrappings"}, "has channels vessel wall, myelin, not ''"),
        ("masks", {"head": "wrappings", "channel": "x"}, "has channels .* not 'x'"),
        (
            "masks",
            {"head": "x"},
            "gives affinities, wrappings, semantic, embedding and no head x",
        ),
        ("semantic", {"head": "wrappings"}, "gives masks; take one of classes"),
        ("affinities", {"output_mask": "wide"}, "wide is uint16"),
        ("affinities", {"image_mask": "short"}, "are not inside short"),
    ],
)
def test_what_is_wrong_is_told_before_it_runs(model, use, fields, says):
    import re

    specs = {
        "i": spec(),
        "wide": spec(dtype="uint16"),
        "short": spec(bounds=Bbox.of_shape((3, 3, 3), BOUNDS.start)),
    }
    faults = stage(use, model, **fields).check(specs)
    assert any(re.search(says, fault) for fault in faults), faults


def test_classes_that_nobody_knows_and_patches_that_are_not_square(model):
    path = model / "model.toml"
    text = path.read_text()
    path.write_text(text.replace('"soma"', '"liver"').replace("[12, 12, 6]", "[12, 16, 6]"))
    prediction._config.cache_clear()
    (fault,) = stage("semantic", model).check({"i": spec()})
    assert "has classes liver; there are unknown, soma" in fault
    (fault,) = stage("affinities", model, turns=8).check({"i": spec()})
    assert "cannot be turned 8 ways" in fault


def test_memory_counts_the_batch_and_what_streams(model):
    def needs(**fields):
        return stage("affinities", model, **fields).memory({"i": spec()})

    assert needs(batch=4) > needs()
    assert needs(turns=8) - needs() >= 2 * 4 * 12 * 20 * 10
    # Patches begin at 0, 8 and 12 along x; the first two touch the first chunk.
    core, read = 12 * 20 * 10, 20 * 20 * 10
    engine = prediction_bytes(model)
    assert needs() == engine + read + 2 * 3 * core


def prediction_bytes(model):
    from pipeline.nets import peak_bytes

    return peak_bytes(ModelConfig.load(model), Vec3(12, 20, 10), width=3)


def test_the_table_of_stages_loads_no_net():
    import subprocess

    code = (
        "import sys, pipeline.stages;"
        "sys.exit(any(m in sys.modules for m in ('torch', 'openvino')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
