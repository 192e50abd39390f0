import pytest
import timm
from models import small_model, wrapped_arguments

from vitconv import mapping
from vitconv.architecture import WrappedArchitecture
from vitconv.convert import convert_state_dict, to_huggingface
from vitconv.errors import ArchitectureError, InputError
from vitconv.mapping.plan import make_plan
from vitconv.mapping.wrapper import WAY_OUT, WRAPPER
from vitconv.models.catalogue import entries, verdicts
from vitconv.models.timm import from_timm

SHAPES = {"blocks.0.norm1.weight": (8,), "bn.num_batches_tracked": (), "head.weight": (3, 8)}
KNOWN = WrappedArchitecture("eva02_tiny_patch14_224", {}, (56, 56), 3, 3, 8, (4, 4), SHAPES)


def test_it_is_never_chosen_by_itself():
    assert WRAPPER not in mapping.FAMILIES
    assert not set(WRAPPER.classes) & set(mapping.CLASSES)
    assert {mapping.family_for(entry.architecture).name for entry in entries().values() if entry.architecture} == {
        family.name for family in mapping.FAMILIES
    }


def test_it_is_taken_by_its_name():
    assert mapping.family_for(KNOWN, "timm_wrapper") is WRAPPER
    assert mapping.class_name(KNOWN, "timm_wrapper") == "TimmWrapperForImageClassification"
    assert mapping.timm_shapes(KNOWN) == SHAPES
    with pytest.raises(InputError, match="There is no target 'timm_wraper'") as caught:
        mapping.family_for(from_timm(small_model()), "timm_wraper")
    assert "timm_wrapper" in caught.value.remedy


@pytest.mark.parametrize("layout, prefix", [("hub", ""), ("transformers5", "timm_model.")])
def test_every_tensor_keeps_its_name(layout, prefix):
    plan = make_plan(WRAPPER, KNOWN, SHAPES, layout)
    assert {move.source: move.target for move in plan.moves} == {name: prefix + name for name in SHAPES}


@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224", "vit_dpwee_patch16_reg1_gap_256"])
def test_a_refusal_of_the_modules_names_it_as_the_way_out(name):
    with pytest.raises(ArchitectureError) as caught:
        from_timm(timm.create_model(name, **wrapped_arguments(name)))
    assert caught.value.remedy.startswith(WAY_OUT)


def test_a_refusal_of_a_family_names_it_as_the_way_out():
    name = "vit_so150m_patch16_reg4_map_256"
    with pytest.raises(ArchitectureError, match="attention pooling") as caught:
        to_huggingface(timm.create_model(name, **wrapped_arguments(name), fc_norm=True))
    assert caught.value.remedy.startswith(
        "Keep this model in timm, or take --target timm_wrapper: timm inside Transformers (needs timm; no native "
        "attention maps or backends, no q_proj for PEFT)."
    )


def test_it_is_no_target_for_models_in_memory():
    model = small_model()
    with pytest.raises(InputError, match="nothing to convert in memory"):
        to_huggingface(model, target="timm_wrapper")
    with pytest.raises(InputError, match="nothing to convert in memory"):
        convert_state_dict(model.state_dict(), model, target="timm_wrapper")


def test_the_list_says_that_it_takes_all():
    with pytest.raises(InputError, match=f"All of timm's {len(entries())} Vision Transformers convert"):
        verdicts("timm_wrapper")
