"""Code shared by several test files; also imported by worker processes of tests."""
