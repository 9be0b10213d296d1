import math

import pytest
import torch

from sohes_d2.modeling.ancestor_head import AncestorHead, ancestor_logits


@pytest.fixture
def head():
    torch.manual_seed(0)
    return AncestorHead(hidden_dim=8, dim=4)


@pytest.fixture
def queries():
    return torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(1))


def test_logits_are_the_bilinear_form_of_every_ordered_pair(head, queries):
    logits = ancestor_logits(*head(queries))
    assert logits.shape == (2, 6, 6)
    w_a, w_d, b = head.as_ancestor.weight, head.as_descendant.weight, head.bias
    for image in range(2):
        for i in range(6):
            for j in range(6):
                expected = (w_a @ queries[image, i]) @ (w_d @ queries[image, j]) / math.sqrt(4) + b
                assert logits[image, i, j].item() == pytest.approx(expected.item(), abs=1e-5)


def test_direction_matters(head, queries):
    logits = ancestor_logits(*head(queries))
    off_diagonal = ~torch.eye(6, dtype=torch.bool)
    assert (logits - logits.transpose(1, 2))[:, off_diagonal].abs().min() > 1e-4


def test_a_known_ancestor_pair():
    head = AncestorHead(hidden_dim=2, dim=1)
    with torch.no_grad():
        head.as_ancestor.weight.copy_(torch.tensor([[3.0, 0.0]]))
        head.as_descendant.weight.copy_(torch.tensor([[0.0, 2.0]]))
        head.bias.fill_(-1.0)
    whole, part = [1.0, 0.0], [0.0, 1.0]
    logits = ancestor_logits(*head(torch.tensor([whole, part])))
    assert logits.tolist() == [[-1.0, 5.0], [-1.0, -1.0]]  # the whole is the part's ancestor, not the reverse


@pytest.mark.parametrize("subset", [torch.tensor([4, 1, 2]), torch.tensor([True, False, True, False, False, True])])
def test_selecting_queries_equals_selecting_pairs(head, queries, subset):
    a, d = head(queries)
    after = ancestor_logits(a, d)[:, subset][:, :, subset]
    torch.testing.assert_close(ancestor_logits(a[:, subset], d[:, subset]), after)


def test_sides_can_be_of_different_queries(head, queries):
    a, d = head(queries)
    torch.testing.assert_close(ancestor_logits(a[:, :2], d[:, 3:]), ancestor_logits(a, d)[:, :2, 3:])


def test_initial_ancestor_probabilities_are_low():
    torch.manual_seed(0)
    head = AncestorHead(hidden_dim=256, dim=256)
    assert torch.sigmoid(head.bias).item() == pytest.approx(0.05)
    normed = torch.nn.functional.layer_norm(torch.randn(200, 256), (256,))
    assert 0.03 < ancestor_logits(*head(normed)).sigmoid().mean() < 0.1
    assert torch.sigmoid(AncestorHead(8, 4, prior=0.3).bias).item() == pytest.approx(0.3)


def test_gradients_reach_both_projections_and_the_bias(head, queries):
    ancestor_logits(*head(queries)).sigmoid().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in head.parameters())


def test_autocast_keeps_the_bias_exact(head, queries):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        a, d = head(queries)
    assert a.dtype == d.dtype == torch.float32
    assert torch.equal(a[..., -1], head.bias.expand(2, 6)) and torch.equal(d[..., -1], torch.ones(2, 6))
    torch.testing.assert_close(ancestor_logits(a, d), ancestor_logits(*head(queries)), atol=0.05, rtol=0.05)
