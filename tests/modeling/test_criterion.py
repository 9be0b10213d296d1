"""The losses: reference values, the ancestor loss on handmade cases, and batches without labels."""

import math
import socket
import sys

import pytest
import torch
from helpers import matching_case
from torch import multiprocessing

from sohes_d2.modeling import criterion as criterion_module
from sohes_d2.modeling import point_sampling
from sohes_d2.modeling.criterion import SetCriterion, pair_loss
from sohes_d2.modeling.matcher import HungarianMatcher

# Computed with the official code, see helpers/matching_case.py.
OFFICIAL_LOSSES = {
    "loss_ce": 0.12158277630805969,
    "loss_mask": 0.7075054049491882,
    "loss_dice": 0.6483690142631531,
    "loss_ce_0": 0.1746702939271927,
    "loss_mask_0": 0.7151668071746826,
    "loss_dice_0": 0.6806539297103882,
}
# Sums of the absolute gradients of mask logits: of the output and of the auxiliary output.
OFFICIAL_MASK_GRADIENTS = [0.597114622592926, 0.5900158882141113]


def make_criterion(**changes):
    matcher = HungarianMatcher(cost_class=2.0, cost_mask=5.0, cost_dice=5.0, num_points=matching_case.NUM_POINTS)
    return SetCriterion(**{"matcher": matcher, "weight_dict": {}, "num_points": matching_case.NUM_POINTS, **changes})


@pytest.fixture
def same_points(monkeypatch):
    """The same points for every mask, so that an image's losses do not depend on the images before it."""

    def points(num_sets, num_points, device):
        return matching_case.weyl_points(1, num_points, device).expand(num_sets, -1, -1)

    monkeypatch.setattr(point_sampling, "random_points", points)


def with_ancestors(outputs, dim=4):
    """The outputs with deterministic ancestor and descendant embeddings."""
    batch, queries = outputs["pred_logits"].shape[:2]
    waves = torch.sin(1.3 * torch.arange(2 * batch * queries * dim, dtype=torch.float32)).view(2, batch, queries, dim)
    return {**outputs, "pred_ancestors": (waves[0].clone(), waves[1].clone())}


def leaves(outputs):
    """All tensors of the outputs, set to require gradients."""
    layers = [outputs, *outputs.get("aux_outputs", [])]
    tensors = [layer[name] for layer in layers for name in ("pred_logits", "pred_masks")]
    tensors += [side for layer in layers for side in layer.get("pred_ancestors", ())]
    return [tensor.requires_grad_() for tensor in tensors]


def relation(n, *pairs):
    ancestors = torch.zeros(n, n, dtype=torch.bool)
    for ancestor, descendant in pairs:
        ancestors[ancestor, descendant] = True
    return ancestors


def test_losses_and_gradients_are_the_official_ones(monkeypatch):
    monkeypatch.setattr(point_sampling, "random_points", matching_case.weyl_points)
    outputs = matching_case.outputs()
    leaves(outputs)
    losses = make_criterion()(outputs, matching_case.targets())
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(OFFICIAL_LOSSES, abs=1e-5)
    sum(losses.values()).backward()
    sums = [layer["pred_masks"].grad.abs().sum().item() for layer in (outputs, *outputs["aux_outputs"])]
    assert sums == pytest.approx(OFFICIAL_MASK_GRADIENTS, abs=1e-5)


def test_empty_weight_is_a_buffer_of_checkpoints():
    state = make_criterion(num_classes=2, eos_coef=0.25).state_dict()
    assert list(state) == ["empty_weight"] and state["empty_weight"].tolist() == [1, 1, 0.25]


def test_one_image_without_labels(same_points):
    """Its queries are trained as background; mask losses are those of the other image alone."""
    targets = matching_case.targets()
    alone = {name: value[:1] for name, value in matching_case.layer(0.0).items()}
    expected = make_criterion()(alone, targets[:1])
    for name in ("labels", "masks"):
        targets[1][name] = targets[1][name][:0]
    outputs = matching_case.layer(0.0)
    _, masks = leaves(outputs)
    losses = make_criterion()(outputs, targets)
    for name in ("loss_mask", "loss_dice"):
        assert losses[name].item() == pytest.approx(expected[name].item(), abs=1e-6)
    # 3 matched queries of weight 1; 2 and 5 unmatched ones of weight 0.1
    none = -outputs["pred_logits"][1].log_softmax(-1)[:, 1].sum()
    combined = (expected["loss_ce"] * (3 + 0.2) + 0.1 * none) / (3 + 0.7)
    assert losses["loss_ce"].item() == pytest.approx(combined.item(), abs=1e-6)
    sum(losses.values()).backward()
    assert masks.grad[0].abs().sum() > 0 and masks.grad[1].abs().sum() == 0


def test_no_labels_at_all():
    outputs = {**with_ancestors(matching_case.layer(0.0)), "aux_outputs": [with_ancestors(matching_case.layer(0.6))]}
    tensors = leaves(outputs)
    empty = {"labels": torch.zeros(0, dtype=torch.int64), "masks": torch.zeros(0, 24, 32, dtype=torch.bool)}
    losses = make_criterion()(outputs, [empty, {**empty, "ancestors": relation(0)}])
    for name, loss in losses.items():
        assert loss.item() > 0 if "_ce" in name else loss.item() == 0
    none = -outputs["pred_logits"].log_softmax(-1)[..., 1].mean()
    assert losses["loss_ce"].item() == pytest.approx(none.item(), abs=1e-6)
    sum(losses.values()).backward()
    # every tensor has a gradient, which is zero except for class logits
    for tensor in tensors:
        assert tensor.grad is not None and bool(tensor.grad.any()) == (tensor.shape[-1] == 2)


def test_more_labels_than_queries(same_points):
    outputs = with_ancestors({name: value[:, :2] for name, value in matching_case.layer(0.0).items()})
    targets = matching_case.targets()
    targets[0]["ancestors"] = relation(3, (0, 1))
    losses = make_criterion()(outputs, targets)
    ((queries, labels), second) = make_criterion().matcher(outputs, targets)
    assert len(queries) == 2 and len(second[0]) == 2
    assert all(math.isfinite(loss) for loss in losses.values())
    # all queries are matched
    assert losses["loss_ce"].item() == pytest.approx(-outputs["pred_logits"].log_softmax(-1)[..., 0].mean().item())
    a, d = (side[0, queries] for side in outputs["pred_ancestors"])
    expected = pair_loss(a @ d.T, targets[0]["ancestors"][labels][:, labels]) / 2
    assert losses["loss_ancestor"].item() == pytest.approx(expected.item(), abs=1e-6)


def test_pair_loss_by_hand():
    # of 6 pairs one is related; sigmoid(log 3) = 3/4; the diagonal is ignored
    logits = torch.tensor([[99.0, math.log(3), 0.0], [0.0, -99.0, 0.0], [math.log(3), 0.0, 50.0]], requires_grad=True)
    loss = pair_loss(logits, relation(3, (0, 1)))
    related = -math.log(3 / 4)
    unrelated = (4 * math.log(2) + math.log(4)) / 5
    assert loss.item() == pytest.approx((related + unrelated) / 2, abs=1e-6)
    loss.backward()
    # d loss / d logit = weight * (p - truth)
    expected = torch.tensor([[0, -0.25 / 2, 0.05], [0.05, 0, 0.05], [0.075, 0.05, 0]])
    torch.testing.assert_close(logits.grad, expected, atol=1e-6, rtol=0)


def test_pair_loss_of_one_kind_or_of_none():
    logits = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])
    assert pair_loss(logits, relation(2)).item() == pytest.approx((math.log(4) + math.log(2)) / 2, abs=1e-6)
    # only related pairs, although this is not a partial order
    assert pair_loss(logits, relation(2, (0, 1), (1, 0))).item() == pytest.approx(
        (-math.log(3 / 4) + math.log(2)) / 2, abs=1e-6
    )
    for n in (0, 1):
        few = torch.randn(n, n, requires_grad=True)
        loss = pair_loss(few, relation(n))
        loss.backward()
        assert loss.item() == 0 and not few.grad.any()


def test_ancestor_loss_is_over_matched_pairs_and_all_images(same_points):
    outputs = with_ancestors(matching_case.layer(0.0))
    as_ancestor, as_descendant = outputs["pred_ancestors"]
    leaves(outputs)
    targets = matching_case.targets()
    targets[0]["ancestors"] = relation(3, (0, 2))
    loss = make_criterion()(outputs, targets)["loss_ancestor"]
    # queries 1, 2, 3 are matched with labels 1, 2, 0 (test_matcher.py): query 3 is the ancestor of query 2
    queries = [1, 2, 3]
    expected = 0.0
    for i in queries:
        for j in queries:
            if i != j:
                p = torch.sigmoid(as_ancestor[0, i] @ as_descendant[0, j]).item()
                expected += -math.log(p) / 2 if (i, j) == (3, 2) else -math.log(1 - p) / 10
    # the other image, whose ancestors are unknown, contributes 0
    assert loss.item() == pytest.approx(expected / 2, abs=1e-6)
    loss.backward()
    for side in (as_ancestor, as_descendant):
        assert side.grad[0, queries].any(dim=1).all()
        assert not side.grad[0, [0, 4]].any() and not side.grad[1].any()


def test_no_ancestor_loss_without_the_head_or_of_unknown_ancestors(same_points):
    targets = matching_case.targets()
    assert "loss_ancestor" not in make_criterion()(matching_case.layer(0.0), targets)
    outputs = with_ancestors(matching_case.layer(0.0))
    leaves(outputs)
    loss = make_criterion()(outputs, targets)["loss_ancestor"]
    loss.backward()
    assert loss.item() == 0 and all(side.grad is not None for side in outputs["pred_ancestors"])


def test_a_batch_is_the_mean_of_its_images(same_points):
    """For all losses if images have equally many labels, otherwise for the ancestor loss only."""

    def gradients(labels_of_second):
        targets = matching_case.targets()
        targets[0] = {name: value[:2] for name, value in targets[0].items()}
        targets[1] = {name: value[:labels_of_second] for name, value in targets[1].items()}
        for target in targets:
            n = len(target["labels"])
            target["ancestors"] = relation(n, *[(0, 1)][: n - 1])
        batch, singles = (with_ancestors(matching_case.layer(0.0)) for _ in range(2))
        tensors, parts = leaves(batch), leaves(singles)
        losses = make_criterion()(batch, targets)
        sum(losses.values()).backward()
        means = dict.fromkeys(losses, 0.0)
        for i, target in enumerate(targets):
            image = {name: singles[name][i : i + 1] for name in ("pred_logits", "pred_masks")}
            image["pred_ancestors"] = tuple(side[i : i + 1] for side in singles["pred_ancestors"])
            loss = make_criterion()(image, [target])
            (sum(loss.values()) / 2).backward()
            means = {name: means[name] + loss[name].item() / 2 for name in means}
        return {name: loss.item() for name, loss in losses.items()}, means, tensors, parts

    losses, means, tensors, parts = gradients(labels_of_second=2)
    assert losses == pytest.approx(means, abs=1e-6)
    for tensor, part in zip(tensors, parts):
        torch.testing.assert_close(tensor.grad, part.grad, atol=1e-7, rtol=1e-5)

    losses, means, tensors, parts = gradients(labels_of_second=1)
    assert losses["loss_ancestor"] == pytest.approx(means["loss_ancestor"], abs=1e-6)
    for tensor, part in zip(tensors[2:], parts[2:]):
        torch.testing.assert_close(tensor.grad, part.grad, atol=1e-7, rtol=1e-5)
    # in the batch, all labels have the same weight; in the mean of images, those of an image with many have less
    assert losses["loss_mask"] != pytest.approx(means["loss_mask"], abs=1e-3)


def weighted_targets(label_weights, image_weights):
    targets = matching_case.targets()
    for target, some, one in zip(targets, label_weights, image_weights):
        target["label_weights"], target["image_weight"] = torch.tensor(some), torch.tensor(one)
        target["ancestors"] = relation(len(some), (0, 1))
    return targets


def test_weights_of_1_change_nothing(monkeypatch):
    monkeypatch.setattr(point_sampling, "random_points", matching_case.weyl_points)
    ones = weighted_targets([[1.0, 1.0, 1.0], [1.0, 1.0]], [1.0, 1.0])
    names = ("labels", "masks", "ancestors")
    outputs = with_ancestors(matching_case.outputs())
    plain = make_criterion()(outputs, [{name: target[name] for name in names} for target in ones])
    assert make_criterion()(outputs, ones) == plain
    assert plain["loss_ce_0"].item() == pytest.approx(OFFICIAL_LOSSES["loss_ce_0"], abs=1e-5)


def test_weights_by_hand(same_points):
    outputs = with_ancestors(matching_case.layer(0.0))
    label_weights, image_weights = [[1.0, 0.0, 0.5], [0.5, 2.0]], [1.0, 0.5]
    targets = weighted_targets(label_weights, image_weights)
    losses = make_criterion()(outputs, targets)

    ce = ce_weights = masks = dices = ancestors = 0.0
    for i, (queries, labels) in enumerate(make_criterion().matcher(outputs, targets)):
        nll = -outputs["pred_logits"][i].log_softmax(-1)
        for query in set(range(5)) - set(queries.tolist()):
            ce += image_weights[i] * 0.1 * nll[query, 1].item()
            ce_weights += image_weights[i] * 0.1
        for query, label in zip(queries.tolist(), labels.tolist()):
            weight = image_weights[i] * label_weights[i][label]
            ce += weight * nll[query, 0].item()
            ce_weights += weight
            logits = outputs["pred_masks"][i, query][None]
            points = point_sampling.uncertain_points(logits, matching_case.NUM_POINTS, 3.0, 0.75)
            p = point_sampling.sample_points(logits, points).sigmoid()
            t = point_sampling.sample_points(targets[i]["masks"][label][None], points)
            masks += weight * -(t * p.log() + (1 - t) * (1 - p).log()).mean().item()
            dices += weight * (1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)).item()
        a, d = (side[i, queries] for side in outputs["pred_ancestors"])
        ancestors += image_weights[i] * pair_loss(a @ d.T, targets[i]["ancestors"][labels][:, labels]).item()
    num_masks = 1 * (1 + 0 + 0.5) + 0.5 * (0.5 + 2)
    expected = {
        "loss_ce": ce / ce_weights,
        "loss_mask": masks / num_masks,
        "loss_dice": dices / num_masks,
        "loss_ancestor": ancestors / 2,
    }
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(expected, abs=1e-5)


def test_a_label_without_weight_is_neither_entity_nor_background(same_points):
    outputs = matching_case.layer(0.0)
    logits, masks = leaves(outputs)
    # label 1 of the first image is matched with query 1 (test_matcher.py)
    losses = make_criterion()(outputs, weighted_targets([[1.0, 0.0, 1.0], [1.0, 1.0]], [1.0, 1.0]))
    sum(losses.values()).backward()
    assert not logits.grad[0, 1].any() and not masks.grad[0, 1].any()
    assert logits.grad[0, [0, 2, 3, 4]].all() and masks.grad[0, [2, 3]].flatten(1).any(1).all()


def test_few_labels_of_low_weight_keep_a_low_loss(same_points):
    """The mean is over at least one label, so that a single label of low weight does not count fully."""
    outputs = {name: value[:1] for name, value in matching_case.layer(0.0).items()}
    one, half = (make_criterion()(outputs, weighted_targets([[weight, 0.0, 0.0]], [1.0])[:1]) for weight in (1.0, 0.5))
    for name in ("loss_mask", "loss_dice"):
        assert one[name].item() > 0 and half[name].item() == pytest.approx(one[name].item() / 2, abs=1e-6)


def test_an_image_without_weight_adds_nothing(same_points):
    outputs = with_ancestors(matching_case.layer(0.0))
    tensors = leaves(outputs)
    # its queries are not trained as background if it has no labels
    targets = weighted_targets([[1.0, 1.0, 1.0], [1.0, 1.0]], [1.0, 0.0])
    nothing = {name: value[:0] for name, value in targets[1].items() if name not in ("ancestors", "image_weight")}
    nothing.update(image_weight=torch.tensor(0.0), ancestors=relation(0))
    alone = {
        name: tuple(side[:1] for side in value) if isinstance(value, tuple) else value[:1]
        for name, value in outputs.items()
    }
    expected = {name: loss.item() for name, loss in make_criterion()(alone, targets[:1]).items()}
    # a mean over all images
    expected["loss_ancestor"] /= 2
    for second in (targets[1], nothing):
        losses = make_criterion()(outputs, [targets[0], second])
        assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(expected, abs=1e-6)
        sum(losses.values()).backward()
        for tensor in tensors:
            assert tensor.grad[0].any() and not tensor.grad[1].any()
            tensor.grad = None


def test_no_weight_at_all(same_points):
    outputs = with_ancestors(matching_case.layer(0.0))
    tensors = leaves(outputs)
    losses = make_criterion()(outputs, weighted_targets([[1.0, 1.0, 1.0], [1.0, 1.0]], [0.0, 0.0]))
    assert [loss.item() for loss in losses.values()] == [0] * 4
    # gradients stay zero for scaled losses
    (2.0**16 * sum(losses.values())).backward()
    assert all(tensor.grad is not None and not tensor.grad.any() for tensor in tensors)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype, same_points):
    targets = matching_case.targets()
    targets[0]["ancestors"] = relation(3, (0, 2))
    half = with_ancestors(matching_case.layer(0.0))
    half = {
        name: tuple(side.to(dtype) for side in value) if isinstance(value, tuple) else value.to(dtype)
        for name, value in half.items()
    }
    single = {
        name: tuple(side.float() for side in value) if isinstance(value, tuple) else value.float()
        for name, value in half.items()
    }
    tensors = leaves(half)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = make_criterion()(half, targets)
    expected = make_criterion()(single, targets)
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(
        {k: v.item() for k, v in expected.items()}, abs=1e-6
    )
    sum(losses.values()).backward()
    assert all(tensor.grad.dtype == dtype and tensor.grad.isfinite().all() for tensor in tensors)


def test_non_finite_predictions_do_not_stop_the_criterion():
    outputs = matching_case.outputs()
    outputs["pred_masks"][0] = float("nan")
    losses = make_criterion()(outputs, matching_case.targets())
    # NaN is passed on to the trainer
    assert math.isnan(losses["loss_mask"]) and math.isfinite(losses["loss_mask_0"])


def test_numbers_out_of_range_are_refused():
    with pytest.raises(ValueError, match="eos_coef must be over 0"):
        make_criterion(eos_coef=0.0)
    with pytest.raises(ValueError, match="oversample_ratio must be at least 1"):
        make_criterion(oversample_ratio=0.5)


def _one_of_two_processes(rank, port, queue, targets):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    point_sampling.random_points = lambda sets, n, device: matching_case.weyl_points(1, n).expand(sets, -1, -1)
    outputs = {name: value[rank : rank + 1] for name, value in matching_case.layer(0.0).items()}
    losses = make_criterion()(outputs, targets[rank : rank + 1])
    queue.put({name: losses[name].item() for name in ("loss_mask", "loss_dice")})
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked, as importing torch anew takes seconds")
@pytest.mark.parametrize("weighted", [False, True])
def test_two_processes_are_one_batch(same_points, weighted):
    """3 labels in one process and 2 in the other: the mean of the processes' losses is the loss of the whole batch.

    The same holds if their weights add up to 1 and 4.
    """
    targets = weighted_targets([[1.0, 0.5, 0.5], [2.0, 2.0]], [0.5, 1.0]) if weighted else matching_case.targets()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    processes = [
        context.Process(target=_one_of_two_processes, args=(rank, port, queue, targets), daemon=True)
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    first, second = queue.get(), queue.get()
    whole = make_criterion()(matching_case.layer(0.0), targets)
    for name in ("loss_mask", "loss_dice"):
        assert (first[name] + second[name]) / 2 == pytest.approx(whole[name].item(), abs=1e-6)


def test_one_process_needs_no_communication(monkeypatch):
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda *_: pytest.fail("no group to reduce in"))
    assert criterion_module._mean_over_processes(torch.tensor(3.0)).item() == 3
