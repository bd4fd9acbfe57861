"""anchorlens: label words are anchors, seen through TransformerLens."""

__version__ = "0.1.0"
