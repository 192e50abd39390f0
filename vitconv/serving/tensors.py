"""The models that a server of the Open Inference Protocol shows, and their tensors: the same in every server.

Three models, so that a client may send an image and get the answer, or do one half of the work itself:

========== ===================== =============================================
model      takes                 gives
========== ===================== =============================================
vit        the bytes of an image its logits and probabilities
preprocess the bytes of an image its pixels
model      pixels                their logits and probabilities
========== ===================== =============================================

Where the folder is calibrated, ``vit`` and ``model`` also give how far the answer may be believed: the calibrated
probabilities; which classes are in the prediction set, and whether the answer is reliable, and whether the image is
unlike those of the calibration: 1 or 0, as bytes, which every client and every version of DLPack has. A folder that is
not calibrated gives none of them: whether a model lists them says whether it is.

One request is about one image: the logits of a batch would differ in their last bits.

Names of classes come by the protocol's extension *classification*: instead of an output's values, a request may ask
for the largest of them, as ``value:index:label``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vitconv.inference.certainty import Judgement
    from vitconv.inference.runtime import ModelInfo

VIT, PREPROCESS, MODEL = "vit", "preprocess", "model"
IMAGE, PIXELS, LOGITS, PROBABILITIES = "image", "pixels", "logits", "probabilities"
CALIBRATED, SET, RELIABLE, UNLIKE = "calibrated_probabilities", "prediction_set", "reliable", "unlike"
#: Those that have one value for the image, not one for each class.
OF_IMAGE = (RELIABLE, UNLIKE)


@dataclass(frozen=True)
class Tensor:
    """What a model takes or gives.

    Attributes:
        name: of the tensor.
        datatype: the protocol's name for it: ``"UINT8"``, ``"FP32"``, ``"FP64"``.
        shape: -1 where any number fits.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Model:
    """One of the models.

    Attributes:
        name: in the paths of the protocol.
        inputs: what it takes.
        outputs: what it gives, all of it unless a request names some.
    """

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def models(info: ModelInfo, *, calibrated: bool) -> dict[str, Model]:
    """The models that serve a folder, by name.

    Args:
        info: what the folder says of its model.
        calibrated: whether it is known how far its answers may be believed.
    """
    image = Tensor(IMAGE, "UINT8", (-1,))  # the bytes of a file: JPEG, PNG, WebP…
    pixels = Tensor(PIXELS, "FP32", (1, *info.input_shape))
    classes = (1, len(info.classes))
    answer: tuple[Tensor, ...] = (Tensor(LOGITS, "FP32", classes), Tensor(PROBABILITIES, "FP64", classes))
    if calibrated:
        answer += (Tensor(CALIBRATED, "FP64", classes), Tensor(SET, "UINT8", classes))
        answer += (Tensor(RELIABLE, "UINT8", (1, 1)), Tensor(UNLIKE, "UINT8", (1, 1)))
    return {
        VIT: Model(VIT, (image,), answer),
        PREPROCESS: Model(PREPROCESS, (image,), (pixels,)),
        MODEL: Model(MODEL, (pixels,), answer),
    }


def answers(logits: NDArray[np.float32], judgement: Judgement | None) -> dict[str, NDArray[Any]]:
    """What ``vit`` and ``model`` give, by the names of their tensors.

    Args:
        logits: float32, (images, classes).
        judgement: what :func:`vitconv.inference.certainty.judge` says of them.

    Raises:
        ParityError: the logits of an image are not finite.
    """
    import numpy as np

    from vitconv.inference.answers import probabilities

    found: dict[str, NDArray[Any]] = {LOGITS: logits}
    found[PROBABILITIES] = np.stack([probabilities(one) for one in logits])
    if judgement is None:
        return found
    flags = {SET: judgement.sets, RELIABLE: judgement.reliable[:, None], UNLIKE: judgement.unlike[:, None]}
    return found | {CALIBRATED: judgement.probabilities} | {name: one.astype(np.uint8) for name, one in flags.items()}
