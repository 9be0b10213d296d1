"""Tables of results."""

import numpy as np

from sohes_d2.evaluation.scoring import detection_table, difference_table, forest_table
from sohes_d2.evaluation.significance import Difference


def cells(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_detection_table():
    segm = {"AR@1": 1.234, "AP": 2.0, "AP50": 3.0, "AR@1-small": 4.0, "AP-small": float("nan")}
    rows = cells(detection_table({"segm": segm, "bbox": {"AR@1": 7.0}}))
    assert rows[0] == ["", "size", "AR@1", "AP", "AP50"]
    assert rows[2] == ["segm", "all", "1.23", "2.00", "3.00"]
    assert rows[3] == ["segm", "small", "4.00", "nan", ""]
    assert rows[6] == ["bbox", "all", "7.00", "", ""]


def test_difference_table():
    rows = cells(difference_table({"segm": {"AR@100": Difference(10.0, 12.5, -0.126, 5.0)}}))
    assert rows[0] == ["", "metric", "before", "after", "difference", "95% interval"]
    assert rows[2:] == [["segm", "AR@100", "10.00", "12.50", "+2.50", "-0.13 to +5.00"]]


def test_forest_table():
    metrics = {"ancestor_F1": 1.0, "ancestor_F1-50": 2.0, "ancestor_F1-matched": 3.0, "parent_recall-matched-50": 4.0}
    rows = cells(forest_table(metrics, np.arange(9).reshape(3, 3)))
    assert rows[0] == ["relation", "over", "IoU", "precision", "recall", "F1", "AP"]
    assert rows[2] == ["ancestor", "end to end", "0.50:0.95", "", "", "1.00", ""]
    assert rows[3] == ["ancestor", "end to end", "0.50", "", "", "2.00", ""]
    assert rows[4] == ["ancestor", "matched", "0.50:0.95", "", "", "3.00", ""]
    assert rows[9] == ["parent", "matched", "0.50", "", "4.00", "", ""]
    assert rows[-3:] == [
        ["depth 0", "0", "1", "2"],
        ["depth 1+", "3", "4", "5"],
        ["not true", "6", "7", "8"],
    ]
