"""Whole-slide images to attention-based multiple instance learning: tile, embed, train, heatmap."""

__version__ = "0.1.0"
