"""Self-supervised backbone pretraining on photos without labels, before phase 1.

`self_distillation` needs no other network, `distillation` learns from a large teacher network; `dense_check` measures
the features. Needs the library lightly: pip install 'sohes_d2[pretrain]'.
"""
