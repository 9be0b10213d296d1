"""Phase 1, self-exploration (SOHES, section 3.1): from one raw image to a forest of masks.

In the order of the method: `features` (frozen ViT, or training-free), `merging` (global clustering),
`local_reclustering` (zoomed crops), `refinement` (pixel-accurate borders), `filtering` and `scoring`;
`labeler` runs all steps.
"""
