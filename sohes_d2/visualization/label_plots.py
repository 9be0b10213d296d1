"""Plots of label statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

# From the palette of wholes, distinguishable with colour blindness.
_BLUE, _ORANGE, _GREEN, _PINK = "#3573d9", "#e8953a", "#2aa876", "#d9569a"


def plot_label_statistics(
    masks_per_image: Sequence[int],
    coverage: Sequence[float],
    depth: Mapping[int, int],
    area_histogram: np.ndarray,
    area_bins: np.ndarray,
    title: str = "",
) -> np.ndarray:
    """Plot four histograms: masks per image, depth of masks, size of masks, and coverage of images.

    Args:
        masks_per_image: (images,) counts.
        coverage: (images,) share of each image covered by any mask.
        depth: number of masks by depth.
        area_histogram: (B,) number of masks by share of the image.
        area_bins: (B + 1,) borders of the bins, evenly spaced in the logarithm.
        title: printed above.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # not pyplot, which would choose a backend for the whole process
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(11, 7.5), dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    counts, depths, sizes, covered = figure.subplots(2, 2).ravel()
    if title:
        # "$" would start a formula
        figure.suptitle(title.replace("$", r"\$"), fontsize=13)

    most = max(masks_per_image, default=0) + 1
    counts.hist(masks_per_image, bins=np.linspace(0, most, min(40, most) + 1), color=_BLUE)
    counts.set(title="Masks per image", xlabel="masks", ylabel="images")
    levels = range(max(depth, default=0) + 1)
    bars = depths.bar([str(level) for level in levels], [depth.get(level, 0) for level in levels], color=_ORANGE)
    if len(levels) <= 12:
        depths.bar_label(bars, fontsize=8)
    depths.set(title="Depth (0: wholes, 1: parts, 2 and more: subparts)", xlabel="depth", ylabel="masks")
    sizes.stairs(area_histogram, area_bins, fill=True, color=_GREEN)
    sizes.set(title="Size of masks", xlabel="share of the image", ylabel="masks", xscale="log")
    covered.hist(coverage, bins=np.linspace(0, 1, 21), color=_PINK)
    covered.set(title="Coverage of the images", xlabel="share under any mask", ylabel="images", xlim=(0, 1))
    for axes in (counts, depths, sizes, covered):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
        axes.set_axisbelow(True)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
