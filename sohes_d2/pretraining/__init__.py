"""Before phase 1: self-supervised backbone pretraining on photos without labels.

`self_distillation` is the method without any other network, `distillation` the one that shrinks a large one;
`dense_check` measures both. Needs the library lightly: pip install 'sohes_d2[pretrain]'.
"""
