"""Which documents are worth training on, and in what proportions."""

__version__ = "0.1.0"
