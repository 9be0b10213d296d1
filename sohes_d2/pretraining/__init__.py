"""Self-supervised backbone pretraining on photos without labels, before phase 1.

`self_distillation` needs no other network, `distillation` needs a large teacher network; `dense_check` evaluates the
features. Requires the library lightly: pip install 'sohes_d2[pretrain]'.
"""
