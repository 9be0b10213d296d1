"""One self-contained html page that shows the forests of a COCO file, or of two side by side."""

from .build import ReportOptions, ReportSummary, write_report
from .label_file import LabelFile, ReportError, read_label_file
from .matching import match_masks
from .metrics import read_metrics

__all__ = [
    "LabelFile",
    "ReportError",
    "ReportOptions",
    "ReportSummary",
    "match_masks",
    "read_label_file",
    "read_metrics",
    "write_report",
]
