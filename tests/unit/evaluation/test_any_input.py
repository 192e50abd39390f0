"""Property tests: any list, image, name, metric, parameter or report gives a result, a row with an error, or a
VitconvError. There is never another exception, and no case takes more than 20 seconds or 2 GiB.

``make fuzz`` runs the same properties on many more cases.
"""

import contextlib
import io
import json
import os
import re
import shutil
import socket
import sys
import types
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vitconv.checkpoints.digests import write_digests
from vitconv.cli.stages import _FORMS, read_parameters
from vitconv.errors import VitconvError
from vitconv.evaluation import evaluate
from vitconv.evaluation.plots import save_pictures
from vitconv.evaluation.reporting import PICTURES, report
from vitconv.inference.images import Batches, read_images
from vitconv.inference.pixels import open_preprocessor
from vitconv.inference.predictions import Parts, Run, make_rows
from vitconv.inference.runtime import read_info

#: Each test has many cases.
pytestmark = pytest.mark.slow

CASES = int(os.environ.get("VITCONV_FUZZ_CASES", "50"))
SECONDS, BYTES = 20, 2 << 30


def often(share: float = 1):
    """Settings for a share of the cases, with the time limit of each."""
    cases = max(10, int(CASES * share))
    return settings(max_examples=cases, deadline=SECONDS * 1000, suppress_health_check=list(HealthCheck))


@pytest.fixture(autouse=True)
def bounded_memory():
    """Check that a test takes at most :data:`BYTES` of additional memory, if the kernel reports it."""
    before = _memory("VmRSS")
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    yield
    assert _memory("VmHWM") - before < BYTES


def _memory(name: str) -> int:
    with contextlib.suppress(OSError):
        return int(re.search(rf"{name}:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) << 10
    return 0


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder that every case overwrites."""
    return tmp_path_factory.mktemp("any")


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr("vitconv.evaluation.metrics.RESAMPLES", 20)


HOSTILE = (
    "<script>alert(1)</script>",
    "![x](https://example.org/x.png)",
    "[x](javascript:alert(1))",
    "a\n# b",
    "a | b",
    "`a`",
    "$x^{$",
    "_x",
    "{{ 7 * 7 }}",
    "&amp;",
    "../../etc/passwd",
    "\0",
    "\ud800",
    "\u202e",
    "🌳",
    "NA",
    "7",
    " ",
    "",
    "x" * 3000,
)
_texts = st.sampled_from(HOSTILE) | st.text(max_size=6)
_numbers = (
    st.integers(-2, 9)
    | st.floats()
    | st.booleans()
    | st.sampled_from([2**63, 10**400, -(10**400), np.float16(1), np.array(2.0), np.array([1, 2]), 1j])
    | st.sampled_from([Decimal("NaN"), Decimal(1), Fraction(1, 3), torch.tensor(1.0), torch.tensor([1.0, 2.0])])
)
_plain = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.just(10**400) | st.floats() | _texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_texts, inner, max_size=3),
    max_leaves=6,
)


# Lists.

_fields = _texts | st.sampled_from(["path", "label", "class", "a.png", '"', '"a\nb"', "1e999", "\ufeff", "\r"])


@often()
@given(st.lists(st.lists(_fields, max_size=4), max_size=6), st.sampled_from(["\n", "\r\n", "\r"]), st.booleans())
def test_any_csv_rows_are_read_or_refused(place, rows, end, headed):
    lines = [",".join(fields) for fields in ([["path", "label"]] if headed else []) + rows]
    (place / "list.csv").write_bytes(end.join(lines).encode("utf-8", "surrogatepass"))
    with contextlib.suppress(VitconvError):
        images = read_images(place / "list.csv")
        assert len(images) == len(images.slice(range(len(images)))) > 0


@often()
@given(st.binary(max_size=60), st.sampled_from([b"", b"path\n", b"\xff\xfep\0a\0t\0h\0", b"path,path\n", b'path\n"']))
def test_any_bytes_as_a_list_are_read_or_refused(place, content, start):
    (place / "list.csv").write_bytes(start + content)
    with contextlib.suppress(VitconvError):
        assert len(read_images(place / "list.csv"))


# Images.


@pytest.fixture(scope="module")
def seeds() -> list[bytes]:
    """Small images in every format that Pillow writes by itself, in several modes."""
    found = []
    noise = np.random.default_rng(0).integers(0, 256, (9, 7, 4), dtype=np.uint8)
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"):
        image = Image.fromarray(noise).convert("L").convert(mode) if mode[0] in "IF1" else Image.fromarray(noise)
        for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "ICO", "PPM", "TGA", "PCX", "DDS", "JPEG2000"):
            stream = io.BytesIO()
            with contextlib.suppress(Exception):
                image.convert(mode).save(stream, kind)
                found.append(stream.getvalue())
    assert len(found) > 30
    return found


@pytest.fixture(scope="module")
def batches(folder, place):
    """Return a function that makes the batch of a list with one image."""
    preprocessor = open_preprocessor(read_info(folder))

    def make(name: str) -> Batches:
        (place / "one.csv").write_text(f'path\n"{name}"\n')
        return Batches(read_images(place / "one.csv"), 1, preprocessor)

    return make


def check_pixels(batches: Batches):
    pixels = batches[0]
    assert pixels.values.shape == (1, *batches.preprocessor.shape) and pixels.values.dtype == np.float32
    (error,) = pixels.errors
    assert (error is None and np.isfinite(pixels.values).all()) or (error and not pixels.values.any())


@often()
@given(st.data())
def test_any_bytes_as_an_image_give_pixels_or_an_error(place, seeds, batches, data):
    content = bytearray(data.draw(st.sampled_from(seeds)))
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        with_what = data.draw(st.binary(min_size=1, max_size=4) | st.sampled_from([b"\xff" * 4, b"\x7f\xff\xff\xff"]))
        content[at : at + len(with_what)] = with_what
    (place / "image").write_bytes(content[: data.draw(st.sampled_from([None, len(content) // 2, -1]))])
    check_pixels(batches("image"))


@often(0.2)
@given(st.integers(1, 2_000_000), st.integers(1, 40), st.booleans(), st.sampled_from(["1", "L", "RGB", "P"]))
def test_images_of_any_shape(place, batches, long, short, upright, mode):
    size = (short, long) if upright else (long, short)
    Image.new(mode, size).save(place / "image.png", compress_level=1)
    check_pixels(batches("image.png"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
@pytest.mark.parametrize(
    "name", ["fifo", "socket", "folder", "loop", "/dev/zero", "/dev/tty", "/proc/self/mem", "a\tb"]
)
def test_a_path_that_is_not_an_image_file_gives_an_error(place, batches, name):
    path = place / name
    if name == "fifo" and not path.exists():
        os.mkfifo(path)
    elif name == "socket":
        here = os.getcwd()
        os.chdir(place)  # its path may not be long
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as unix:
            unix.bind("socket")
        os.chdir(here)
    elif name == "folder":
        path.mkdir(exist_ok=True)
    elif name == "loop" and not path.is_symlink():
        path.symlink_to(path)
    check_pixels(batches(name))


# Names of classes, labels, expected answers, figures.


def write(place, classes, paths, labels, errors, columns, notes=None):
    """Predictions of these classes, their list, and expected answers."""
    count = len(paths)
    logits = np.random.default_rng(0).standard_normal((count, len(classes))).astype(np.float32)
    table = make_rows(0, paths, logits, errors, classes, notes)
    for old in (place / "predictions").glob("part-*"):
        old.unlink()
    Parts(place / "predictions", Run({}, tuple(classes)), 1, overwrite=True).write(0, table, "key")
    _write_csv(place / "list.csv", [["path", "label"], *zip(paths, labels, strict=True)])
    answers = [[path, classes[row.argmax()], *row.tolist()] for path, row in zip(paths, logits, strict=True)]
    _write_csv(place / "expected.csv", [["path", "class", *classes][:columns], *(row[:columns] for row in answers)])


def _write_csv(path, rows):
    lines = (",".join('"' + str(field).replace('"', '""') + '"' for field in row) for row in rows)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogatepass")


# In a list and in Parquet, text is UTF-8; in JSON it need not be.
_utf8 = _texts.filter(lambda text: "\ud800" not in text)
_names = st.lists(_utf8, min_size=1, max_size=4)


@often(0.5)
@given(st.data())
def test_any_class_names_are_evaluated_and_reported_or_refused(place, data):
    classes, paths = data.draw(_names), data.draw(_names)
    labels = [data.draw(st.sampled_from([*classes, "", "another"])) for _ in paths]
    errors = [data.draw(st.none() | st.none() | _utf8) for _ in paths]
    notes = [data.draw(st.none() | st.none() | _utf8) for _ in paths]
    columns = data.draw(st.sampled_from([None, 1, 2, 3]))
    with contextlib.suppress(VitconvError):
        write(place, classes, paths, labels, errors, columns, notes)
        result = evaluate(place / "predictions", place / "list.csv", expected=place / "expected.csv")
        result.save(place / "evaluation", place / "evaluation" / "metrics.json")
        for name in PICTURES:
            (place / "evaluation" / f"{name}.png").write_bytes(b"picture")
        report(place / "evaluation", place / "report")
        check_pages(place / "report")


def check_pages(folder):
    """Check that no name became a tag, a picture, a link or a heading."""
    html = (folder / "index.html").read_text(encoding="utf-8")
    assert "<script>alert" not in html
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    kinds = [token.type for token in _tokens(markdown)]
    assert not {"html_block", "html_inline", "link_open"} & set(kinds)
    pictures = [token.attrs["src"] for token in _tokens(markdown) if token.type == "image"]
    assert "images.png" in pictures and set(pictures) <= {f"{name}.png" for name in PICTURES}
    assert len(pictures) == len(set(pictures)) == html.count("<figure>")
    headings = re.findall(r"<h[1-6]>(.*?)</h[1-6]>", _commonmark().render(markdown))
    assert {"# b", "b"}.isdisjoint(headings)


def _commonmark():
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark").enable("table")


def _tokens(markdown):
    for token in _commonmark().parse(markdown):
        yield token
        yield from token.children or []


@often(0.02)
@given(st.lists(_utf8, min_size=2, max_size=4, unique=True))
def test_any_class_names_are_drawn(place, classes):
    paths = [f"{i}.png" for i in range(6)]
    with contextlib.suppress(VitconvError):
        write(place, classes, paths, [classes[i % len(classes)] for i in range(6)], [None] * 6, None)
        result = evaluate(place / "predictions", place / "list.csv", expected=place / "expected.csv")
        save_pictures(result, place / "evaluation")


# Metrics and thresholds.


@pytest.fixture(scope="module")
def some(place):
    """Predictions of three classes on four images; (predictions, list)."""
    (place / "some").mkdir()
    write(place / "some", ["ash", "beech", "oak"], list("abcd"), ["ash", "oak", "oak", ""], [None] * 4, None)
    return place / "some" / "predictions", place / "some" / "list.csv"


class Stop(BaseException):
    """An error that is a BaseException, but not an Exception."""


_raised = st.sampled_from(
    [SystemExit(0), SystemExit("bye"), Stop(), ValueError("\ud800"), RecursionError(), MemoryError()]
)
_returned = _numbers | _plain | st.dictionaries(_texts | _numbers.map(repr), _numbers, max_size=3)


@often()
@given(_returned | _raised)
def test_any_behaviour_of_a_metric_is_a_value_or_refused(some, place, returned):
    def metric(labels, probabilities, classes):
        if isinstance(returned, BaseException):
            raise returned
        return returned

    sys.modules["fuzzed"] = types.ModuleType("fuzzed")
    sys.modules["fuzzed"].metric = metric
    with contextlib.suppress(VitconvError):
        result = evaluate(*some, metrics=["fuzzed:metric"])
        result.save(place / "evaluation", place / "evaluation" / "metrics.json")
        assert all(np.isfinite(value) for value in result.metrics.values())


_metric_names = _texts | st.sampled_from(
    ["accuracy", "top", "os:getcwd", "sys:exit", "no.module:f", ":", "math:", "a:b:c"]
)


@often()
@given(_plain | _metric_names | st.lists(_metric_names | _plain, max_size=3))
def test_any_value_of_metrics_is_evaluated_or_refused(some, metrics):
    with contextlib.suppress(VitconvError):
        evaluate(*some, metrics=metrics)


_bounds = st.dictionaries(st.sampled_from(["min", "max", "mean"]), _numbers | _plain, max_size=2)


@often()
@given(
    _plain
    | st.dictionaries(st.sampled_from(["accuracy", "images", "top_3", "f1"]) | _texts, _bounds | _plain, max_size=2)
)
def test_any_value_of_thresholds_is_evaluated_or_refused(some, place, thresholds):
    with contextlib.suppress(VitconvError):
        result = evaluate(*some, metrics=["accuracy", "f1"], thresholds=thresholds)
        result.save(place / "evaluation", place / "evaluation" / "metrics.json")
        json.loads((place / "evaluation" / "evaluation.json").read_text())


# Parameters.


@pytest.fixture(autouse=True)
def parameters_file(place, monkeypatch):
    monkeypatch.setattr("vitconv.cli.stages.PARAMETERS_FILE", place / "params.yaml")


def digest_what_is_named(place):
    read_parameters(*_FORMS)
    write_digests(read_parameters("labels", "expected"), place / "digests")


_REAL = yaml.safe_load((Path(__file__).parents[3] / "params.yaml").read_text())


@often()
@given(st.dictionaries(st.sampled_from([*_REAL]) | _texts, _plain, max_size=4), st.booleans())
def test_any_parameters_are_read_or_refused(place, parameters, complete):
    text = yaml.safe_dump({**(_REAL if complete else {}), **parameters}, allow_unicode=True)
    (place / "params.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    with contextlib.suppress(VitconvError):
        digest_what_is_named(place)


@often()
@given(st.binary(max_size=40))
def test_any_bytes_as_parameters_file_are_read_or_refused(place, content):
    (place / "params.yaml").write_bytes(content)
    with contextlib.suppress(VitconvError):
        digest_what_is_named(place)


_tags = st.sampled_from(["int", "float", "bool", "timestamp", "binary", "null", "set", "omap", "pairs", "str", "x"])
_tagged = st.builds(
    '!!{} "{}"'.format,
    _tags,
    st.sampled_from(["", "_", "-", "+", "x", "0x", "0b", ":", "1:", ".", "1" * 5000, "2001-99-99", "1" + ":59" * 500])
    | st.text("0123456789.:_-+xbeE ", max_size=12),
)
_nodes = st.recursive(
    _tagged | st.sampled_from(["1", "a", "*a", "<<", "=", "null", "2001-01-01"]),
    lambda inner: (
        st.builds("&a [{}, {}]".format, inner, inner)
        | st.builds("{{{}: {}, <<: {}}}".format, inner, inner, inner)
        | st.builds("{}{{? {} : {}}}".format, st.sampled_from(["", "!!set ", "!!omap ", "!!pairs "]), inner, inner)
    ),
    max_leaves=6,
)


@often()
@given(st.dictionaries(st.sampled_from([*_REAL, "b"]), _nodes, min_size=1, max_size=3))
def test_any_yaml_as_parameters_is_read_or_refused(place, values):
    """With tags, anchors, aliases and merge keys, which yaml.dump does not write for plain values."""
    lines = [f"{name}: {json.dumps(value)}" for name, value in _REAL.items() if name not in values]
    lines += [f"{name}: {node}" for name, node in values.items()]
    (place / "params.yaml").write_text("\n".join(lines))
    with contextlib.suppress(VitconvError):
        digest_what_is_named(place)


# Reports.


@pytest.fixture(scope="module")
def summary(some, place):
    """The summary that an evaluation writes, as plain data."""
    evaluate(*some, metrics=["accuracy"], thresholds={"accuracy": {"min": 2}}).save(place / "right", place / "m.json")
    for name in PICTURES:
        (place / "right" / f"{name}.png").write_bytes(b"picture")
    found = json.loads((place / "right" / "evaluation.json").read_text())
    known = {"path": "a", "reason": "Another crop.", "expected": "ash", "predicted": None, "max_logit_difference": 0.5}
    found["metrics"]["known_differences"] = 1
    return found | {
        "about": {"model": "mine", "date": "today"},
        "skipped": ["agreement"],
        "splits": [{"split": "fit", "labelled": 2, "right": 1}, {"split": "test", "labelled": 1, "right": 1}],
        "known_differences": [known],
    }


@often()
@given(st.data())
def test_any_evaluation_is_reported_or_refused(place, summary, data):
    broken = json.loads(json.dumps(summary))
    for _ in range(data.draw(st.integers(0, 3))):
        part, key = broken, data.draw(st.sampled_from(sorted(broken)))
        while isinstance(part[key], (dict, list)) and part[key] and data.draw(st.booleans()):
            part = part[key]
            key = data.draw(st.sampled_from(sorted(part) if isinstance(part, dict) else range(len(part))))
        part[key] = data.draw(_plain)
    (place / "right" / "evaluation.json").write_text(json.dumps(broken))
    for name in ("last", "verification"):
        text = data.draw(_plain.map(json.dumps) | st.sampled_from(["", "{", '{"parity": {}}', "[" * 10_000]))
        (place / f"{name}.json").write_text(text)
    with contextlib.suppress(VitconvError):
        verification = data.draw(st.sampled_from([None, place / "verification.json"]))
        report(place / "right", place / "report", last=place / "last.json", verification=verification)
        check_pages(place / "report")


# Folders of models.


@often(0.5)
@given(st.data())
def test_any_configuration_of_a_model_is_read_or_refused(place, folder, data):
    content = json.loads((folder / "config.json").read_text())
    for _ in range(data.draw(st.integers(1, 2))):
        key = data.draw(st.sampled_from(sorted(content)) | _texts)
        value = data.draw(_plain | st.sampled_from([content.get(key), str(content.get(key))]))
        if isinstance(content.get(key), dict) and data.draw(st.booleans()):
            content[key] = content[key] | {data.draw(st.sampled_from([*content[key], "9"])): value}
        else:
            content[key] = value
    if not (place / "model").exists():  # whole, so that only what is changed can be refused
        shutil.copytree(folder, place / "model")
        assert read_info(place / "model").classes
    (place / "model" / "config.json").write_text(json.dumps(content))
    with contextlib.suppress(VitconvError):
        read = read_info(place / "model")
        assert all(isinstance(name, str) for name in read.classes) and all(size > 0 for size in read.input_shape)
