"""The main job as a user does it: the 344 MB demo checkpoint through the command, and its recorded answers."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from vitconv.preprocess import load_image

ARTIFACTS = Path(__file__).parents[1] / "artifacts"

pytestmark = pytest.mark.skipif(not (ARTIFACTS / "outputs.csv").exists(), reason="no artifacts/: `make artifacts`")


def read_table(name: str) -> list[dict[str, str]]:
    with (ARTIFACTS / name).open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_demo_checkpoint_gives_timm_s_recorded_answers(tmp_path):
    command = [
        str(Path(sys.executable).with_name("vitconv")),
        *("convert", str(ARTIFACTS / "vit-7class.pth"), str(tmp_path / "roofs")),
        *("--arch", "vit_base_patch16_384", "--labels", str(ARTIFACTS / "labels.txt")),
        *("--image", str(ARTIFACTS / "images" / "slate-05.jpg")),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "7 classes" in done.stdout
    assert "float32: logits equal bit for bit" in done.stdout
    assert "pixels: equal bit for bit" in done.stdout

    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "roofs", backend="pil")
    model = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "roofs").eval()
    recorded = {row["path"]: row for row in read_table("outputs.csv")}
    chosen = [row for row in read_table("inputs.csv") if row["split"] == "held-out"][::2]
    assert len({row["label"] for row in chosen}) == 7
    for row in chosen:
        pixels = processor(load_image(ARTIFACTS / row["path"]), return_tensors="pt")
        with torch.no_grad():
            logits = model(**pixels).logits[0]
        answer = recorded[row["path"]]
        expected = torch.tensor([float(answer[label]) for label in model.config.id2label.values()])
        # Recorded in float64 and rounded to four decimals.
        assert (logits - expected).abs().max() <= 0.5e-4 + 1e-5
        assert model.config.id2label[logits.argmax().item()] == answer["class"] == row["label"]
