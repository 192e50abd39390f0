"""Turn timm Vision Transformer checkpoints into native Transformers models that compute the same numbers.

The public verbs live in :mod:`vitconv.convert` and :mod:`vitconv.parity.comparison`; importing this package imports
nothing heavy.
"""

__version__ = "0.1.0"
