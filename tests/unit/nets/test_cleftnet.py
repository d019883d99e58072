"""Feature augmentors by their definition, and what the ablations leave out."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from pipeline.geometry import Vec3
from pipeline.nets.architectures import CleftNetArchitecture
from pipeline.nets.cleftnet import (
    CleftNet,
    FeatureAugmentor,
    LearnedQuery,
    Resizer,
    attend,
)

PATCH = Vec3(8, 4, 2)


def net(**fields):
    torch.manual_seed(0)
    settings = {"widths": (4, 6, 8), "pool": (Vec3(2, 2, 2), Vec3(2, 1, 1)), **fields}
    return CleftNet(CleftNetArchitecture(name="cleftnet", **settings), PATCH, 1, 2).eval()


def image():
    torch.manual_seed(1)
    return torch.randn(1, 1, PATCH.z, PATCH.y, PATCH.x)


def augmentors(module):
    return [m for m in module.modules() if isinstance(m, FeatureAugmentor)]


def slow_attention(query, key, value):
    """Equation 4, voxel by voxel: Z = V softmax(Kᵀ Q), softmax down each column."""
    q, k, v = (t.reshape(t.shape[0], -1) for t in (query, key, value))
    z = np.zeros((v.shape[0], q.shape[1]))
    for i in range(q.shape[1]):
        answer = np.array([np.dot(k[:, j], q[:, i]) for j in range(k.shape[1])])
        weight = np.exp(answer - answer.max())
        weight /= weight.sum()
        z[:, i] = sum(weight[j] * v[:, j] for j in range(v.shape[1]))
    return z.reshape(v.shape[0], *query.shape[1:])


def test_attention_is_its_definition():
    rng = np.random.default_rng(0)
    query = rng.normal(size=(2, 3, 1, 2, 3))
    key = rng.normal(size=(2, 3, 2, 2, 4))
    value = rng.normal(size=(2, 5, 2, 2, 4))
    found = attend(*(torch.from_numpy(a).float() for a in (query, key, value)))
    for n in range(2):
        expected = slow_attention(query[n], key[n], value[n])
        np.testing.assert_allclose(found[n], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("resize", "extent"),
    [("down", (4, 2, 1)), ("same", (8, 4, 2)), ("up", (16, 8, 4))],
)
def test_an_augmentor_is_its_definition(resize, extent):
    torch.manual_seed(0)
    factor = Vec3(1, 1, 1) if resize == "same" else Vec3(2, 2, 2)
    augmentor = FeatureAugmentor(3, 5, resize, factor, Vec3(*extent))
    x = torch.randn(1, 3, PATCH.z, PATCH.y, PATCH.x)
    residual = {
        "down": lambda: functional.max_pool3d(x, 2),
        "same": lambda: x,
        "up": lambda: functional.interpolate(x, scale_factor=2, mode="trilinear"),
    }[resize]()

    def point(layer, t):
        return torch.einsum("oi,izyx->ozyx", layer.weight[:, :, 0, 0, 0], t)

    query = augmentor.query(x)[0]
    assert query.shape == (5, *reversed(extent))
    with torch.no_grad():
        key, value = point(augmentor.key, x[0]), point(augmentor.value, x[0])
        z = slow_attention(query.numpy(), key.numpy(), value.numpy())
        expected = residual[0] + point(augmentor.project, torch.from_numpy(z).float())
        torch.testing.assert_close(augmentor(x)[0], expected, rtol=1e-4, atol=1e-5)


def test_a_voxel_far_away_reaches_every_output():
    """Global attention: no receptive field ends within the patch."""
    net_, x = net(), image().requires_grad_()
    net_(x)[0, 0, 0, 0, 0].backward()
    assert (x.grad != 0).all()
    without, x = net(query="none", widths=(4, 6), pool=(Vec3(2, 1, 1),)), image()
    x = functional.pad(x, (0, 24)).requires_grad_()
    without(x)[0, 0, 0, 0, 0].backward()
    assert (x.grad[..., -1] == 0).all()


def test_queries_are_free_of_the_input_only_if_learned():
    learned, from_input = augmentors(net())[0], augmentors(net(query="input"))[0]
    a, b = torch.randn(2, 1, 4, PATCH.z, PATCH.y, PATCH.x)
    assert torch.equal(learned.query(a), learned.query(b))
    assert not torch.allclose(from_input.query(a), from_input.query(b))


def test_augmentors_stand_for_every_resizing_and_the_bottom():
    assert len(augmentors(net())) == 2 + 1 + 2
    assert len(augmentors(net(augmented=1))) == 1 + 1 + 1
    assert len(augmentors(net(augmented=2))) == 1
    assert augmentors(net(query="none")) == []
    resizers = [m for m in net(query="none").modules() if isinstance(m, Resizer)]
    assert [r.resize for r in resizers] == ["down", "down", "same", "up", "up"]


def test_learned_queries_are_of_one_patch():
    wide = torch.randn(1, 1, PATCH.z, PATCH.y, 2 * PATCH.x)
    with pytest.raises(ValueError, match=r"queries are of extent \(4, 2, 1\).*\(8, 2, 1\)"):
        net()(wide)
    for query in ("input", "none"):
        assert net(query=query)(wide).shape[2:] == wide.shape[2:]


def test_without_what_attention_adds_the_ablation_is_left():
    full, without = net(), net(query="none")
    shared = {k: v for k, v in full.state_dict().items() if k in without.state_dict()}
    without.load_state_dict(shared)
    assert not torch.allclose(full(image()), without(image()))
    with torch.no_grad():
        for augmentor in augmentors(full):
            augmentor.project.weight.zero_()
    torch.testing.assert_close(full(image()), without(image()))


def test_at_first_no_voxel_is_attended_to_alone():
    torch.manual_seed(0)
    queries = LearnedQuery(64, Vec3(4, 4, 4)).matrix
    assert queries.shape == (64, 64)
    assert 0.7 < queries.norm(dim=0).mean() < 1.3
