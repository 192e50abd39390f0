"""The folders also load with the last Transformers 4, and give the same outputs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models import ONE_EACH, full_model, pixels_for, reduced

from vitconv.convert import convert_checkpoint
from vitconv.mapping import family_for

TRANSFORMERS_4 = Path(sys.prefix) / "transformers-4.57.6"

pytestmark = pytest.mark.skipif(
    not TRANSFORMERS_4.exists(), reason=f"no {TRANSFORMERS_4.name} beside the environment: `make test-all`"
)

LOAD = """
import json, sys, torch, transformers, vitconv.convert, vitconv.models.huggingface
from pathlib import Path
folder = Path(sys.argv[1])
auto = getattr(transformers, sys.argv[2])
model, info = auto.from_pretrained(folder, output_loading_info=True)
output = model.eval()(torch.load(folder.parent / "pixels.pt"))
torch.save(output.logits if "logits" in output else output.pooler_output, folder.parent / "output.pt")
import timm
timm_model = timm.create_model("vit_tiny_patch16_224", num_classes=model.config.num_labels)
strict = model.load_state_dict(vitconv.convert.convert_state_dict(timm_model.state_dict(), timm_model), strict=True)
print(json.dumps({
    "version": transformers.__version__,
    "dialect": vitconv.models.huggingface.installed_dialect(),
    "loading": {what: list(keys) for what, keys in info.items()},
    "strict": str(strict),
}))
"""


@pytest.mark.parametrize(("classes", "auto"), [(5, "AutoModelForImageClassification"), (0, "AutoModel")])
def test_the_same_folder_loads_under_transformers_4(classes, auto, tmp_path, save):
    model = full_model("vit_tiny_patch16_224", num_classes=classes)
    done = convert_checkpoint(save(model.state_dict()), tmp_path / "model", architecture="vit_tiny_patch16_224")
    pixels = pixels_for(model)
    torch.save(pixels, tmp_path / "pixels.pt")
    printed = subprocess.run(
        [sys.executable, "-c", LOAD, str(done.destination), auto],
        env={**os.environ, "PYTHONPATH": str(TRANSFORMERS_4)},
        check=True,
        capture_output=True,
        text=True,
    )
    found = json.loads(printed.stdout.splitlines()[-1])
    assert found["version"] == "4.57.6"
    assert found["dialect"] == "hub"
    assert not any(found["loading"].values())
    assert found["strict"] == "<All keys matched successfully>"
    assert "not used" not in printed.stderr
    assert "newly initialized" not in printed.stderr
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "output.pt"), model(pixels))


LOAD_ALL = """
import json, sys, torch, transformers
from pathlib import Path
found = {}
for folder in Path(sys.argv[1]).iterdir():
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    if not hasattr(transformers, name):
        found[name] = "missing"
        continue
    model, info = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    case = torch.load(folder / "case.pt")
    with torch.no_grad():
        output = model.eval()(case["pixels"])
        actual = eval("output." + case["output"])
    far = (actual - case["expected"]).abs().max() / case["expected"].abs().max()
    found[name] = [far.item(), *(list(keys) for keys in info.values())]
print(json.dumps(found))
"""

#: The classes that transformers 5 brought.
SINCE_5 = {"RadioModel", "Sapiens2Model", "Sam3ViTModel"}


def test_every_family_s_folder_loads_under_transformers_4(tmp_path):
    for name in ONE_EACH.values():
        model = reduced(name).float()
        torch.save(model.state_dict(), tmp_path / "timm.pth")
        done = convert_checkpoint(tmp_path / "timm.pth", tmp_path / "hf" / name, architecture=model, verify=False)
        pixels = pixels_for(model)
        with torch.no_grad():
            expected = model(pixels)
        name_of_output = family_for(done.architecture).output_expression(done.architecture)
        torch.save({"pixels": pixels, "expected": expected, "output": name_of_output}, done.destination / "case.pt")
    printed = subprocess.run(
        [sys.executable, "-c", LOAD_ALL, str(tmp_path / "hf")],
        env={**os.environ, "PYTHONPATH": str(TRANSFORMERS_4)},
        check=True,
        capture_output=True,
        text=True,
    )
    found = json.loads(printed.stdout.splitlines()[-1])
    assert set(found) == set(ONE_EACH)
    assert {name for name, result in found.items() if result == "missing"} == SINCE_5
    for name, (far, *loading) in ((name, result) for name, result in found.items() if result != "missing"):
        assert far < 1e-5, name
        assert not any(loading), name
