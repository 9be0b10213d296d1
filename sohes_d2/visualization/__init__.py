"""Pictures of forests: overlays per level, trees of thumbnails, and both in one figure."""

from .colors import color_distance, forest_colors
from .draw import MAX_MASKS, best_scored, forest_figure
from .overlay import LEVELS, draw_level, draw_masks, level_indices
from .tree import draw_tree

__all__ = [
    "LEVELS",
    "MAX_MASKS",
    "best_scored",
    "color_distance",
    "draw_level",
    "draw_masks",
    "draw_tree",
    "forest_colors",
    "forest_figure",
    "level_indices",
]
