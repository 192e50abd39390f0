import io

import numpy as np
import pytest
from google.protobuf import json_format, text_format
from PIL import Image
from tritonclient.grpc.model_config_pb2 import ModelConfig

from vitconv.inference import open_preprocessor, read_info
from vitconv.serving.triton import write_store


def picture():
    buffer = io.BytesIO()
    values = np.random.default_rng(0).integers(0, 256, (45, 61, 3), np.uint8)
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def load(triton, arguments):
    def load(store):
        from vitconv.serving.triton.preprocess import TritonPythonModel

        configuration = text_format.Parse((store / "preprocess" / "config.pbtxt").read_text(), ModelConfig())
        model = TritonPythonModel()
        text = json_format.MessageToJson(configuration, preserving_proto_field_name=True)
        model.initialize(arguments(store, "preprocess", model_config=text))
        return model

    return load


def request(content):
    return {"image": np.frombuffer(content, np.uint8).copy()}


@pytest.mark.parametrize("processor", ["transformers", "timm"])
def test_the_pixels_are_the_preprocessor_s(folder, tmp_path, load, processor):
    write_store(folder, tmp_path / "store", processor=processor)
    (answer,) = load(tmp_path / "store").execute([request(picture())])
    expected = open_preprocessor(read_info(folder), processor)(picture())
    assert answer["pixels"].shape == (1, 3, 32, 32) and np.array_equal(answer["pixels"][0], expected)


def test_what_is_no_image_is_the_client_s_error_and_no_other_s(folder, tmp_path, load):
    write_store(folder, tmp_path / "store")
    broken = (b"", b"no image", picture()[:100])
    answers = load(tmp_path / "store").execute([*map(request, broken), request(picture())])
    assert [answer.error and answer.error.code for answer in answers] == [3, 3, 3, None]
    assert "The image is not an image that can be read" in answers[1].error.message


def test_the_image_that_warms_it_up_can_be_read(folder, tmp_path, load):
    write_store(folder, tmp_path / "store")
    content = (tmp_path / "store" / "preprocess" / "warmup" / "image.png").read_bytes()
    (answer,) = load(tmp_path / "store").execute([request(content)])
    assert answer.error is None
