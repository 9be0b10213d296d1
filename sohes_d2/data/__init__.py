"""Data: image lists, registered data sets, training data, synthetic scenes and conversion of benchmarks."""
