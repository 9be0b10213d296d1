"""Phase 1, self-exploration (SOHES, section 3.1): from one raw image to a forest of masks.

In the order of the method: `features` (frozen ViT, or training-free), `merging` (global clustering), `zoom` (local
re-clustering), `refinement` (to pixels), `filtering` and `scoring`; `labeler` is all of it behind one call.
"""
