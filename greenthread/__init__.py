"""GreenThread's vocabulary and its pure decisions. Standard library only."""

__version__ = "0.1.0"
