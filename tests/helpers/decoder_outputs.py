"""Handmade outputs of the decoder: rectangles with given probabilities."""

import torch


def block(y0, x0, y1, x1, inside=8.0, outside=-8.0, side=16):
    """Mask logits of a rectangle on a map of ``side`` x ``side`` cells."""
    logits = torch.full((side, side), outside)
    logits[y0:y1, x0:x1] = inside
    return logits


def entity_logits(*probabilities):
    """Class logits whose softmax gives an entity with these probabilities."""
    p = torch.tensor(probabilities)
    return torch.stack([p.log(), (1 - p).log()], dim=1)


def outputs_of(probabilities, masks, sides=None):
    """Outputs for a batch of one image."""
    outputs = {"pred_logits": entity_logits(*probabilities)[None], "pred_masks": torch.stack(masks)[None]}
    if sides is not None:
        outputs["pred_ancestors"] = tuple(side[None] for side in sides)
    return outputs
