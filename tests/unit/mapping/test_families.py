import json

import pytest
import timm
import transformers
from models import KINDS, ONE_EACH, WITHOUT_HEAD, reduced, small_model
from safetensors import safe_open

from vitconv import mapping
from vitconv.errors import ArchitectureError, InputError
from vitconv.mapping import FAMILIES, family_for
from vitconv.mapping.plan import make_plan, shapes_of
from vitconv.mapping.vit import VIT
from vitconv.models.catalogue import entries
from vitconv.models.huggingface import installed_dialect, make_config
from vitconv.models.timm import from_timm


@pytest.mark.parametrize("kind", KINDS)
def test_the_timm_table_is_timm_s_state_dict(kind):
    model = small_model(kind)
    assert mapping.timm_shapes(from_timm(model)) == shapes_of(model.state_dict())


@pytest.mark.parametrize("name", [name for name, entry in entries().items() if entry.architecture][::3])
def test_the_timm_tables_are_timm_s_state_dicts(name):
    model = reduced(name)
    assert mapping.timm_shapes(from_timm(model)) == shapes_of(model.state_dict())


@pytest.mark.parametrize(
    ("name", "more"),
    [*((name, {}) for name in sorted(ONE_EACH.values())), *((name, {"num_classes": 0}) for name in WITHOUT_HEAD)],
)
def test_the_columns_are_transformers_names(name, more, tmp_path):
    """In memory and in the files that Transformers itself writes, all of them and with their shapes."""
    model = reduced(name, **more)
    architecture = from_timm(model)
    family = family_for(architecture)
    simple = family.rewrite(model.state_dict(), architecture)
    config = make_config(mapping.config(architecture))
    twin = getattr(transformers, config.architectures[0])(config)

    def planned(layout):
        plan = make_plan(family, simple.architecture, shapes_of(simple.state_dict), layout)
        return {move.target: move.shape for move in plan.moves}

    assert planned(installed_dialect()) == shapes_of(twin.state_dict())
    twin.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        written = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    prefix = family.prefix if family.prefix_in_files and type(twin).__name__ in family.base_classes else ""
    assert planned("hub") == {prefix + name: shape for name, shape in written.items()}


def test_every_class_is_tried():
    """But those that the matrix does not reach: timm lists no such architecture, a user may have one."""
    rare = {"CLIPVisionModel", "Dinov2ForImageClassification", "BeitModel"}
    native = {name for family in mapping.FAMILIES for name in family.classes}
    assert native - set(ONE_EACH) == rare


def test_the_config_says_what_timm_does():
    architecture = from_timm(timm.create_model("vit_base_patch16_384", num_classes=2))
    config = make_config(mapping.config(architecture, ("cat", "dog")))
    assert config.layer_norm_eps == 1e-6
    assert config.id2label == {0: "cat", 1: "dog"}
    assert config.label2id == {"cat": 0, "dog": 1}
    assert config.image_size == 384


@pytest.mark.parametrize("name", sorted(ONE_EACH.values()))
def test_the_config_is_plain_json(name):
    config = mapping.config(entries()[name].architecture)
    assert json.loads(json.dumps(config)) == config


def test_sizes_that_are_not_square_are_two():
    assert mapping.config(from_timm(small_model("not square")))["image_size"] == [32, 64]


def test_the_plainest_family_is_taken_and_another_if_asked():
    architecture = from_timm(small_model("layer scale"))
    assert family_for(architecture) is VIT
    assert mapping.class_name(architecture, "dinov2") == "Dinov2ForImageClassification"
    assert {name for name in (family.name for family in FAMILIES) if _expresses(name, architecture)} == {
        *("vit", "dinov2", "beit")
    }


def _expresses(name, architecture):
    try:
        return family_for(architecture, name).name == name
    except ArchitectureError:
        return False


def test_a_target_that_does_not_express_it_says_what_it_lacks():
    architecture = from_timm(small_model("layer scale"))
    with pytest.raises(ArchitectureError, match=r"SiglipForImageClassification does not compute .* a class token"):
        family_for(architecture, "siglip")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_small_patch16_18x2_224", r"has 2 attentions and MLPs side by side \(`blocks.0`\)"),
        ("vit_small_r26_s32_224", r"has a ResNet before the patches \(`patch_embed.backbone`\)"),
        ("vit_tiny_patch16_224", "does not compute"),
    ],
)
def test_what_dinov2_and_dpt_lack(name, message):
    target = "dpt" if "tiny" in name else "dinov2"
    with pytest.raises(ArchitectureError, match=message):
        family_for(entries()[name].architecture, target)


@pytest.mark.parametrize(("labels", "outputs", "expected"), [(5, 5, 5), (0, 64, 0), (2, 64, 0)])
def test_a_pooler_is_a_head_if_it_has_an_output_for_each_label(labels, outputs, expected):
    config = transformers.DPTConfig(num_labels=labels, hidden_size=64, pooler_output_size=outputs)
    assert mapping.CLASSES["DPTModel"].num_labels("DPTModel", config) == expected


def test_an_unknown_target_is_refused():
    with pytest.raises(InputError, match="There is no target 'swin'"):
        family_for(from_timm(small_model()), "swin")
