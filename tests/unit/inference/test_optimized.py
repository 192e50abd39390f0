"""Optimised folders that are damaged, edited or hostile: read as they were judged, or refused in a sentence."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optimizing import reseal

from vitconv.errors import CheckpointError, InputError, ParityError, VitconvError
from vitconv.files import sha256
from vitconv.inference import optimized, predict
from vitconv.inference.optimized import OPTIMIZATION_FILE, read_artefact, write_record
from vitconv.inference.runtime import ModelInfo, open_model, read_info

CASES = int(os.environ.get("VITCONV_FUZZ_CASES", "200"))
PIXELS = np.zeros((1, 3, 32, 32), np.float32)


@pytest.fixture
def fast(woods, tmp_path):
    """A folder with an ONNX model, to be edited."""
    return woods.copy("onnx", tmp_path / "fast")


def change(**values):
    """A change of the artefact."""
    return lambda content: content["artefact"].update(values)


@pytest.mark.slow
def test_a_folder_says_what_it_was_judged_as(woods):
    for recipe, runtime, settings_ in (
        ("bfloat16", "transformers", {}),
        ("onnx", "onnxruntime", {}),
        ("openvino", "openvino", {"precision": "f32"}),
    ):
        found = read_info(woods.made(recipe).folder)
        assert (found.runtime, found.settings, found.input_shape) == (runtime, settings_, (3, 32, 32))
        assert found.classes == read_info(woods.model).classes
        assert found.fingerprint != read_info(woods.model).fingerprint
        assert found.device == ("" if recipe == "bfloat16" else "cpu")


def test_a_record_that_was_written_again_is_the_same(fast):
    before = read_info(fast)
    reseal(fast, lambda content: None)
    assert read_info(fast) == before


@pytest.mark.parametrize("recipe", ["bfloat16", "onnx"])
def test_any_edit_of_the_record_is_told(woods, tmp_path, recipe):
    """Also of the figures: they are the proof."""
    fast = woods.copy(recipe, tmp_path / "fast")
    text = (fast / OPTIMIZATION_FILE).read_text()
    for old, new in (
        ('"changed": 0', '"changed": 1'),
        ('"nbytes"', '"bytes"'),
        (recipe, "other"),
        ('"seal": "', '"seal": "0'),
    ):
        assert old in text
        (fast / OPTIMIZATION_FILE).write_text(text.replace(old, new, 1))
        with pytest.raises(
            CheckpointError, match="optimization.json' has been edited since `vitconv optimize` wrote it"
        ):
            read_info(fast)
    (fast / OPTIMIZATION_FILE).write_text(json.dumps(json.loads(text)))  # another form of the same
    read_info(fast)


WRONG = (None, 7, "", True, [], ["a", 1], {}, {"a": 1}, [[]], 1e400)
TYPES = {
    **dict.fromkeys(("recipe", "runtime", "output", "device", "model", "file"), str),
    "settings": dict,
    "files": dict,
    "instructions": list,
}


@pytest.mark.parametrize("name", TYPES)
def test_a_field_of_another_type_is_named(fast, name):
    artefact = json.loads((fast / OPTIMIZATION_FILE).read_text())["artefact"]
    assert set(artefact) == set(TYPES)
    for value in (value for value in WRONG if not isinstance(value, TYPES[name])):
        reseal(fast, change(**{name: value}))
        with pytest.raises(CheckpointError, match=f"is not a record that vitconv has written: its `{name}` is "):
            read_info(fast)
    reseal(fast, lambda content: content["artefact"].pop(name))
    with pytest.raises(CheckpointError, match=f"its `{name}` is None"):
        read_info(fast)


@pytest.mark.parametrize("artefact", [None, [], "x", {}, 7])
def test_a_record_without_an_artefact(fast, artefact):
    reseal(fast, lambda content: content.update(artefact=artefact))
    with pytest.raises(CheckpointError, match="its `recipe` is None"):
        read_info(fast)


@pytest.mark.parametrize(
    "path", ["../model.onnx", "/etc/passwd", "onnx/../../x", "a\0b", ".", "", "..", "onnx/..", "/"]
)
def test_a_path_that_leaves_the_folder_is_refused(fast, path):
    digest = sha256(fast / "onnx" / "model.onnx")
    for values in ({"file": path}, {"files": {path: digest}}):
        reseal(fast, change(**values))
        with pytest.raises(CheckpointError, match="its `files?` is"):
            read_info(fast)


@pytest.mark.parametrize("name", ["file", "files", "recipe", "output", "settings", "instructions"])
def test_text_that_no_file_can_hold_is_refused(fast, name):
    """Half of a character, which JSON can write and UTF-8 cannot."""
    half = "\ud800"
    value = {"files": {half: "0" * 64}, "settings": {half: half}, "instructions": [half]}.get(name, half)
    reseal(fast, change(**{name: value}))
    with pytest.raises(CheckpointError, match=f"is not a record that vitconv has written: its `{name}` is "):
        read_info(fast)


def test_a_later_schema_or_none(fast):
    for schema in (2, "1", None, 1.5, True):
        if schema is True:
            continue  # equal to 1
        reseal(fast, lambda content, schema=schema: content.update(schema=schema))
        with pytest.raises(CheckpointError, match="and this vitconv reads 1") as caught:
            read_info(fast)
        assert "Install the vitconv that wrote it" in caught.value.remedy


def test_a_runtime_that_is_not_known(fast):
    reseal(fast, change(runtime="abacus"))
    with pytest.raises(CheckpointError, match="is run by 'abacus', which this vitconv does not know"):
        read_info(fast)


def test_another_runtime_than_that_of_the_file(fast):
    for runtime in ("transformers", "torchscript"):
        reseal(fast, change(runtime=runtime))
        with pytest.raises(VitconvError, match="holds none of|is a program"):
            open_model(fast, "cpu")


def test_a_file_without_its_digest(fast):
    reseal(fast, lambda content: content["artefact"]["files"].pop("onnx/model.onnx"))
    with pytest.raises(CheckpointError, match="does not state the SHA-256 of onnx/model.onnx"):
        read_info(fast)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"schema": 1, "schema": 1}', "[" * 100_000, '{"schema": 1e999}', "\xff"]
)
def test_a_record_that_is_damaged(fast, text):
    (fast / OPTIMIZATION_FILE).write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError):
        read_info(fast)


def test_a_record_that_is_huge(fast):
    os.truncate(fast / OPTIMIZATION_FILE, 2**20 + 1)
    with pytest.raises(CheckpointError, match="at most 1,048,576 are allowed"):
        read_info(fast)


@pytest.mark.parametrize(
    "values",
    [
        {"settings": {str(number): "" for number in range(101)}},
        {"settings": {"precision": "x" * 1001}},
        {"files": {f"onnx/{number}": "" for number in range(101)}},
        {"instructions": ["avx2"] * 101},
        {"output": "x" * 1001},
    ],
    ids=["settings", "a setting", "files", "instructions", "output"],
)
def test_a_record_of_more_than_any_recipe_writes(fast, values):
    """Of the settings, each batch and each figure would carry all."""
    reseal(fast, change(**values))
    with pytest.raises(CheckpointError, match=f"is not a record that vitconv has written: its `{[*values][0]}` is "):
        read_info(fast)


@pytest.mark.parametrize("recipe", ["bfloat16", "onnx"])
@pytest.mark.parametrize("what", ["a pipe", "a folder", "a broken link"])
def test_a_record_that_is_no_file_is_not_passed_over(woods, tmp_path, recipe, what):
    """Without it, a folder of Transformers would be run as a converted one."""
    fast = woods.copy(recipe, tmp_path / "fast")
    file = fast / OPTIMIZATION_FILE
    file.unlink()
    {"a pipe": os.mkfifo, "a folder": os.mkdir, "a broken link": lambda path: os.symlink("none", path)}[what](file)
    with pytest.raises(CheckpointError, match="is a pipe|is a folder|has no optimization.json"):
        read_info(fast)


@pytest.mark.parametrize("recipe", ["bfloat16", "onnx"])
def test_a_changed_file_is_named(woods, tmp_path, recipe):
    fast = woods.copy(recipe, tmp_path / "fast")
    for name in read_artefact(fast).files:
        content = (fast / name).read_bytes()
        (fast / name).write_bytes(content + b"\n")
        with pytest.raises(CheckpointError, match=f"{name}' is not the file that `vitconv optimize` wrote and judged"):
            predict(fast, woods.held, tmp_path / "out")
        (fast / name).unlink()
        with pytest.raises(CheckpointError, match=f"{name}' cannot be read: No such file|has no config.json"):
            read_info(fast)
        (fast / name).write_bytes(content)
    read_info(fast)


def test_links_are_followed_as_the_hub_s_cache_has_them(fast, tmp_path):
    """What counts is what they lead to."""
    blob = shutil.move(fast / "onnx" / "model.onnx", tmp_path / "blob")
    (fast / "onnx" / "model.onnx").symlink_to(blob)
    assert open_model(fast, "cpu")(PIXELS).shape == (1, 5)
    (tmp_path / "blob").write_bytes(b"other")
    with pytest.raises(CheckpointError, match="is not the file that `vitconv optimize` wrote"):
        read_info(fast)
    (tmp_path / "blob").unlink()
    with pytest.raises(CheckpointError, match="model.onnx' cannot be read: No such file"):
        read_info(fast)


@pytest.mark.parametrize("what", [os.mkfifo, os.mkdir])
def test_an_artefact_that_is_no_file_is_not_waited_for(fast, what):
    (fast / "onnx" / "model.onnx").unlink()
    what(fast / "onnx" / "model.onnx")
    with pytest.raises(CheckpointError, match="model.onnx' is a (pipe|folder), not a file"):
        read_info(fast)


def test_an_artefact_that_may_not_be_read(fast, monkeypatch):
    def refuse(path, *rest):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(optimized, "sha256", refuse)
    with pytest.raises(CheckpointError, match="cannot be read: Permission denied"):
        read_info(fast)


@pytest.mark.parametrize("name", ["timm_processor.json", "modeling_vitconv.py"])
def test_a_file_that_came_later_is_refused(woods, tmp_path, name):
    """It would decide the pixels, and was not judged."""
    fast = woods.copy("onnx", tmp_path / "fast")
    reseal(fast, lambda content: content["artefact"]["files"].pop(name, None))
    (fast / name).write_text("{}")
    with pytest.raises(CheckpointError, match=f"{name}' was not there when `vitconv optimize` judged the model"):
        read_info(fast)


@pytest.mark.parametrize("recipe, place", [("onnx", "onnx"), ("onnx", "onnx/more"), ("openvino", "openvino")])
def test_a_file_beside_the_model_s_that_no_record_lists_is_refused(woods, tmp_path, recipe, place):
    """It may hold the weights: with other bytes in it, the same record would stand for other numbers."""
    fast = woods.copy(recipe, tmp_path / "fast")
    (fast / place).mkdir(exist_ok=True)
    read_info(fast)
    (fast / place / "weights.bin").write_bytes(b"weights")
    with pytest.raises(CheckpointError, match=r"weights.bin' was not there when `vitconv optimize` judged") as caught:
        read_info(fast)
    assert caught.value.remedy == "Remove it."
    (fast / place / "weights.bin").unlink()
    (fast / place / "link").symlink_to(tmp_path)
    with pytest.raises(CheckpointError, match=r"link' was not there when `vitconv optimize` judged"):
        read_info(fast)


def test_a_model_in_onnx_that_has_no_folder_of_its_own_is_refused(fast):
    """Its weights could be in any file of the folder."""
    shutil.move(fast / "onnx" / "model.onnx", fast)
    files = read_artefact(fast).files
    reseal(fast, change(file="model.onnx", files={"model.onnx": files["onnx/model.onnx"], **files}))
    reseal(fast, lambda content: content["artefact"]["files"].pop("onnx/model.onnx"))
    with pytest.raises(CheckpointError, match="model.onnx, in no folder of its own"):
        read_info(fast)


def test_another_device_is_refused(fast, woods, tmp_path):
    with pytest.raises(InputError, match=r"runs on 'cpu' only: its recipe is onnx") as caught:
        predict(fast, woods.held, tmp_path / "out", device="cuda")
    assert caught.value.remedy == "Choose this device, or another recipe for 'cuda'."
    assert not any((tmp_path / "out").iterdir())
    assert open_model(fast).info.device == "cpu"  # "auto" is the only one


def test_a_processor_that_lacks_instructions(fast, monkeypatch):
    reseal(fast, change(instructions=["avx2", "amx_int8"]))
    monkeypatch.setattr(optimized, "instructions", lambda: ("avx2",))
    read_info(fast)
    with pytest.raises(InputError, match="was made for processors with avx2, amx_int8, and this one has no amx_int8"):
        open_model(fast, "cpu")


def test_a_package_that_is_missing(fast, monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(optimized, "version", missing)
    monkeypatch.setattr(optimized, "packages_distributions", dict)
    with pytest.raises(
        InputError, match="A model of the recipe onnx is run by onnxruntime, which is not installed"
    ) as caught:
        read_info(fast)
    assert "pip install -e '.[onnx]'" in caught.value.remedy


def test_onnxruntime_s_other_distributions_count(fast, monkeypatch):
    def only_gpu(name):
        if name == "onnxruntime-gpu":
            return "1.99"
        raise PackageNotFoundError(name)

    monkeypatch.setattr(optimized, "version", only_gpu)
    monkeypatch.setattr(optimized, "packages_distributions", lambda: {"onnxruntime": ["onnxruntime-gpu"]})
    assert read_info(fast).versions == {"onnxruntime": "1.99"}


def test_what_decides_the_numbers_decides_the_fingerprint(fast):
    before = read_info(fast).fingerprint
    seen = {before}
    for values in ({"output": "other"}, {"settings": {"precision": "f16"}}, {"runtime": "openvino"}):
        reseal(fast, change(**{"output": "logits", "settings": {}, "runtime": "onnxruntime"} | values))
        seen.add(read_info(fast).fingerprint)
    assert len(seen) == 4
    reseal(fast, change(output="logits", settings={}, runtime="onnxruntime", recipe="other", model="0"))
    assert read_info(fast).fingerprint == before


def test_logits_of_another_shape_or_type_are_refused(woods):
    info = read_info(woods.model)
    for found in (
        np.zeros((1, 4), np.float32),
        np.zeros(5, np.float32),
        np.zeros((1, 5)),
        np.zeros((2, 5), np.float16),
    ):
        with pytest.raises(ParityError, match=r"instead of float32 of shape \(1, 5\)"):
            optimized.check_logits(found, PIXELS, info)
    with pytest.raises(ParityError, match="gives list instead of float32"):  # a sequence, in ONNX
        optimized.check_logits([np.zeros((1, 5), np.float32)], PIXELS, info)
    right = np.zeros((1, 5), np.float32)
    assert optimized.check_logits(right, PIXELS, info) is right


# Any record.

_texts = st.sampled_from(["", "onnx/model.onnx", "config.json", "../x", "\0", "\ud800", "logits", "cpu", "cuda", "f32", "x" * 999])  # fmt: skip
_any = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.just(10**400) | st.floats() | _texts | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_texts, inner, max_size=3),
    max_leaves=6,
)
_runtimes = st.sampled_from(["onnxruntime", "openvino", "transformers", "torchscript", "aotinductor", "tensorrt", "?"])


@pytest.fixture(scope="module")
def place(woods, tmp_path_factory):
    """A folder whose record every case overwrites."""
    return woods.copy("onnx", tmp_path_factory.mktemp("any") / "fast")


@settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_record_is_read_or_refused(place, woods, data):
    """With a right seal, as anybody can make one."""
    artefact = json.loads((woods.made("onnx").folder / OPTIMIZATION_FILE).read_text())["artefact"]
    for name in data.draw(st.lists(st.sampled_from([*artefact, "more"]), max_size=3, unique=True)):
        artefact[name] = data.draw(_runtimes if name == "runtime" and data.draw(st.booleans()) else _any)
    content = {"schema": 1, "artefact": data.draw(st.just(artefact) | _any)} | data.draw(
        st.dictionaries(st.sampled_from(["schema", "figures", "model", "\ud800"]), _any, max_size=1)
    )
    try:
        write_record(content, place)
    except UnicodeEncodeError:  # no file can hold it
        return
    try:
        found = read_info(place)
    except VitconvError as error:
        assert error.problem and error.remedy
    else:
        assert isinstance(found, ModelInfo) and found.classes == read_info(woods.model).classes


@settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=80), st.sampled_from([b"", b'{"schema": 1, "artefact": ', b"{", b"\xef\xbb\xbf{}"]))
def test_any_bytes_as_a_record_are_refused(place, content, start):
    (place / OPTIMIZATION_FILE).write_bytes(start + content)
    with pytest.raises(VitconvError):
        read_info(place)


@pytest.mark.parametrize("recipe", ["bfloat16", "onnx", "openvino"])
def test_threads_share_a_runtime(woods, recipe):
    """As in a server: each gets the logits of its own pixels."""
    model = open_model(woods.made(recipe).folder, "cpu")
    several = np.random.default_rng(0).normal(size=(40, 1, 3, 32, 32)).astype(np.float32)
    alone = [model(pixels) for pixels in several]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(model, several))
    np.testing.assert_array_equal(together, alone)


def overwrite(folder):
    """Write zeros into every file of a folder, in place: what had mapped one sees them."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("r+b") as content:
                content.write(bytes(file.stat().st_size))


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe", ["bfloat16", "compiled", "onnx", "onnx-int8", "openvino", "openvino-int8", "torchscript"]
)
def test_a_model_that_is_loaded_answers_the_same_when_its_files_are_written_in_place(woods, tmp_path, recipe):
    fast = woods.copy(recipe, tmp_path / "fast")
    pixels = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    model = open_model(fast, "cpu")
    overwrite(fast)
    found = model(pixels)
    expected = open_model(woods.made(recipe).folder, "cpu")(pixels)
    assert np.array_equal(found, expected) and expected.any()
