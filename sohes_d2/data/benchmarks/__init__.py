"""Public data sets: the paths and names under which they are registered, and their conversion to label files."""
