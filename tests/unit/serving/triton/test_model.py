from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vitconv.errors import CheckpointError
from vitconv.inference import open_model, read_info
from vitconv.inference.answers import softmax
from vitconv.inference.certainty import judge, read_certainty
from vitconv.inference.trusted import trust
from vitconv.serving.tensors import answers
from vitconv.serving.triton import write_store


@pytest.fixture(autouse=True)
def state(monkeypatch, tmp_path):
    """The model sets the variable: it is to be as it was."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "elsewhere"))


@pytest.fixture
def load(triton, arguments):
    def load(store, **more):
        from vitconv.serving.triton.model import TritonPythonModel

        model = TritonPythonModel()
        model.initialize(arguments(store, "model", **more))
        return model

    return load


def pixels(*seeds):
    return [np.random.default_rng(seed).standard_normal((1, 3, 32, 32), np.float32) for seed in seeds]


def test_the_logits_are_the_runtime_s_bit_for_bit(folder, tmp_path, load):
    write_store(folder, tmp_path / "store")
    runtime = open_model(folder, "cpu")
    model = load(tmp_path / "store")
    for own in pixels(1, 2, 3):
        (answer,) = model.execute([{"pixels": own}])
        expected = runtime(own)
        assert np.array_equal(answer["logits"], expected) and answer["logits"].dtype == np.float32
        assert np.array_equal(answer["probabilities"], softmax(expected))
        assert answer["probabilities"].dtype == np.float64


def test_a_calibrated_model_says_how_certain_it_is(certain, tmp_path, load):
    write_store(certain, tmp_path / "store")
    model, certainty = load(tmp_path / "store"), read_certainty(read_info(certain))
    for own in pixels(1, 2, 3):
        (answer,) = model.execute([{"pixels": own}])
        logits = open_model(certain, "cpu")(own)
        expected = answers(logits, judge(certainty, logits, own))
        assert {one.own_name for one in answer.tensors} == set(expected)
        assert all(answer[name].tobytes() == values.tobytes() for name, values in expected.items())
        assert answer["reliable"].dtype == np.uint8 and answer["reliable"].shape == (1, 1)


def test_requests_that_triton_puts_together_are_one_batch_and_each_gets_its_own(folder, tmp_path, load):
    write_store(folder, tmp_path / "store")
    model = load(tmp_path / "store")
    one, two, three = pixels(1, 2, 3)
    answers = model.execute([{"pixels": one}, {"pixels": np.concatenate([two, three])}])
    expected = open_model(folder, "cpu")(np.concatenate([one, two, three]))
    assert [len(answer["logits"]) for answer in answers] == [1, 2]
    assert np.array_equal(np.concatenate([answer["logits"] for answer in answers]), expected)


def test_logits_that_are_not_finite_are_an_error_of_the_server(folder, tmp_path, load):
    write_store(folder, tmp_path / "store")
    (answer,) = load(tmp_path / "store").execute([{"pixels": np.full((1, 3, 32, 32), np.nan, np.float32)}])
    assert answer.tensors == [] and answer.error.code == 1
    assert "not finite" in answer.error.message


def test_a_model_that_cannot_be_run_is_an_error_for_each_request(folder, tmp_path, load):
    write_store(folder, tmp_path / "store")
    answers = load(tmp_path / "store").execute([{"pixels": np.zeros((1, 3, 8, 8), np.float32)}] * 2)
    assert [answer.error.code for answer in answers] == [1, 1]


def test_an_instance_on_a_gpu_opens_the_model_there(folder, tmp_path, load, monkeypatch):
    write_store(folder, tmp_path / "store", device="cuda")
    opened = []

    def open_model(*place):
        opened.append(place)
        return SimpleNamespace(info=read_info(place[0]))

    monkeypatch.setattr("vitconv.inference.runtime.open_model", open_model)
    load(tmp_path / "store", model_instance_kind="GPU", model_instance_device_id="1")
    assert opened == [(tmp_path / "store" / "model" / "1" / "folder", "cuda:1")]


def test_a_program_runs_where_its_maker_is_unknown(woods, tmp_path, load, monkeypatch):
    """Whoever runs a store runs its Python anyway; but only the program that it was written with."""
    made = woods.made("torchscript").folder
    trust(made / "model.pt")
    write_store(made, tmp_path / "store")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "of somebody else"))
    (own,) = pixels(1)
    (answer,) = load(tmp_path / "store").execute([{"pixels": own}])
    with torch.no_grad():
        expected = torch.jit.load(made / "model.pt")(torch.tensor(own)).numpy()
    assert np.array_equal(answer["logits"], expected)
    with (tmp_path / "store" / "model" / "1" / "folder" / "model.pt").open("ab") as file:
        file.write(b"more")
    with pytest.raises(CheckpointError, match="is not the file"):
        load(tmp_path / "store")
