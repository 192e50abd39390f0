import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models import full_model, pixels_for

from vitconv.convert import convert_checkpoint
from vitconv.errors import ParityError
from vitconv.huggingface import installed_dialect, load_folder

TRANSFORMERS_4 = Path(sys.prefix) / "transformers-4.57.6"

LOAD = """
import json, sys, torch, transformers, vitconv.convert, vitconv.huggingface
from pathlib import Path
folder = Path(sys.argv[1])
auto = getattr(transformers, sys.argv[2])
model, info = auto.from_pretrained(folder, output_loading_info=True)
output = model.eval()(torch.load(folder.parent / "pixels.pt"))
torch.save(output.logits if "logits" in output else output.pooler_output, folder.parent / "answer.pt")
import timm
timm_model = timm.create_model("vit_tiny_patch16_224", num_classes=model.config.num_labels)
strict = model.load_state_dict(vitconv.convert.convert_state_dict(timm_model.state_dict(), timm_model), strict=True)
print(json.dumps({
    "version": transformers.__version__,
    "dialect": vitconv.huggingface.installed_dialect(),
    "loading": {what: list(keys) for what, keys in info.items()},
    "strict": str(strict),
}))
"""


def test_the_installed_dialect_is_known():
    assert installed_dialect() in ("transformers5", "hub")


@pytest.mark.skipif(
    not TRANSFORMERS_4.exists(), reason=f"no {TRANSFORMERS_4.name} beside the environment: `make test`"
)
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
        assert torch.equal(torch.load(tmp_path / "answer.pt"), model(pixels))


def test_what_transformers_only_warns_of_is_refused(small_checkpoint, tmp_path):
    done = convert_checkpoint(small_checkpoint, tmp_path / "model", architecture="vit_tiny_patch16_224", verify=False)
    config = json.loads((done.destination / "config.json").read_text())
    (done.destination / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 13}))
    with pytest.raises(ParityError, match=r"Transformers reports missing keys in the folder: .*layers?\.12"):
        load_folder(done.destination)
