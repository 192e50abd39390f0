import json
import shutil
import stat
import sys
import zipfile

import numpy as np
import onnx
import pytest
import torch
from conftest import CLASSES
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig, ModelInstanceGroup

from vitconv.errors import CheckpointError, DestinationError, InputError
from vitconv.inference import read_info
from vitconv.inference.certainty import LEVELS, Certainty, Oddness, identity, read_certainty, seal
from vitconv.inference.openvino import core
from vitconv.inference.trusted import trust
from vitconv.serving.tensors import models
from vitconv.serving.triton import store as module
from vitconv.serving.triton import write_store


def configurations(store):
    """What Triton reads of each model; a name that it does not know is an error."""
    return {
        file.parent.name: text_format.Parse(file.read_text(), ModelConfig()) for file in store.glob("*/config.pbtxt")
    }


def files(folder):
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}


def shapes(tensors, batch=()):
    return {one.name: (DataType.Name(one.data_type), (*batch, *one.dims)) for one in tensors}


def check_wiring(found):
    """Each tensor of the ensemble has one name, datatype and shape wherever it is taken or given."""
    seen = {}

    def meet(name, known):
        assert seen.setdefault(name, known) == known, name

    for name, known in (shapes(found["vit"].input) | shapes(found["vit"].output)).items():
        meet(name, known)
    for step in found["vit"].ensemble_scheduling.step:
        model = found[step.model_name]
        batch = (1,) if model.max_batch_size else ()
        assert set(step.input_map) == {one.name for one in model.input}
        for given, map in ((model.input, step.input_map), (model.output, step.output_map)):
            for own, name in map.items():
                meet(name, shapes(given, batch)[own])
    return seen


@pytest.fixture(scope="module")
def written(folder, tmp_path_factory):
    return write_store(folder, tmp_path_factory.mktemp("triton") / "store", archive=True)


def test_the_models_are_those_of_every_server(written, folder):
    check_models(configurations(written.folder), models(read_info(folder), calibrated=False))


def check_models(found, expected):
    assert set(found) == set(expected)
    for name, model in expected.items():
        batch = (1,) if found[name].max_batch_size else ()
        for configured, tensors in ((found[name].input, model.inputs), (found[name].output, model.outputs)):
            assert shapes(configured, batch) == {one.name: (f"TYPE_{one.datatype}", one.shape) for one in tensors}
    check_wiring(found)


def test_a_calibrated_model_also_gives_how_certain_it_is(certain, tmp_path):
    store = write_store(certain, tmp_path / "store").folder
    found = configurations(store)
    check_models(found, models(read_info(certain), calibrated=True))
    assert found["vit"].parameters["calibrated"].string_value == "true"
    labelled = {one.name: one.label_filename for one in found["vit"].output}
    assert {name for name, file in labelled.items() if not file} == {"reliable", "unlike"}
    carried = store / "model" / "1" / "folder" / "calibration.json"
    assert carried.read_bytes() == (certain / "calibration.json").read_bytes()
    assert "and how certain they are" in (store / "README.md").read_text()


def test_one_that_is_not_calibrated_says_so(written):
    assert configurations(written.folder)["vit"].parameters["calibrated"].string_value == "false"
    assert "certain" not in (written.folder / "README.md").read_text()


def test_a_calibration_of_another_model_is_not_served(folder, certain, tmp_path):
    place = shutil.copytree(folder, tmp_path / "trees")
    content = json.loads((certain / "calibration.json").read_text())
    (place / "calibration.json").write_text(json.dumps(content | {"temperature": 3.0}))
    with pytest.raises(CheckpointError, match="has been edited"):
        write_store(place, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_an_optimised_folder_s_calibration_goes_with_it(woods, tmp_path):
    made = woods.copy("bfloat16", tmp_path / "fast")
    found = Certainty(0.5, 0.9, 0.2, Oddness("max-logit", -0.5, np.empty((0, 0)), np.empty((0, 0)), -9 + 9 * LEVELS))
    content = {"schema": 1, "processor": "transformers", "model": identity(read_info(made)), **found.to_dict()}
    (made / "calibration.json").write_text(json.dumps({**content, "seal": seal(content)}))
    store = write_store(made, tmp_path / "store").folder
    assert read_certainty(read_info(store / "model" / "1" / "folder")).digest == found.digest


def test_a_processor_computes_one_image_at_a_time(written):
    found = configurations(written.folder)
    assert found["model"].max_batch_size == 1
    for name in ("model", "preprocess"):
        (group,) = found[name].instance_group
        assert (group.kind, group.count) == (ModelInstanceGroup.KIND_CPU, 1)


def test_a_gpu_computes_batches(folder, tmp_path):
    found = configurations(write_store(folder, tmp_path / "store", device="cuda").folder)
    assert found["model"].instance_group[0].kind == ModelInstanceGroup.KIND_GPU
    assert found["model"].max_batch_size == 8 and found["model"].dynamic_batching.max_queue_delay_microseconds
    assert [one.batch_size for one in found["model"].model_warmup] == [1, 8]
    assert found["preprocess"].instance_group[0].count > 1
    check_wiring(found)


def test_what_waits_for_too_long_is_refused(written):
    policy = configurations(written.folder)["model"].dynamic_batching.default_queue_policy
    assert policy.timeout_action == policy.REJECT and policy.default_timeout_microseconds == 5_000_000
    assert not policy.max_queue_size  # see tests/system/test_triton.py


def test_the_labels_are_the_classes(written):
    for name in ("model", "vit"):
        assert (written.folder / name / "labels.txt").read_text().splitlines() == list(CLASSES)
        assert {one.label_filename for one in configurations(written.folder)[name].output} == {"labels.txt"}


def test_it_holds_the_folder_and_vitconv_itself(written, folder):
    carried = written.folder / "model" / "1" / "folder"
    assert read_info(carried).fingerprint == read_info(folder).fingerprint == written.info.fingerprint
    assert configurations(written.folder)["vit"].parameters["fingerprint"].string_value == written.info.fingerprint
    for name in ("model", "preprocess"):
        assert (written.folder / name / "1" / "vitconv" / "serving" / "triton" / f"{name}.py").exists()
    assert not [name for name in files(written.folder) if "__pycache__" in name]
    assert not (written.folder / "preprocess" / "1" / "folder" / "model.safetensors").exists()


def test_it_says_which_packages_the_server_needs(written):
    assert f"torch=={torch.__version__.partition('+')[0]}" in written.requirements
    assert (written.folder / "requirements.txt").read_text().splitlines() == list(written.requirements)
    assert written.to_dict()["requirements"] == list(written.requirements)


def test_timm_is_needed_only_for_its_own_pixels(written, folder, tmp_path):
    own = write_store(folder, tmp_path / "store", processor="timm")
    assert [any(one.startswith("timm==") for one in made.requirements) for made in (written, own)] == [False, True]


def test_the_card_says_how_to_serve_it(written):
    card = (written.folder / "README.md").read_text()
    assert written.info.fingerprint in card and "tritonserver --model-repository=/models" in card
    assert "$$" not in card and "--gpus" not in card


def test_the_zip_file_is_the_folder_and_always_the_same_bytes(written, folder, tmp_path):
    again = write_store(folder, tmp_path / "another name", archive=True)
    assert again.archive.read_bytes() == written.archive.read_bytes()
    with zipfile.ZipFile(written.archive) as archive:
        archive.extractall(tmp_path / "moved")
        assert {(entry.external_attr >> 16) & 0o777 for entry in archive.infolist()} == {0o644, 0o755}
    assert {name: path.read_bytes() for name, path in files(tmp_path / "moved").items()} == {
        name: path.read_bytes() for name, path in files(written.folder).items()
    }
    assert (tmp_path / "moved" / "vit" / "1").is_dir()


def test_every_user_may_read_it(written):
    for path in written.folder.rglob("*"):
        assert path.stat().st_mode & stat.S_IROTH, path


@pytest.mark.parametrize("name", ["store", "store.zip"])
def test_what_exists_is_not_replaced(folder, tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(DestinationError, match=f"{name}' exists already"):
        write_store(folder, tmp_path / "store", archive=True)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "mine")]


def test_a_device_is_not_copied(folder, tmp_path):
    """Others, such as /dev/zero, have no end."""
    model = shutil.copytree(folder, tmp_path / "model")
    (model / "README.md").unlink(missing_ok=True)
    (model / "README.md").symlink_to("/dev/null")
    with pytest.raises(CheckpointError, match="README.md' is a device, not a file"):
        write_store(model, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_disk_that_is_full_for_many_files_is_named_once(folder, tmp_path, monkeypatch):
    def full(source, destination, **_):
        raise OSError(28, "No space left on device", source, None, destination)

    real = shutil.copyfile
    monkeypatch.setattr(shutil, "copy2", full)  # of shutil.copytree
    monkeypatch.setattr(
        shutil, "copyfile", lambda source, to, **_: full(source, to) if "/1/vitconv/" in f"{to}" else real(source, to)
    )
    with pytest.raises(DestinationError) as refused:
        write_store(folder, tmp_path / "store")
    assert refused.value.problem == f"'{tmp_path / 'store'}' cannot be written: No space left on device."


def test_nothing_is_left_of_a_store_that_cannot_be_written(folder, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_zip", full)
    with pytest.raises(DestinationError, match="No space left on device"):
        write_store(folder, tmp_path / "store", archive=True)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_changes_while_it_is_copied_is_refused(folder, tmp_path, monkeypatch):
    copy = module._copy

    def change(source, names, destination):
        copy(source, names, destination)
        if (destination / "model.safetensors").exists():
            config = json.loads((destination / "config.json").read_text())
            (destination / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-3}))

    monkeypatch.setattr(module, "_copy", change)
    with pytest.raises(CheckpointError, match="have changed while they were copied"):
        write_store(folder, tmp_path / "store")
    assert list(tmp_path.iterdir()) == []


def test_without_the_protocol_s_classes(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
    with pytest.raises(InputError, match="needs packages that are not installed: tritonclient") as caught:
        write_store(folder, tmp_path / "store")
    assert "[triton]" in caught.value.remedy


@pytest.mark.parametrize("backend", ["pytorch", "onnxruntime", "openvino"])
def test_a_backend_that_does_not_read_the_folder(folder, tmp_path, backend):
    with pytest.raises(InputError, match=f"backend {backend} does not run the model .* run by transformers") as caught:
        write_store(folder, tmp_path / "store", backend=backend)
    assert "Choose another backend: python." in caught.value.remedy


def test_a_device_that_no_store_is_for(folder, tmp_path):
    with pytest.raises(InputError, match="for no device 'tpu'"):
        write_store(folder, tmp_path / "store", device="tpu")


@pytest.mark.slow
def test_a_folder_for_a_processor_is_for_no_gpu(woods, tmp_path):
    with pytest.raises(InputError, match="runs on 'cpu' only"):
        write_store(woods.made("onnx").folder, tmp_path / "store", device="cuda")


def test_a_stranger_s_program_is_refused(woods, tmp_path, monkeypatch):
    made = woods.made("torchscript").folder
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for backend in ("python", "pytorch"):
        with pytest.raises(CheckpointError, match="is a program"):
            write_store(made, tmp_path / "store", backend=backend)


# ---- Triton's other backends: not run here; their configurations are compared with what they read -------------------


def written_for(backend, made, store):
    """The model's configuration and the file that Triton loads."""
    found = configurations(write_store(made, store, backend=backend).folder)
    assert found["model"].backend == backend
    check_wiring(found)
    assert set(shapes(found["vit"].output)) == {"logits"}
    return found["model"], store / "model" / "1" / (found["model"].default_model_filename or "model.pt")


def test_onnx_has_the_tensors_that_are_configured(woods, tmp_path):
    configured, file = written_for("onnxruntime", woods.made("onnx").folder, tmp_path / "store")
    graph = onnx.load(file).graph
    onnx.checker.check_model(file)
    for own, given in ((graph.input, configured.input), (graph.output, configured.output)):
        assert [one.name for one in own] == [one.name for one in given]
        for one, known in zip(own, given, strict=True):
            first, *rest = one.type.tensor_type.shape.dim
            assert first.dim_param and [size.dim_value for size in rest] == list(known.dims)
            assert one.type.tensor_type.elem_type == onnx.TensorProto.FLOAT and known.data_type == DataType.TYPE_FP32


@pytest.mark.slow
def test_openvino_has_the_tensors_that_are_configured(woods, tmp_path):
    configured, file = written_for("openvino", woods.made("openvino-bf16").folder, tmp_path / "store")
    program = core().read_model(file)
    assert {name: one.string_value for name, one in configured.parameters.items()} == {
        "HINT_BF16": "YES",
        "PERFORMANCE_HINT": "LATENCY",
    }
    for own, given in ((program.inputs, configured.input), (program.outputs, configured.output)):
        assert len(own) == len(given) == 1
        assert given[0].name in own[0].get_names()
        first, *rest = own[0].get_partial_shape()
        assert first.is_dynamic
        for size, known in zip(rest, given[0].dims, strict=True):
            assert size.is_dynamic or size.get_length() == known


def test_torchscript_takes_and_gives_one_tensor(woods, tmp_path):
    made = woods.made("torchscript").folder
    trust(made / "model.pt")
    configured, file = written_for("pytorch", made, tmp_path / "store")
    assert configured.platform == "pytorch_libtorch"
    assert [one.name for one in (*configured.input, *configured.output)] == ["INPUT__0", "OUTPUT__0"]
    with torch.no_grad():
        logits = torch.jit.load(file)(torch.zeros(1, *configured.input[0].dims))
    assert logits.shape == (1, *configured.output[0].dims) and logits.dtype == torch.float32


@pytest.mark.slow
def test_openvino_in_float32_is_left_to_the_backend_that_can_say_so(woods, tmp_path):
    with pytest.raises(InputError, match="no setting for float32"):
        write_store(woods.made("openvino").folder, tmp_path / "store", backend="openvino")
    write_store(woods.made("openvino").folder, tmp_path / "store")


def test_an_artefact_that_changes_while_it_is_copied_is_refused(woods, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "sha256", lambda file: "another")
    with pytest.raises(CheckpointError, match="have changed while they were copied"):
        write_store(woods.made("onnx").folder, tmp_path / "store", backend="onnxruntime")


def test_probabilities_are_the_softmax_of_the_logits():
    from vitconv.inference.answers import probabilities

    logits = np.array([1, 2, 3], np.float32)
    expected = np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum()
    assert np.allclose(probabilities(logits), expected, rtol=1e-15)


@pytest.mark.parametrize("destination", [".", "..", "/"])
def test_a_destination_without_a_name(folder, destination):
    with pytest.raises(DestinationError, match=f"'{destination}' exists already"):
        write_store(folder, destination, archive=True)
