"""Weights that come with the package, so that all phases run without a download. Each has a card beside it.

A backbone is NAME.safetensors; a whole model is a folder NAME with model.safetensors and config.yaml. They are named as
``shipped:NAME``, see `sohes_d2.weights.shipped_files`.
"""
