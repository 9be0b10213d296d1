"""Conversion of public data sets to label files, for the scripts in datasets/."""
