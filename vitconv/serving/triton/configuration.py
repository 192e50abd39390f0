"""What Triton is told of the models in a store: their ``config.pbtxt``, by the protocol's own classes.

A name that Triton does not know cannot be written so. That the tensors of one model fit the next is up to this module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from vitconv.errors import InputError, how_to_install
from vitconv.serving.tensors import IMAGE, LOGITS, MODEL, OF_IMAGE, PIXELS, PREPROCESS, VIT, Model, Tensor, models

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    from vitconv.inference.runtime import ModelInfo
    from vitconv.models.processors import ProcessorName

BackendName = Literal["python", "pytorch", "onnxruntime", "openvino"]
Hardware = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Backend:
    """What runs the model inside of Triton.

    Attributes:
        runtime: of the folders that hold what it needs, a name in :data:`vitconv.inference.RUNTIMES`; empty for any.
        pixels: what it calls the model's input.
        logits: what it calls the model's output; empty for the name in the folder's record.
        platform: the kind of model, for the backends that run several.
    """

    runtime: str = ""
    pixels: str = PIXELS
    logits: str = LOGITS
    platform: str = ""


#: Triton's own backend for Python runs vitconv, and so any folder. The others read one kind of file.
BACKENDS: dict[str, Backend] = {
    "python": Backend(),
    "pytorch": Backend("torchscript", "INPUT__0", "OUTPUT__0", "pytorch_libtorch"),  # TorchScript keeps no names
    "onnxruntime": Backend("onnxruntime", "pixel_values", ""),
    "openvino": Backend("openvino", "pixel_values", ""),
}

#: How long a request may wait for the model; Triton refuses what waits longer with the status 503. A limit of how many
#: may wait would be worse: where that is reached, Triton 2.51 leaves the model idle most of the time.
WAIT_MICROSECONDS = 5_000_000
#: On a GPU: how many images at once, how long the first one waits for others, and how many processes make pixels.
BATCH, DELAY_MICROSECONDS, PREPROCESSORS = 8, 2000, 4
#: An argument of the server: how long the Python of a model may take to begin. Importing torch from a slow disk takes
#: longer than Triton's 30 seconds.
STUB_TIMEOUT = "--backend-config=python,stub-timeout-seconds=300"
#: A file of names, one a line, in the order of the logits.
LABELS = "labels.txt"
#: Beside a model's ``model.py``: the model's folder, and the list of programs that may be loaded from it, as
#: :mod:`vitconv.inference.trusted` looks for it in a user's state folder.
FOLDER, STATE = "folder", "state"
#: A file of an image's bytes in the folder that Triton looks for the content of warm-up requests in.
WARMUP_IMAGE = "image.png"


@dataclass(frozen=True)
class Served:
    """What a store is to say of its model.

    Attributes:
        info: what the model's folder says of it.
        backend: what runs it.
        hardware: what it runs on.
        processor: what makes the pixels.
        file: the name of the model's file, for other backends than ``"python"``.
        output: the name of the logits in it, where the file names them.
        parameters: what the backend is told besides.
        warmup_bytes: the size of the image that warms up the preprocessor.
        calibrated: whether the answers say how far they may be believed: never with another backend, which gives
            logits only.
    """

    info: ModelInfo
    backend: BackendName
    hardware: Hardware
    processor: ProcessorName
    warmup_bytes: int
    file: str = ""
    output: str = LOGITS
    parameters: Mapping[str, str] = field(default_factory=dict)
    calibrated: bool = False

    @property
    def models(self) -> dict[str, Model]:
        """The models that serve it, by name."""
        return models(self.info, calibrated=self.calibrated)


def configurations(served: Served) -> dict[str, ModelConfig]:
    """The configuration of each model in a store, by its name.

    Raises:
        InputError: the protocol's classes are not installed.
    """
    return {PREPROCESS: _preprocess(served), MODEL: _model(served), VIT: _vit(served)}


def as_text(configuration: ModelConfig) -> str:
    """A configuration as the content of ``config.pbtxt``."""
    from google.protobuf import text_format

    return text_format.MessageToString(configuration)


def protocol() -> Any:
    """The module of the protocol's classes for configurations.

    Raises:
        InputError: it is not installed.
    """
    try:
        from tritonclient.grpc import model_config_pb2
    except ImportError as error:
        raise InputError(
            f"Writing a store for Triton needs packages that are not installed: {error.name or 'tritonclient'}.",
            f"Install them with {how_to_install('triton')}.",
        ) from error
    return model_config_pb2


def _preprocess(served: Served) -> ModelConfig:
    p, known = protocol(), served.models[PREPROCESS]
    count = PREPROCESSORS if served.hardware == "cuda" else 1
    image = p.ModelWarmup.Input(data_type=p.TYPE_UINT8, dims=[served.warmup_bytes], input_data_file=WARMUP_IMAGE)
    return p.ModelConfig(
        name=PREPROCESS,
        backend="python",
        max_batch_size=0,  # images have any number of bytes
        input=_inputs(known.inputs),
        output=_outputs(known.outputs),
        instance_group=[p.ModelInstanceGroup(kind=p.ModelInstanceGroup.KIND_CPU, count=count)],
        parameters=_parameters(processor=served.processor),
        model_warmup=[p.ModelWarmup(name="image", inputs={IMAGE: image})],
    )


def _model(served: Served) -> ModelConfig:
    p, known = protocol(), served.models[MODEL]
    backend, gpu = BACKENDS[served.backend], served.hardware == "cuda"
    (pixels,), outputs = known.inputs, known.outputs
    if backend.runtime:
        pixels = Tensor(backend.pixels, pixels.datatype, pixels.shape)
        outputs = (Tensor(_logits(served), outputs[0].datatype, outputs[0].shape),)
    # Of a batch, every size is prepared for: the first one of each size takes longer on a GPU.
    sizes = (1, BATCH) if gpu else (1,)
    zeros = p.ModelWarmup.Input(data_type=p.TYPE_FP32, dims=pixels.shape[1:], zero_data=True)
    kind = p.ModelInstanceGroup.KIND_GPU if gpu else p.ModelInstanceGroup.KIND_CPU
    return p.ModelConfig(
        name=MODEL,
        backend=served.backend,
        platform=backend.platform,
        default_model_filename=served.file,
        # In a batch, the last bits of an image's logits depend on the other images. On a processor it gains little.
        max_batch_size=max(sizes),
        input=_inputs([pixels], batched=True),
        output=_outputs(outputs, batched=True, labels=True),
        instance_group=[p.ModelInstanceGroup(kind=kind, count=1)],
        dynamic_batching=p.ModelDynamicBatching(
            max_queue_delay_microseconds=DELAY_MICROSECONDS if gpu else 0,
            default_queue_policy=p.ModelQueuePolicy(
                timeout_action=p.ModelQueuePolicy.REJECT, default_timeout_microseconds=WAIT_MICROSECONDS
            ),
        ),
        parameters=_parameters(**served.parameters),
        model_warmup=[
            p.ModelWarmup(name=f"batch of {size}", batch_size=size, inputs={pixels.name: zeros}) for size in sizes
        ],
    )


def _vit(served: Served) -> ModelConfig:
    p, known = protocol(), served.models[VIT]
    backend = BACKENDS[served.backend]
    outputs = known.outputs[:1] if backend.runtime else known.outputs
    given = {LOGITS: _logits(served)}
    step = p.ModelEnsembling.Step
    return p.ModelConfig(
        name=VIT,
        platform="ensemble",
        input=_inputs(known.inputs),
        output=_outputs(outputs, labels=True),
        ensemble_scheduling=p.ModelEnsembling(
            step=[
                step(model_name=PREPROCESS, model_version=-1, input_map={IMAGE: IMAGE}, output_map={PIXELS: PIXELS}),
                step(
                    model_name=MODEL,
                    model_version=-1,
                    input_map={backend.pixels: PIXELS},
                    output_map={given.get(one.name, one.name): one.name for one in outputs},
                ),
            ]
        ),
        parameters=_parameters(
            fingerprint=served.info.fingerprint, calibrated="true" if served.calibrated else "false"
        ),
    )


def _logits(served: Served) -> str:
    """What the model of a store calls the logits."""
    return BACKENDS[served.backend].logits or served.output


def _inputs(tensors: Sequence[Tensor], *, batched: bool = False) -> list[Any]:
    p = protocol()
    return [p.ModelInput(name=one.name, data_type=_datatype(one), dims=_dims(one, batched)) for one in tensors]


def _outputs(tensors: Sequence[Tensor], *, batched: bool = False, labels: bool = False) -> list[Any]:
    p = protocol()
    return [
        p.ModelOutput(
            name=one.name,
            data_type=_datatype(one),
            dims=_dims(one, batched),
            label_filename=LABELS if labels and one.name not in OF_IMAGE else "",
        )
        for one in tensors
    ]


def _datatype(tensor: Tensor) -> int:
    return protocol().DataType.Value(f"TYPE_{tensor.datatype}")


def _dims(tensor: Tensor, batched: bool) -> tuple[int, ...]:
    """A tensor's shape; without the first dimension, which is Triton's own, for a model with a batch size."""
    return tensor.shape[batched:]


def _parameters(**values: str) -> dict[str, Any]:
    return {name: protocol().ModelParameter(string_value=value) for name, value in values.items()}
