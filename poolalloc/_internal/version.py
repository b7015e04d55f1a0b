"""The package version, read by the build and by `poolalloc --version`."""

__version__ = "0.1.0"
