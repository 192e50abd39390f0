"""Training goes on where timm stopped: the same gradients, and adapters on the converted model."""

import argparse
import copy
import re
from pathlib import Path

import pytest
import timm
import torch
from models import ONE_EACH, SMALL, WITHOUT_HEAD, full_model, output_of, perturbed, pixels_for, reduced, small_model
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy

from vitconv.convert import convert_checkpoint, to_huggingface, to_timm
from vitconv.mapping import family_for
from vitconv.mapping.plan import make_plan, shapes_of
from vitconv.models.huggingface import installed_dialect
from vitconv.models.timm import from_timm, regularisation
from vitconv.parity.float64 import float64_throughout

LABELS = torch.tensor([0, 3])


def loss_of(model, pixels, timm_model):
    """Cross entropy of what timm returns, features taken as logits where there is no head."""
    with float64_throughout(model):
        output = model(pixels)
        answer = output if model is timm_model else output_of(output, timm_model)
        return cross_entropy(answer, LABELS)


@pytest.mark.parametrize(
    ("name", "more"),
    [*((name, {}) for name in sorted(ONE_EACH.values())), *((name, {"num_classes": 0}) for name in WITHOUT_HEAD)],
)
def test_gradients_agree(name, more):
    """Of the loss with respect to the pixels: through every layer, back to the beginning."""
    timm_model = reduced(name, **more)
    hf_model = to_huggingface(timm_model)
    gradients = []
    for model in (timm_model, hf_model):
        pixels = pixels_for(timm_model).double().requires_grad_()
        loss_of(model, pixels, timm_model).backward()
        gradients.append(pixels.grad)
    expected, found = gradients
    assert expected.abs().max() > 0
    assert (found - expected).abs().max() <= 1e-12 * expected.abs().max()


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "vit_base_patch16_siglip_gap_224"]
)
def test_gradients_agree_parameter_by_parameter(name):
    """Where nothing is folded, each parameter's gradient is that of timm's."""
    timm_model = reduced(name)
    hf_model = to_huggingface(timm_model)
    pixels = pixels_for(timm_model).double()
    for model in (timm_model, hf_model):
        model.zero_grad()
        loss_of(model, pixels, timm_model).backward()
    architecture = from_timm(timm_model)
    family = family_for(architecture)
    simple = family.rewrite(timm_model.state_dict(), architecture)
    plan = make_plan(family, simple.architecture, shapes_of(simple.state_dict), installed_dialect())
    gradients = {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in hf_model.named_parameters()
    }
    found = plan.revert(gradients)
    for key, parameter in timm_model.named_parameters():
        if found[key].shape == parameter.shape:  # but for `pos_embed`, which has a row more
            assert torch.allclose(found[key], parameter.grad, rtol=0, atol=1e-13), key


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "vit_base_patch32_clip_224", "vit_base_patch16_siglip_gap_224"]
)
def test_a_lora_adapter_trains_and_merges(name):
    timm_model = reduced(name).float()
    adapted = get_peft_model(to_huggingface(timm_model), LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    before = {key: value.clone() for key, value in adapted.state_dict().items()}
    pixels = pixels_for(timm_model)
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(20):
        loss = cross_entropy(output_of(adapted(pixels), timm_model), LABELS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    changed = {key for key, value in adapted.state_dict().items() if not torch.equal(value, before[key])}
    assert changed and all("lora_" in key for key in changed)

    adapted.eval()
    with torch.no_grad():
        expected = output_of(adapted(pixels), timm_model)
        merged = adapted.merge_and_unload()
        assert torch.allclose(output_of(merged(pixels), timm_model), expected, atol=1e-4)
        # And back: timm runs what was trained in Transformers.
        assert torch.allclose(to_timm(merged, architecture=name)(pixels), expected, atol=1e-4)


# ---- what timm did in training, and Transformers does not -----------------------------------------------------


def test_dropout_and_stochastic_depth_are_reported():
    model = perturbed(timm.create_model("vit_tiny_patch16_224", **SMALL, drop_rate=0.1, drop_path_rate=0.2))
    assert regularisation(model) == {"drop_rate": 0.1, "drop_path_rate": 0.2, "patch_drop_rate": 0.0}
    with pytest.warns(
        UserWarning, match=r"dropout \(rate 0.1\) and stochastic depth \(rate 0.2\), which the converted"
    ):
        to_huggingface(model)


def test_nothing_is_reported_where_there_was_none(recwarn):
    to_huggingface(small_model())
    assert not recwarn.list


def test_what_the_training_script_recorded_is_reported(tmp_path):
    state_dict = full_model("vit_tiny_patch16_224", num_classes=3).state_dict()
    arguments = argparse.Namespace(drop=0.0, drop_path=0.1, lr=1e-3)
    torch.save({"state_dict": state_dict, "args": arguments}, tmp_path / "last.pth.tar")
    done = convert_checkpoint(
        tmp_path / "last.pth.tar", tmp_path / "hf", architecture="vit_tiny_patch16_224", verify=False
    )
    assert any("trained with stochastic depth (rate 0.1)" in note for note in done.notes)


SETTINGS = (
    *("hidden_dropout_prob", "hidden_dropout", "projection_dropout"),
    *("attention_probs_dropout_prob", "attention_dropout"),
    "drop_path_rate",
)


def documented(class_name):
    """The row on a class in docs/converting.md: what stands there on dropout, attention weights, stochastic depth."""
    text = (Path(__file__).parents[2] / "docs" / "converting.md").read_text()
    _, _, table = text.partition("### Dropout and stochastic depth")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| `")]
    (row,) = [
        row for row in rows if re.match(row[0].replace("`", "").replace("…", ".*").replace(", ", "|"), class_name)
    ]
    return row[1:]


def with_settings(hf_model, **settings):
    """The same weights with other settings, in training."""
    config = copy.deepcopy(hf_model.config)
    for name, value in settings.items():
        setattr(getattr(config, "vision_config", config), name, value)
    model = type(hf_model)(config)
    model.load_state_dict(hf_model.state_dict())
    return model.train()


@pytest.mark.parametrize("name", sorted(ONE_EACH.values()))
def test_the_documented_settings_drop_in_training_and_no_others_do(name):
    timm_model = reduced(name).float()
    hf_model, pixels = to_huggingface(timm_model), pixels_for(timm_model)
    row = documented(type(hf_model).__name__)
    config = getattr(hf_model.config, "vision_config", hf_model.config)
    found = set()
    for setting in SETTINGS:
        if hasattr(config, setting):
            model = with_settings(hf_model, **{setting: 0.5})
            with torch.no_grad():
                trained = model(pixels)[0]
                evaluated = model.eval()(pixels)[0]
                assert torch.equal(evaluated, hf_model(pixels)[0])
            # At a rate of 0.5, what is not dropped is doubled: no draw leaves the output as it is in evaluation.
            if not torch.equal(trained, evaluated):
                found.add(setting)
    assert found == {setting for setting in SETTINGS if any(f"`{setting}`" in cell for cell in row)}

    depth = row[2]
    model = with_settings(hf_model, **({} if depth == "none" else {"drop_path_rate": 0.2}))
    rates = [
        getattr(module, "drop_prob", 0.0)
        for module_name, module in model.named_modules()
        if module_name.endswith(".drop_path") and "backbone" not in module_name  # a hybrid's ResNet has its own
    ]
    expected = {
        "none": [],
        "`drop_path_rate`, as in timm": [0.0, 0.2],
        "`drop_path_rate`, the same in every block": [0.2, 0.2],
    }
    assert rates == pytest.approx(expected[depth])
