"""A folder answers requests: thin shells over :mod:`vitconv.inference`, one for each kind of server.

>>> from vitconv.serving import open_classifier
>>> classifier = open_classifier("converted")  # doctest: +SKIP
>>> classifier(jpeg).to_dict()  # doctest: +SKIP
{'class': 'slate', 'probability': 0.98, 'calibrated_probability': 0.99, 'reliable': True, …}

Every shell gives the logits that `vitconv predict --batch-size 1` gives, bit for bit.
"""

from typing import TYPE_CHECKING, Any

from vitconv.inference.optional import load

if TYPE_CHECKING:
    from vitconv.serving.classifier import Classifier, open_classifier

__all__ = ["Classifier", "open_classifier"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return load("vitconv.serving.classifier", name, [])
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
