"""Fuzz targets: what `make fuzz` runs, and how to look at what it finds, is in docs/testing.md."""
