"""The version, by itself: so that it can be read without torch."""

__version__ = "0.2.0"
