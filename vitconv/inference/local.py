"""The engine for one machine: processes prepare the images while this one runs the model."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

from vitconv.errors import VitconvError, in_traceback
from vitconv.inference.images import Batches, BatchOutput, Pixels
from vitconv.inference.machine import cores
from vitconv.inference.runtime import Runtime, choose_device

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.data import Dataset


class LocalEngine:
    """Runs a model over batches: see :class:`vitconv.inference.batch_prediction.Engine`."""

    def __init__(self, device: str) -> None:
        import torch

        self.device = choose_device(device, torch.cuda.device_count())

    def run(
        self, open_runtime: Callable[[str], Runtime], batches: Batches, todo: Sequence[int]
    ) -> Iterator[BatchOutput]:
        """The outputs of the batches with these numbers, in this order."""
        import torch
        from torch.utils.data import DataLoader

        runtime = open_runtime(self.device)
        # Two prepared batches a process are what is in memory at any time.
        loader: Iterable[Any] = DataLoader(
            cast("Dataset[Pixels]", batches),  # it needs only the two methods that torch calls
            sampler=todo,
            batch_size=None,
            collate_fn=cast(Any, _share),  # without a batch size, it gets one item
            num_workers=cores(),
            prefetch_factor=2,
            multiprocessing_context="spawn" if _uses_ray() else None,
            worker_init_fn=_be_quiet,
        )
        try:
            _check_descriptors()
            for values, rest in _begin(loader):
                pixels: Pixels = pickle.loads(rest.numpy())
                logits = runtime(values.numpy())
                yield BatchOutput(pixels.batch, logits, pixels.errors, pixels.notes, pixels.appearance)
        except torch.OutOfMemoryError as error:
            raise VitconvError(
                f"The device '{self.device}' has too little memory for a batch of {batches.size} images.",
                "Choose a smaller batch size.",
            ) from error
        except MemoryError as error:
            raise VitconvError(
                f"There is too little memory to prepare {batches.size} images in each of {cores()} processes.",
                f"{_AGAIN} Smaller batches take less memory.",
            ) from error
        except (ConnectionError, EOFError) as error:  # it ended while it handed a batch over
            raise VitconvError(*_KILLED) from error
        except OSError as error:  # of pipes and processes; whatever is wrong with an image is in its batch's errors
            raise VitconvError(
                f"The processes that prepare images cannot be run: {error.strerror or error}.", _LIMITS
            ) from error
        except RuntimeError as error:
            if "Too many open files" in str(error):
                raise VitconvError(
                    "The processes that prepare images cannot be run: Too many open files.", _LIMITS
                ) from error
            if "DataLoader worker" not in str(error):
                raise
            if "Caught" in str(error):  # the other process's traceback
                reason = str(error).strip().rpartition("\n")[2]
                raise in_traceback(str(error)) or VitconvError(
                    f"Images cannot be prepared: {reason}", _AGAIN
                ) from error
            raise VitconvError(*_KILLED) from error


def _begin(loader: Iterable[Any]) -> Iterator[Any]:
    """Start the loader's processes, without torch's handler of the signal that one has ended.

    It would raise an error wherever this process is, such as in the model. The loader notices by itself, within
    seconds, while it waits for a batch.
    """
    handler = signal.getsignal(signal.SIGCHLD)
    prepared = iter(loader)
    # Other threads may set no handlers, and torch sets none there. None is one that is not Python's.
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, handler)
    return prepared


def _check_descriptors() -> None:
    """Raise OSError if the processes would want more open files than this one may have.

    torch, which meets that limit half way, prints tracebacks of its own.
    """
    opened: list[int] = []
    try:
        for _ in range(8 + 7 * cores()):  # for each its pipes, and the memory of two batches, two files each
            opened.append(os.open(os.devnull, os.O_RDONLY))
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _uses_ray() -> bool:
    """Whether this process is connected to a Ray cluster. Then it must not be forked.

    Forked processes share its connections to Ray, and its next Ray pipeline waits for ever. See "Anti-pattern: Forking
    new processes in application code" in Ray's documentation.
    """
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


_LIMITS = "Raise the limits of open files and processes (ulimit -n, ulimit -u), and run it again."
_AGAIN = "Run it again: it goes on where it stopped."
_KILLED = (
    "A process that prepares images was killed, perhaps for want of memory (in a container, /dev/shm).",
    f"{_AGAIN} Smaller batches take less memory.",
)


def _share(pixels: Pixels) -> tuple[Tensor, Tensor]:
    """Put a batch into shared memory, as torch passes tensors on: its values, and pickled what else there is.

    Through a pipe, the values would be copied twice. The rest may be more than a pipe takes at once: if this process
    were killed then, the other would wait for ever for what is missing.

    torch would do so itself, but in a thread, whose errors nobody hears of: the run would wait for ever.
    """
    import torch

    rest = bytearray(pickle.dumps(pixels._replace(values=pixels.values[:0])))
    try:
        values = torch.from_numpy(pixels.values).share_memory_()
        return values, torch.frombuffer(rest, dtype=torch.uint8).share_memory_()
    except (RuntimeError, OSError) as error:
        if "File too large" in str(error):  # EFBIG: a limit of this process, not of the memory
            raise VitconvError(
                f"The limit of file sizes is too low for a batch of {len(pixels.values)} images "
                f"({pixels.values.nbytes:,} bytes) in shared memory.",
                "Raise it (ulimit -f unlimited), or choose a smaller batch size.",
            ) from error
        raise VitconvError(
            f"There is too little shared memory for a batch of {len(pixels.values)} images ({pixels.values.nbytes:,} "
            "bytes) in each process.",
            f"{_AGAIN} Choose a smaller batch size, or make /dev/shm larger (docker run --shm-size).",
        ) from error


def _be_quiet(worker: int) -> None:
    """Have a process print nothing when this one is interrupted while a thread of the former hands it pixels.

    What goes wrong with a batch is no matter of this: it is raised in this process.
    """
    sys.excepthook = lambda *error: None
