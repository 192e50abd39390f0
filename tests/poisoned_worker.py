"""`vitconv worker`, but for one kind of message that kills the process: as a fault in C, or want of memory, would."""

import os
import signal

from vitconv.cli import run
from vitconv.messaging import results

POISON = b"poison"


def _read(message, root, read=results._image):
    content = read(message, root)
    if content.startswith(POISON):
        os.kill(os.getpid(), signal.SIGKILL)
    return content


if __name__ == "__main__":
    results._image = _read
    run()
