"""Selection of masks by --entities, --min-score and --max-depth."""

import numpy as np
import pytest

from sohes_d2.structures.entity import Selection
from sohes_d2.structures.forest import Forest
from sohes_d2.structures.masks import encode_masks


def forest():
    masks = np.zeros((5, 40, 40), bool)
    masks[0, 2:20, 2:20] = True
    masks[1, 4:12, 4:12] = True  # a part of 0
    masks[2, 5:8, 5:8] = True  # a part of 1
    masks[3, 22:38, 22:38] = True
    masks[4, 25:30, 3:9] = True
    return Forest(encode_masks(masks), [-1, 0, 1, -1, -1], (40, 40), scores=[0.9, 0.8, 0.7, 0.6, 0.1])


@pytest.mark.parametrize(
    ("selection", "areas"),
    [
        (Selection(), [324, 64, 9, 256, 30]),
        (Selection(min_score=0.65), [324, 64, 9]),
        (Selection(max_depth=0), [324, 256, 30]),
        (Selection(entities=1), [324, 64]),
        (Selection(entities=2, max_depth=1), [324, 256, 64]),
        (Selection(entities=5, min_score=0.5, max_depth=0), [324, 256]),
    ],
)
def test_remaining_masks(selection, areas):
    assert selection(forest()).areas.tolist() == areas
    assert bool(selection) == (selection != Selection())


@pytest.mark.parametrize("wrong", [{"entities": -1}, {"min_score": 2}, {"max_depth": -1}])
def test_values_out_of_range(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Selection(**wrong)
