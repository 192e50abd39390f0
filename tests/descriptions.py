"""Random checkpoints that describe themselves: vitconv reads of each what timm builds of it, or refuses it."""

import argparse
import json
import os
from collections import Counter

import pytest
import timm
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from models import perturbed
from safetensors.torch import save_file
from selfdescribed import TINY
from timm.data import resolve_data_config

from vitconv.checkpoints.description import same_value
from vitconv.convert import inspect_checkpoint
from vitconv.errors import ArchitectureError, VitconvError
from vitconv.models.timm import from_timm

ARCH = "vit_tiny_patch16_224"

three = st.tuples(*[st.sampled_from([0.25, 0.5, 0.485])] * 3).map(list)
data = {
    "mean": st.one_of(st.none(), three, st.just([0.5])),
    "std": st.one_of(st.none(), three, st.just([0.25])),
    "interpolation": st.sampled_from(["", "bilinear", "bicubic", "nearest", None]),
    "crop_pct": st.sampled_from([None, 0.0, 0.9, 1.0]),
    "crop_mode": st.sampled_from([None, "center", "squash"]),
}
model_args = st.fixed_dictionaries(
    {},
    optional={
        "act_layer": st.sampled_from(["gelu", "gelu_tanh", "relu", None]),
        "init_values": st.sampled_from([0.5, None]),
        "no_embed_class": st.booleans(),
        "reg_tokens": st.sampled_from([0, 1]),
        "fc_norm": st.sampled_from([True, False, None]),
        "qkv_bias": st.booleans(),
        "dynamic_img_size": st.booleans(),
        "img_size": st.sampled_from([64, 96, 224]),
    },
)
names = st.sampled_from([ARCH, f"{ARCH}.augreg_in21k", "deit_tiny_patch16_224", "deit_tiny_patch16_224.fb_in1k"])
pools = st.sampled_from([None, "token", "avg"])
sizes = st.sampled_from([None, 64, 96, 224])
arguments = st.fixed_dictionaries(
    {"model": names, "model_kwargs": model_args},
    optional={"gp": pools, "in_chans": st.sampled_from([None, 1, 3]), "img_size": sizes, **data},
)
configurations = st.fixed_dictionaries(
    {"architecture": names.map(lambda name: name.partition(".")[0]), "model_args": model_args},
    optional={
        "num_classes": st.sampled_from([3, 7]),
        "global_pool": st.sampled_from(["token", "avg"]),
        "label_names": st.just(list("abcdefg")),
        "pretrained_cfg": st.fixed_dictionaries(
            {},
            optional={
                **data,
                "input_size": st.sampled_from([[3, 224, 224], [3, 96, 96], [1, 64, 64]]),
                "num_classes": st.sampled_from([3, 7]),
                "fixed_input_size": st.booleans(),
                "tag": st.just("mine"),
            },
        ),
    },
)


def flattened(config):
    """The old form of the same, which has no arguments."""
    return {"architecture": config["architecture"], **config.get("pretrained_cfg", {})} | (
        {"num_classes": config["num_classes"]} if "num_classes" in config else {}
    )


def build(name, **options):
    return perturbed(timm.create_model(name, **{**TINY, **options}))


def case_of_arguments(case, folder):
    key, args = case
    lightning = key == "hyper_parameters"
    args = {**args, "model_kwargs": {**TINY, **args["model_kwargs"]}, "num_classes": 7}
    in_chans = args.get("in_chans") or 3
    model = build(args["model"], num_classes=7, in_chans=in_chans, global_pool=args.get("gp"), **args["model_kwargs"])
    content = {"state_dict": model.state_dict(), key: args if lightning else argparse.Namespace(**args)}
    torch.save(content | ({} if lightning else {"arch": args["model"]}), folder / "last.pth")
    return folder / "last.pth", model, resolve_data_config(args, model=model)


def case_of_folder(case, folder):
    key, config = case
    of_today = {**config, "model_args": {**TINY, **config["model_args"]}}
    config = flattened(config) if key == "flat" else of_today
    (folder / "config.json").write_text(json.dumps(config))
    model = perturbed(timm.create_model(f"local-dir:{folder}", pretrained=False))
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder, model, resolve_data_config(model=model)


cases = st.one_of(
    st.tuples(st.sampled_from(["args", "hyper_parameters"]), arguments),
    st.tuples(st.sampled_from(["folder", "folder", "flat"]), configurations),
)


def check_descriptions(count: int, tmp_path_factory: pytest.TempPathFactory) -> Counter[str]:
    """Assert for random checkpoints that vitconv reads what timm builds, or refuses; return how often it did which."""
    tally: Counter[str] = Counter()

    # The same cases in every run, but for `make fuzz`.
    fixed = "VITCONV_FUZZ_CASES" not in os.environ

    @settings(max_examples=count, deadline=None, derandomize=fixed, suppress_health_check=list(HealthCheck))
    @given(cases, st.booleans())
    def check(case, named):
        folder = tmp_path_factory.mktemp("case")
        try:
            make = case_of_arguments if case[0] in ("args", "hyper_parameters") else case_of_folder
            path, model, config = make(case, folder)
            with torch.no_grad():  # what timm itself cannot run has no right answer
                model(torch.zeros(1, *config["input_size"]))
        except Exception:
            assume(False)
        try:
            expected = from_timm(model)
        except ArchitectureError:
            expected = None
        given_name = (case[1].get("model") or case[1]["architecture"]).partition(".")[0] if named else None
        try:
            found = inspect_checkpoint(path, given_name)
        except VitconvError as error:
            tally["refused" if expected is not None else "no class"] += 1
            tally[error.problem[:90]] += 1
            return
        tally["equal"] += 1
        assert found.architecture == expected
        if expected.num_channels == 1:  # as timm's own resolve_input_data_config has it
            averaged = {name: (sum(config[name]) / len(config[name]),) for name in ("mean", "std")}
            config = {**config, **averaged}
        assert_same_data(found.data, config)
        assert found.data.image_size == tuple(config["input_size"][1:])

    check()
    return tally


def assert_same_data(data, config):
    for name in ("mean", "std", "interpolation", "crop_pct", "crop_mode"):
        assert same_value(getattr(data, name), config[name]), name
