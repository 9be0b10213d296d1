"""Queries that begin as the likeliest places of an image."""

from __future__ import annotations

import pytest
import torch

import sohes_d2  # noqa: F401  (before detectron2)
from sohes_d2.modeling.ancestor_head import AncestorHead
from sohes_d2.modeling.transformer_decoder import MultiScaleMaskedTransformerDecoder
from sohes_d2.modeling.transformer_decoder.query_selection import PlaceEmbedding, QuerySelection


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def decoder(query_init="features", num_queries=10):
    return MultiScaleMaskedTransformerDecoder(
        16,
        hidden_dim=16,
        num_queries=num_queries,
        nheads=2,
        dim_feedforward=32,
        dec_layers=3,
        pre_norm=False,
        mask_dim=8,
        enforce_input_project=False,
        query_init=query_init,
        ancestor_head=AncestorHead(16, 4),
    )


def maps():
    return [torch.randn(2, 16, side, side) for side in (2, 4, 8)], torch.randn(2, 8, 16, 16)


def test_the_likeliest_places_come_first():
    selection = QuerySelection(4, num_queries=3, mask_dim=2)
    with torch.no_grad():
        selection.place.proj.weight.zero_()
        selection.place.proj.bias.zero_()
        selection.proj.weight.copy_(torch.eye(4))
        selection.proj.bias.zero_()
    selection.norm = torch.nn.Identity()
    features = [torch.zeros(1, 2, 4), torch.zeros(1, 3, 4)]
    features[0][0, :, 0] = torch.tensor([1.0, 5.0])
    features[1][0, :, 0] = torch.tensor([4.0, -1.0, 2.0])
    positions = [torch.full((1, 2, 4), 7.0), torch.arange(3.0).view(1, 3, 1).expand(1, 3, 4)]

    def classify(places):  # entity over "no object" by the first channel
        return torch.stack([places[..., 0], torch.zeros_like(places[..., 0])], dim=-1)

    sizes = [(1, 2), (3, 1)]
    queries, where = selection(features, positions, sizes, classify)
    assert queries[0, :, 0].tolist() == [5, 4, 2]
    assert where[0, :, 0].tolist() == [7, 0, 2]
    queries, _ = QuerySelection(4, num_queries=50, mask_dim=2)(features, positions, sizes, classify)
    assert queries.shape == (1, 5, 4), "not more queries than places"


def test_places_know_where_they_are():
    """The product of two embeddings can be a bump: no other place is as much like a place as itself."""
    place = PlaceEmbedding(64)
    with torch.no_grad():
        torch.nn.init.orthogonal_(place.proj.weight)
        place.proj.bias.zero_()
        here = place((8, 16)).unflatten(0, (8, 16))
    assert torch.allclose(place((8, 16)), place((8, 16)))
    alike = torch.einsum("hwc,c->hw", here, here[5, 11])
    assert alike.argmax() == 5 * 16 + 11
    assert alike.flatten().topk(2).values[1] < 0.85 * alike[5, 11]
    # of three times as many places, the middle one of each three is the same place
    with torch.no_grad():
        finer = place((24, 48)).unflatten(0, (24, 48))
    assert torch.allclose(finer[1::3, 1::3], here, atol=1e-5)


def test_masks_know_where_they_are():
    selection = QuerySelection(4, num_queries=3, mask_dim=2)
    same = torch.zeros(1, 2, 4, 4)
    located = selection.locate(same)
    assert located.shape == same.shape
    assert torch.allclose(located[0].flatten(1).T, selection.mask_place((4, 4)))


def test_first_predictions_are_those_of_the_places():
    model = decoder().train()
    features, mask_features = maps()
    outputs = model(features, mask_features)
    first = outputs["aux_outputs"][0]["pred_logits"]
    assert first.shape == (2, 10, 2) and outputs["pred_masks"].shape == (2, 10, 16, 16)
    likely = (first[..., 0] - first[..., 1]).detach()
    assert torch.equal(likely, likely.sort(dim=1, descending=True).values)
    # an image's queries are its own
    assert not torch.allclose(first[0], first[1])
    assert torch.allclose(
        model([f[1:] for f in features], mask_features[1:])["pred_logits"], outputs["pred_logits"][1:], atol=1e-5
    )


def test_every_parameter_learns():
    model = decoder().train()
    outputs = model(*maps())
    predictions = [outputs, *outputs["aux_outputs"]]
    total = sum(p["pred_logits"].sum() + p["pred_masks"].sin().sum() for p in predictions)
    total = total + sum(side.sin().sum() for p in predictions for side in p["pred_ancestors"])
    total.backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not hasattr(model, "query_feat")


def test_unknown_init_is_refused():
    with pytest.raises(ValueError, match="QUERY_INIT must be one of learned, features, got 'zeros'"):
        decoder("zeros")
