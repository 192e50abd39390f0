"""Convert full-size models with the command: the 344 MB demo checkpoint gives timm's recorded answers."""

import csv
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import transformers
from models import full_model, pixels_for

from vitconv.convert import convert_checkpoint, revert_checkpoint, to_huggingface, verify_checkpoint
from vitconv.mapping import timm_shapes
from vitconv.models.catalogue import entries
from vitconv.models.images import load_image

ARTIFACTS = Path(__file__).parents[2] / "artifacts"

needs_artifacts = pytest.mark.skipif(
    not (ARTIFACTS / "outputs.csv").exists(), reason="no artifacts/: `make artifacts`"
)


def read_table(name: str) -> list[dict[str, str]]:
    with (ARTIFACTS / name).open(newline="") as file:
        return list(csv.DictReader(file))


@needs_artifacts
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


# ---- without torch ------------------------------------------------------------------------------------------------

_QUICK = """
import sys
from vitconv.convert import convert_checkpoint
convert_checkpoint(sys.argv[1], sys.argv[2], architecture=sys.argv[3], verify=False)
print([name for name in ("torch", "timm", "transformers", "numpy", "PIL", "huggingface_hub") if name in sys.modules])
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def sparse_checkpoint(path, arch):
    """Write a sparse safetensors file of the architecture's full size, all zeros, which takes no disk space."""
    header, end = {}, 0
    for name, shape in sorted(timm_shapes(replace(entries()[arch].architecture, num_labels=7)).items()):
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def test_converting_2_gigabytes_takes_at_most_64_mebibytes_of_memory(tmp_path):
    """The limit holds for the whole process, including Python. Neither torch nor timm is imported."""
    sparse_checkpoint(tmp_path / "giant.safetensors", "vit_giant_patch14_224")
    assert (tmp_path / "giant.safetensors").stat().st_size > 2e9
    done = subprocess.run(
        [sys.executable, "-c", _QUICK, tmp_path / "giant.safetensors", tmp_path / "hf", "vit_giant_patch14_224"],
        capture_output=True,
        text=True,
        check=True,
    )
    imported, peak = done.stdout.splitlines()
    assert imported == "[]"
    assert int(peak) < 64 * 1024
    assert (tmp_path / "hf" / "model.safetensors").stat().st_size > 2e9


@pytest.mark.parametrize(
    ("name", "cls", "same_bits"),
    [
        ("deit_tiny_distilled_patch16_224", "DeiTForImageClassificationWithTeacher", True),
        ("vit_wee_patch16_reg1_gap_256", "BeitForImageClassification", False),
        ("vit_small_patch16_dinov3", "DINOv3ViTModel", False),
    ],
)
def test_other_families_convert_to_a_folder_and_back(name, cls, same_bits, tmp_path):
    model = full_model(name)
    torch.save(model.state_dict(), tmp_path / "timm.pth")
    done = convert_checkpoint(tmp_path / "timm.pth", tmp_path / "hf", architecture=name)
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["architectures"] == [cls]
    assert all(comparison.same_bits == same_bits for comparison in done.verification.parity.comparisons)
    assert done.verification.same_pixels
    assert verify_checkpoint(tmp_path / "timm.pth", tmp_path / "hf").parity.matches
    back = revert_checkpoint(tmp_path / "hf", tmp_path / "back")
    assert back.timm_name == name and back.parity.matches


FULL_SIZE = [
    ("vit_tiny_patch16_224", {}),
    ("vit_tiny_patch16_384", {}),
    ("vit_tiny_patch16_224", {"patch_size": 32}),  # timm has no name for it
    ("vit_small_patch16_224", {}),
    ("vit_small_patch32_224", {}),
    ("vit_base_patch16_224", {}),
    pytest.param("vit_base_patch32_224", {}, marks=pytest.mark.full),
    pytest.param("vit_large_patch16_224", {"num_classes": 7}, marks=pytest.mark.full),
    pytest.param("vit_large_patch32_224", {"num_classes": 7}, marks=pytest.mark.full),
    ("deit_small_patch16_224", {}),
    pytest.param("vit_base_patch16_224_miil", {}, marks=pytest.mark.full),
    ("vit_small_patch16_224", {"img_size": (160, 256)}),
    ("vit_small_patch16_224", {"in_chans": 1}),
    ("vit_small_patch16_224", {"num_classes": 0}),
]


@pytest.mark.parametrize(("name", "arguments"), FULL_SIZE, ids=lambda value: str(value))
def test_float32_logits_are_equal_bit_for_bit(name, arguments):
    model = full_model(name, **arguments)
    twin = to_huggingface(model)
    pixels = pixels_for(model, batch=1)
    with torch.no_grad():
        output = twin(pixels)
        if model.num_classes:
            assert torch.equal(output.logits, model(pixels))
        else:
            assert torch.equal(output.last_hidden_state, model.forward_features(pixels))
            assert torch.equal(output.pooler_output, model(pixels))


# ---- heads of one's own, hybrids, timm inside Transformers ---------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "classes", "target", "class_name"),
    [
        ("vit_base_patch16_clip_224", 1000, None, "CLIPVisionModelWithProjection"),
        ("vit_base_r50_s16_224", 7, None, "DPTModel"),
        ("vit_small_patch16_dinov3", 7, "head_code", "DINOv3ViTWithTimmHeadForImageClassification"),
        ("eva02_tiny_patch14_224", 7, "timm_wrapper", "TimmWrapperForImageClassification"),
    ],
)
def test_fine_tuned_classifiers_of_full_size(name, classes, target, class_name, tmp_path):
    """Converted, verified from the files, and back: timm's logits."""
    model = timm.create_model(name, num_classes=classes).eval()  # full_model would leave its constants unset
    model.load_state_dict(full_model(name, num_classes=classes).state_dict())
    torch.save(model.state_dict(), tmp_path / "tuned.pth")
    given = {"architecture": name, "target": target}
    done = convert_checkpoint(tmp_path / "tuned.pth", tmp_path / "hf", **given)
    assert done.class_name == class_name and len(done.labels) == classes
    assert verify_checkpoint(tmp_path / "tuned.pth", tmp_path / "hf", architecture=name).parity.matches
    revert_checkpoint(tmp_path / "hf", tmp_path / "back")
    back = timm.create_model(f"local-dir:{tmp_path / 'back'}", pretrained=True).eval()
    pixels = torch.randn(1, 3, *done.data.image_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, actual = model(pixels), back(pixels)
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()
