"""Phase 1, self-exploration (SOHES, section 3.1): from one raw image to a forest of masks.

In the order of the method: `features` (frozen ViT, or training-free), `regions` (leaves and their graph), `merging` and
`merge_tree` (clustering), `looks` (several trees of one photo), `candidates` and `scoring`; for grid leaves `proposals`
(zoomed crops) and `refinement` (pixel-accurate borders); `labeler` runs all steps.
"""
