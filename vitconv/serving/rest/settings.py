"""What a server allows."""

from __future__ import annotations

from dataclasses import dataclass, field

from vitconv.errors import InputError
from vitconv.files import is_unicode
from vitconv.inference.machine import cores
from vitconv.serving.workers import check_limits, default_count

MIB = 2**20
#: What headers may have around a value.
SPACE = " \t"
_KEY = "Set VITCONV_API_KEY to letters and digits, or leave it out for no key."


@dataclass(frozen=True)
class Settings:
    """What the REST server allows. Most of it is a bound on memory or time.

    Attributes:
        workers: how many images are computed at once.
        cores: which the workers share.
        timeout: seconds within which an image must be answered, from when it has arrived. What would take longer is
            refused.
        queue: how many images may wait.
        body_bytes: of one request's body.
        all_bytes: of the bodies of all requests together, those that are still arriving included.
        body_seconds: within which a body must have arrived, and within which a client must take its answer.
        header_seconds: within which a request's head must have arrived.
        batch_images: in one request.
        drain_seconds: how long a server that is told to end waits for its requests.
        api_key: that requests must carry; ``None`` for none.
    """

    workers: int = field(default_factory=default_count)
    cores: int = field(default_factory=cores)
    timeout: float = 10.0
    queue: int = 128
    body_bytes: int = 32 * MIB
    all_bytes: int = 256 * MIB
    body_seconds: float = 20.0
    header_seconds: float = 10.0
    batch_images: int = 32
    drain_seconds: float = 25.0
    api_key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Raise :class:`InputError` for what is no number of workers or seconds, and for a key that no request can
        carry, or that an empty one would match."""
        check_limits(self.workers, self.timeout)
        key = self.api_key
        if key is None:
            return
        if not key.strip(SPACE):
            raise InputError("The API key is blank: every request would have it.", _KEY)
        if not is_unicode(key) or any(
            ord(character) < 32 and character != "\t" or ord(character) == 127 for character in key
        ):
            raise InputError("The API key has a line end, or another character that no header can have.", _KEY)
