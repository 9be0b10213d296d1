"""Pictures of forests: overlays per level or depth, whole-to-part strips, trees of thumbnails, and combined figures."""

from .colors import forest_colors
from .draw import MAX_MASKS, best_scored, forest_figure
from .overlay import LEVELS, draw_depth, draw_masks, level_indices
from .strips import draw_strips
from .tree import draw_tree

__all__ = [
    "LEVELS",
    "MAX_MASKS",
    "best_scored",
    "draw_depth",
    "draw_masks",
    "draw_strips",
    "draw_tree",
    "forest_colors",
    "forest_figure",
    "level_indices",
]
