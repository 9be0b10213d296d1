"""Report: a self-contained html page that shows the forests of a COCO file, or of two files side by side."""

from .build import ReportOptions, ReportSummary, write_report
from .label_file import LabelFile, match_masks, read_label_file, read_metrics

__all__ = [
    "LabelFile",
    "ReportOptions",
    "ReportSummary",
    "match_masks",
    "read_label_file",
    "read_metrics",
    "write_report",
]
