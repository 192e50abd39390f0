"""One model in a process of its own: both ends of it, for :mod:`vitconv.optimization.benchmark`.

Each model gets a process because models in one process disturb each other: the threads of onnxruntime that wait for
work slow torch ten times, and the largest memory is known of a whole process only.

The benchmark holds a :class:`ModelProcess`. It sends :class:`Work` and receives :class:`Opened`; from then on it asks
for one :class:`Turn` after the other. In between, the process waits and computes nothing. Either end notices when the
other is gone, because the pipe between them is closed then: nobody waits for ever, and no process is left.
"""

from __future__ import annotations

import gc
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

from vitconv.errors import VitconvError, shown

if TYPE_CHECKING:
    from vitconv.inference.runtime import Runtime

#: Images that the model takes at once, where it is to compute as many a second as it can.
BATCH = 8
#: How often each kind of computation is done before any is timed: compilers and caches need that.
_WARM_UP = 2
#: Seconds that each kind of computation is repeated for in a turn, so that a small model is timed often enough.
_ENOUGH = 0.25
#: Seconds that a process has for its end, to remove temporary files.
_FOR_THE_END = 3
_MEMORY = "Benchmark fewer models at once, or where there is more memory."


class Work(NamedTuple):
    """What a process is to run.

    Attributes:
        open: opens the model on a device: see :func:`vitconv.inference.runtime.opener`.
        device: ``"cpu"``, ``"cuda"``…
        photos: the contents of image files.
    """

    open: Callable[[str], Runtime]
    device: str
    photos: tuple[bytes, ...]


class Opened(NamedTuple):
    """The model is open, and warm.

    Attributes:
        load_seconds: what opening it took when everything was imported and the files were in the page cache.
        threads: how many torch computes with in the process.
        processor: which image processor makes the pixels: see :class:`vitconv.inference.Preprocessor`.
    """

    load_seconds: float
    threads: int
    processor: str


class Turn(NamedTuple):
    """What was measured in a turn.

    Attributes:
        model: seconds of the model alone for one image: all images in turn, once or several times.
        batch: seconds of the model alone for :data:`BATCH` images, once or several times.
        whole: seconds from the bytes of an image's file to its logits: all images in turn, once or several times.
        cores: how many cores computed the batches, on average.
        peak_bytes: the largest memory of the process until now.
    """

    model: list[float]
    batch: list[float]
    whole: list[float]
    cores: float
    peak_bytes: int


class _Failure(NamedTuple):
    """What ended the process's work; ``{name}`` stands for the model's."""

    problem: str
    remedy: str


# ---- the benchmark's end ----------------------------------------------------------------------------------------


class ModelProcess:
    """A process that runs one model. It is a context manager: at its end, the process has ended.

    The process is in a session of its own, so that Ctrl-C in a terminal reaches the benchmark alone, which then ends
    it. It is not one of :mod:`multiprocessing`, which imports the caller's script again.

    Args:
        name: what errors call the model.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115 - closed at the end
        self._connection, self._theirs = Pipe()
        self._process: subprocess.Popen[bytes] | None = None
        self._unstarted: Exception | None = None
        # Ctrl-C interrupts the main thread only. There, it could come when the process runs, but is not yet known.
        self._starter, self._started = threading.Thread(target=self._start), threading.Event()

    def __enter__(self) -> ModelProcess:
        return self

    def __exit__(self, *error: object) -> None:
        if self._starter.ident is not None:
            self._started.wait()  # of a thread, join() that was interrupted does not wait another time
        self._theirs.close()
        self._connection.close()  # which ends it
        if self._process is not None:
            _wait(self._process)
        self._printed.close()

    def open(self, work: Work) -> Opened:
        """Start the process, open the model, and warm it up.

        Raises:
            VitconvError: what opening or running it raised, or its process is gone or cannot be started.
        """
        self._starter.start()
        self._started.wait()
        if self._unstarted is not None:
            reason = getattr(self._unstarted, "strerror", None) or self._unstarted
            raise VitconvError(
                f"The process of '{self.name}' cannot be started: {reason}.", _MEMORY
            ) from self._unstarted
        return self._ask(work)

    def _start(self) -> None:
        descriptor = self._theirs.fileno()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", f"from {__name__} import main; main({descriptor})"],
                pass_fds=[descriptor],
                stdin=subprocess.DEVNULL,
                stdout=self._printed,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
            )
        except Exception as error:  # raised again in the main thread
            self._unstarted = error
        finally:
            self._theirs.close()  # so that the pipe ends with the process
            self._started.set()

    def turn(self) -> Turn:
        """Measure each kind of computation, a quarter of a second or longer.

        Raises:
            VitconvError: as :meth:`open`.
        """
        return self._ask("turn")

    def _ask(self, question: object) -> Any:
        try:
            self._connection.send(question)
            answer = self._connection.recv()
        except (EOFError, OSError) as error:
            raise self._death() from error
        if isinstance(answer, _Failure):
            raise VitconvError(*(text.replace("{name}", self.name) for text in answer))
        return answer

    def _death(self) -> VitconvError:
        assert self._process is not None
        code = _wait(self._process)
        if code == -signal.SIGKILL:
            return VitconvError(f"The process of '{self.name}' was killed, perhaps for want of memory.", _MEMORY)
        self._printed.seek(0)
        lines = self._printed.read().decode(errors="replace").split("\n")
        last = next((f" The last that it printed is {shown(line)}." for line in reversed(lines) if line.strip()), "")
        how = signal.strsignal(-code) if code < 0 else f"exit code {code}"
        return VitconvError(f"The process of '{self.name}' ended: {how}.{last}", "Check that it predicts an image.")


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process that is about to end, and return its exit code; one that does not end is killed."""
    try:
        with suppress(subprocess.TimeoutExpired):
            process.wait(2 * _FOR_THE_END)
    finally:
        process.kill()
        code = process.wait()
    return code


# ---- the process's end ------------------------------------------------------------------------------------------


def main(descriptor: int) -> None:
    """Be the process.

    Args:
        descriptor: of its end of the pipe.
    """
    connection = Connection(descriptor)
    try:
        model = _Model(connection.recv())
        questions: SimpleQueue[object] = SimpleQueue()
        threading.Thread(target=_listen, args=(connection, questions), daemon=True).start()
        connection.send(model.open())
        while questions.get():
            connection.send(model.turn())
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the benchmark is gone
        return
    except Exception as error:  # whatever a runtime raises is for the benchmark to tell
        with suppress(OSError):
            connection.send(_failure(error))


def _listen(connection: Connection, questions: SimpleQueue[object]) -> None:
    """Receive the questions, and end the process soon after the benchmark is gone, whatever it computes."""
    with suppress(EOFError, OSError):
        while True:
            questions.put(connection.recv())
    questions.put(None)
    time.sleep(_FOR_THE_END)
    os._exit(1)


class _Model:
    """The model, its image processor and the images."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def open(self) -> Opened:
        import numpy as np
        import torch

        from vitconv.inference.pixels import open_preprocessor
        from vitconv.models.processors import PROCESSOR_FILE, TIMM_PROCESSOR_FILE

        self._work.open(self._work.device)  # imports what it needs
        gc.collect()
        self._runtime, load_seconds = _timed(self._work.open, self._work.device)
        info = self._runtime.info
        has_own = (info.folder / PROCESSOR_FILE).exists() or not (info.folder / TIMM_PROCESSOR_FILE).exists()
        self._preprocess = open_preprocessor(info, "transformers" if has_own else "timm")
        self._pixels = np.stack([self._preprocess(photo) for photo in self._work.photos])
        self._batch = self._pixels[np.arange(BATCH) % len(self._pixels)]
        for _ in range(_WARM_UP):
            self._runtime(self._pixels[:1])
            self._runtime(self._batch)
            self._answer(self._work.photos[0])
        return Opened(load_seconds, torch.get_num_threads(), self._preprocess.name)

    def turn(self) -> Turn:
        self._runtime(self._pixels[:1])  # another process has used the processor's caches meanwhile
        model = _repeat(self._runtime, [one[None] for one in self._pixels])
        before = time.process_time()
        batch = _repeat(self._runtime, [self._batch])
        cores = (time.process_time() - before) / sum(batch)
        whole = _repeat(self._answer, self._work.photos)
        return Turn(model, batch, whole, cores, peak_memory())

    def _answer(self, photo: bytes) -> None:
        self._runtime(self._preprocess(photo)[None])


def _timed(function: Callable[..., Any], argument: object) -> tuple[Any, float]:
    """What a function returns, and the seconds that it took."""
    start = time.perf_counter()
    result = function(argument)
    return result, time.perf_counter() - start


def _repeat(function: Callable[..., Any], arguments: Sequence[object]) -> list[float]:
    """The seconds that a function takes for each of the arguments, again and again until it was :data:`_ENOUGH`."""
    times: list[float] = []
    while sum(times) < _ENOUGH:
        times += [_timed(function, argument)[1] for argument in arguments]
    return times


def peak_memory() -> int:
    """The largest memory of this process until now, in bytes, without that of a GPU.

    Linux's ``ru_maxrss`` is no less than what the *parent* had in memory when it started this process, so that a
    notebook's variables would be counted for each model. ``VmHWM`` is of this program alone: proc(5).
    """
    with suppress(OSError):
        if found := re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text()):
            return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _failure(error: BaseException) -> _Failure:
    """An error, for the benchmark to tell."""
    if _out_of_memory(error):
        return _Failure("There is too little memory to run '{name}'.", _MEMORY)
    if isinstance(error, VitconvError):
        return _Failure(error.problem, error.remedy)
    reason = str(error).partition("\n")[0]
    return _Failure(f"'{{name}}' cannot be run: {type(error).__name__}: {reason}", "Check that it predicts an image.")


def _out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or its cause, is for want of memory; torch, onnxruntime and OpenVINO have no common class."""
    while error is not None:
        words = ("allocate memory", "bad_alloc", "out of memory")
        if isinstance(error, MemoryError) or any(word in str(error) for word in words):
            return True
        error = error.__cause__
    return False
