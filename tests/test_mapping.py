import json

import pytest
import timm
import transformers
from models import KINDS, small_model
from safetensors import safe_open

from vitconv import mapping
from vitconv.architecture import from_timm
from vitconv.huggingface import installed_dialect
from vitconv.plan import shapes_of
from vitconv.simplify import simplify


@pytest.mark.parametrize("kind", KINDS)
def test_the_timm_column_is_timm_s_state_dict(kind):
    model = small_model(kind)
    assert mapping.timm_shapes(from_timm(model)) == shapes_of(model.state_dict())


@pytest.mark.parametrize("kind", ["plain", "no qkv bias", "headless", "deit3", "not square"])
def test_the_other_columns_are_transformers_names(kind, tmp_path):
    model = small_model(kind)
    architecture = simplify(model.state_dict(), from_timm(model)).architecture
    config = transformers.ViTConfig(**mapping.config(architecture))
    twin = getattr(transformers, mapping.class_name(architecture))(config)
    rows = list(mapping.rows(architecture))
    memory = {getattr(row, installed_dialect()): row.part_shape for row in rows}
    assert memory == shapes_of(twin.state_dict())
    twin.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        written = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert {row.hub: row.part_shape for row in rows} == written


def test_a_tensor_without_a_place_says_so():
    rows = list(mapping.rows(from_timm(small_model("layer scale"))))
    assert {row.timm for row in rows if row.hub is None} == {
        f"blocks.{block}.{scale}.gamma" for block in (0, 1) for scale in ("ls1", "ls2")
    }


def test_the_config_says_what_timm_does():
    architecture = from_timm(timm.create_model("vit_base_patch16_384", num_classes=2))
    config = transformers.ViTConfig(**mapping.config(architecture, ("cat", "dog")))
    assert config.layer_norm_eps == 1e-6
    assert config.id2label == {0: "cat", 1: "dog"}
    assert config.label2id == {"cat": 0, "dog": 1}
    assert config.image_size == 384


def test_the_config_is_plain_json():
    config = mapping.config(from_timm(small_model("not square")))
    assert json.loads(json.dumps(config)) == config
    assert config["image_size"] == [32, 64]
