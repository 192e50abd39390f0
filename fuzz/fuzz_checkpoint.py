"""Fuzz the readers of checkpoints with coverage-guided bytes.

    python fuzz/fuzz_checkpoint.py -runs=100000 [corpus]

The property is the one that tests/unit/checkpoints/test_fuzz.py tests: every byte of the file is accounted for, or
the file is refused with a VitconvError. There is no other exception, no hang (10 s) and no unbounded memory (4 GB).
"""

import contextlib
import sys
import tempfile
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/unit/checkpoints"))

with atheris.instrument_imports(include=["vitconv", "json", "zipfile"]):
    from vitconv.checkpoints.checkpoint import open_source
    from vitconv.errors import VitconvError

from hostile import headers, pickles
from test_fuzz import check_file

_FILE = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)) / "case"
_ONE = {"a": headers.entry(), "b": headers.entry(4, 8)}
_SEEDS = [
    headers.file(_ONE, bytes(8)),
    headers.file({**_ONE, "__metadata__": {"format": "pt"}}, bytes(8)),
    *headers.DAMAGED.values(),
    pickles.as_zip(pickles.dictionary({"a": pickles.tensor("0", (4,), (1,))}), {"0": bytes(16)}),
    pickles.as_legacy(pickles.dictionary({})),
]


def one_case(data: bytes) -> None:
    """Open the bytes as a file."""
    _FILE.write_bytes(data)
    if data[8:9] == b"{":
        check_file(_FILE)
        return
    with contextlib.suppress(VitconvError):
        open_source(_FILE)


def main() -> None:
    corpus = _FILE.parent / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(_SEEDS):
        if len(seed) < 10_000:
            (corpus / str(number)).write_bytes(seed)
    limits = ["-timeout=10", "-rss_limit_mb=4000", "-max_len=4000", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *limits, *sys.argv[1:], str(corpus)], one_case)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
