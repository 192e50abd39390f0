"""The command as a user runs it: its own process, exit code, stdout and stderr."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from commands import run
from models import full_model
from PIL import Image
from safetensors.torch import load_file, save_file

import vitconv.convert
from vitconv.cli.options import complete_architecture as complete

ARCH = ["--arch", "vit_tiny_patch16_224"]


def run_process(*arguments, **kwargs):
    command = [str(Path(sys.executable).with_name("vitconv")), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **kwargs)


def test_converts_and_says_what_was_proved(small_checkpoint, tmp_path):
    (tmp_path / "labels.txt").write_text("a\nb\nc\nd\ne\n")
    code, out, err = run("convert", small_checkpoint, tmp_path / "model", *ARCH, "--labels", tmp_path / "labels.txt")
    assert code == 0
    assert "ViTForImageClassification, width 192, 12 blocks, 3 heads, patch 16x16, image 224x224" in out
    assert "preprocessing: 224x224, bicubic, crop 0.9 (center), mean 0.5/0.5/0.5, std 0.5/0.5/0.5: timm's" in out
    assert "float64: logits equal bit for bit, with 32 tokens of the picture" in out
    assert "float32: logits equal bit for bit\n" in out
    assert "pixels: equal bit for bit" in out
    assert "Comparing the models in float64" in err
    assert out.startswith(f"✓ {tmp_path / 'model'}: converted and proved\n")
    *_, loading, following = out.rpartition("load it:\n")[2].partition("next:\n")[::2]
    assert following == f"  vitconv evaluate {tmp_path / 'model'} photos --source {small_checkpoint}\n"
    names = {}
    exec("\n".join(line.strip() for line in loading.splitlines()), names)
    assert names["model"].config.id2label[4] == "e" and names["processor"].crop_size
    assert transformers.AutoConfig.from_pretrained(tmp_path / "model").id2label[4] == "e"


@pytest.fixture
def full_disk():
    """Call it with a number: as on a full disk, no file gets longer than this any more."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("options", [[], ["--no-verify"], ["--dtype", "float16", "--no-verify"]])
def test_a_full_disk_while_converting(options, small_checkpoint, tmp_path, full_disk):
    full_disk(100_000)
    code, _, err = run("convert", small_checkpoint, tmp_path / "model", *ARCH, *options)
    assert code == 1
    assert f"error: '{tmp_path}/model' cannot be written: File too large." in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["inspect", "convert"])
def test_a_file_whose_name_is_not_utf_8(command, small_checkpoint, tmp_path):
    """As systems wrote names before UTF-8; torch cannot map such a file."""
    mine = shutil.copy(small_checkpoint, os.fsdecode(os.fsencode(tmp_path) + b"/gr\xfc\xdfe.pth"))
    arguments = [command, mine, *([tmp_path / "model"] if command == "convert" else []), *ARCH]
    done = subprocess.run([sys.executable, "-m", "vitconv", *arguments], capture_output=True, text=True)
    assert done.returncode == 1 and os.listdir(tmp_path) == [os.path.basename(mine)]
    assert f"error: The name of '{tmp_path}/gr\\udcfc\\udcdfe.pth' is not UTF-8, or that of a folder" in done.stderr
    assert done.stderr.splitlines()[-1] == "Rename it, or choose another path."


def test_a_full_disk_while_reverting(folder, tmp_path, full_disk):
    full_disk(100_000)
    code, _, err = run("revert", folder, tmp_path / "back", "--no-verify")
    assert code == 1
    assert f"error: '{tmp_path}/back' cannot be written: File too large." in err
    assert not list(tmp_path.iterdir())


def test_overwrites_only_when_told(small_checkpoint, tmp_path):
    arguments = ["convert", small_checkpoint, tmp_path / "model", *ARCH, "--no-verify"]
    code, out, _ = run(*arguments)
    assert code == 0
    assert "not verified (--no-verify)" in out
    assert json.loads((tmp_path / "model" / "parity.json").read_text())["verified"] is False
    code, _, err = run(*arguments)
    assert code == 1
    assert "exists already" in err
    assert run(*arguments, "--overwrite", "--dtype", "float16")[0] == 0
    assert transformers.AutoConfig.from_pretrained(tmp_path / "model").dtype == torch.float16


@pytest.fixture(scope="module")
def folder(small_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify") / "model"
    assert run("convert", small_checkpoint, folder, *ARCH, "--no-verify")[0] == 0
    return folder


def test_verify_prints_the_table(small_checkpoint, folder):
    code, out, _ = run("verify", small_checkpoint, folder, "--dtype", "bfloat16")
    assert code == 0
    assert "bytes: 5,525,381 of 5,525,381 elements moved bit for bit" in out
    assert "pixels: equal bit for bit" in out
    assert "float64" in out and "bfloat16" in out and "blocks.11" in out


def test_verify_prints_warnings(small_checkpoint, tmp_path):
    (tmp_path / "labels.txt").write_text("a\nb\nc\nd\ne\n")
    model = tmp_path / "model"
    run("convert", small_checkpoint, model, *ARCH, "--no-verify", "--labels", tmp_path / "labels.txt")
    code, _, err = run("verify", small_checkpoint, model)
    assert code == 0
    assert "warning: The class names are not proved" in err


def test_verify_takes_the_options_that_the_record_would_supply(tmp_path, small_checkpoint):
    weights = torch.load(small_checkpoint)
    weights = weights.get("state_dict", weights)
    torch.save({"model": weights, "ema": {name: tensor + 1 for name, tensor in weights.items()}}, tmp_path / "w.pth")
    given = ("--no-ema", "--headless", "--img-size", 96, 96)
    assert run("convert", tmp_path / "w.pth", tmp_path / "model", *ARCH, "--no-verify", *given)[0] == 0
    code, _, err = run("verify", tmp_path / "w.pth", tmp_path / "model")
    assert code == 0
    for option in ("--no-ema", "--headless", "--img-size 96 96"):
        assert f"is only stated by the folder's own parity.json: pass {option} if it is right." in " ".join(
            err.split()
        )
    code, _, err = run("verify", tmp_path / "w.pth", tmp_path / "model", *given)
    assert code == 0 and "warning" not in err


def test_verify_prints_json_for_machines(small_checkpoint, folder):
    code, out, _ = run("verify", small_checkpoint, folder, "--json")
    figures = json.loads(out)
    assert code == 0
    assert figures["elements"]["moved"] == 5525381
    assert figures["parity"]["float64"]["matches"] is True


def test_verify_names_the_tensor_that_was_edited(small_checkpoint, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "edited")
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    tensors["vit.encoder.layer.5.intermediate.dense.bias"][7] += 1e-3
    save_file(tensors, tmp_path / "edited" / "model.safetensors", metadata={"format": "pt"})
    code, out, err = run("verify", small_checkpoint, tmp_path / "edited")
    assert code == 1
    assert out == ""
    assert (
        "error: 1 of 200 tensors differ from what the source makes of them: vit.encoder.layer.5.intermediate.dense.bias."
        in err
    )


def test_verify_names_the_setting_that_was_edited(small_checkpoint, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "edited")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "edited" / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-12}))
    code, _, err = run("verify", small_checkpoint, tmp_path / "edited")
    assert code == 1
    assert "`layer_norm_eps` in config.json is 1e-12 instead of 1e-06." in err


@pytest.mark.slow
def test_data_config(small_checkpoint, tmp_path):
    (tmp_path / "data.json").write_text('{"mean": [0.1, 0.2, 0.3]}')
    code, out, _ = run("convert", small_checkpoint, tmp_path / "model", *ARCH, "--data-config", tmp_path / "data.json")
    assert code == 0
    assert (
        "preprocessing: 224x224, bicubic, crop 0.9 (center), mean 0.1/0.2/0.3, std 0.5/0.5/0.5: mean as given" in out
    )
    processor = json.loads((tmp_path / "model" / "preprocessor_config.json").read_text())
    assert processor["image_mean"] == [0.1, 0.2, 0.3]
    assert run("verify", small_checkpoint, tmp_path / "model")[0] == 0


def test_says_which_processor_makes_timm_s_pixels(small_checkpoint, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (248, 251, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "image.png")
    arguments = ("--image", tmp_path / "image.png")
    code, out, _ = run("convert", small_checkpoint, tmp_path / "model", *ARCH, *arguments)
    assert code == 0
    assert (
        "pixels: Transformers begins the crop one pixel earlier than timm (image 251x248). "
        "With timm_processor.json equal bit for bit.\n"
    ) in out
    assert out.count("pixels: ") == 1


def test_names_timm_s_processor_where_there_is_no_other(small_checkpoint, tmp_path):
    (tmp_path / "data.json").write_text('{"crop_mode": "border"}')
    arguments = ("--data-config", tmp_path / "data.json")
    code, out, err = run("convert", small_checkpoint, tmp_path / "model", *ARCH, *arguments)
    assert code == 0
    assert "pixels: no preprocessor_config.json. With timm_processor.json equal bit for bit.\n" in out
    assert "warning: No preprocessor_config.json: " in err
    assert "Prepare images with timm_processor.json (it needs timm), as in the folder's README.md.\n" in err


def test_inspect_shows_the_moves_and_writes_nothing(small_checkpoint):
    before = sorted(small_checkpoint.parent.iterdir())
    code, out, _ = run("inspect", small_checkpoint, *ARCH)
    assert code == 0
    assert "5 classes, gelu, eps 1e-06" in out
    assert "blocks.{0…11}.attn.qkv.weight[192:384]" in out
    assert "vit.encoder.layer.{0…11}.attention.attention.key.weight" in out
    assert "152 tensors become 200; none is refused." in out
    assert sorted(small_checkpoint.parent.iterdir()) == before


def test_says_how_the_weights_were_found(small_checkpoint, save, tmp_path):
    weights = torch.load(small_checkpoint)
    path = save({"state_dict": {f"module.{n}": t for n, t in weights.items()}, "state_dict_ema": weights, "epoch": 3})
    code, _, err = run("inspect", path, *ARCH)
    assert code == 0
    assert "note: The checkpoint holds trained weights and their EMA: the EMA was taken (--no-ema" in err
    assert "note: The weights are those at ['state_dict_ema']." in err
    code, _, err = run("convert", path, tmp_path / "model", *ARCH, "--no-ema", "--no-verify")
    assert code == 0
    assert "the trained weights were taken" in err
    assert "note: The weights are those at ['state_dict'], names beginning with 'module.'." in err


@pytest.mark.slow
def test_a_head_apart_is_left_out_only_when_told(small_checkpoint, save, tmp_path):
    weights = torch.load(small_checkpoint)
    head = {name.removeprefix("head."): weights.pop(name) for name in ("head.weight", "head.bias")}
    path = save({"backbone": weights, "head": head})
    code, _, err = run("convert", path, tmp_path / "model", *ARCH)
    assert code == 1
    assert "has no head, but `head.weight` beside it looks like one (and so do head.bias)." in err
    assert "--headless" in err.splitlines()[-1]
    assert run("inspect", path, *ARCH, "--headless")[0] == 0
    code, out, err = run("convert", path, tmp_path / "model", *ARCH, "--headless", "--no-verify")
    assert code == 0
    assert "ViTModel" in out
    assert "note: The model is converted without a head (--headless): head.weight, head.bias are left out." in err
    # The folder records it; to say it again does no harm.
    for arguments in ([], ["--headless"]):
        assert run("verify", path, tmp_path / "model", *arguments)[0] == 0


def test_inspect_shows_what_is_made(save):
    from models import full_model

    path = save(full_model("deit3_small_patch16_224", num_classes=3).state_dict())
    code, out, _ = run("inspect", path, "--arch", "deit3_small_patch16_224")
    assert code == 0
    assert "blocks.{0…11}.mlp.fc2.weight" in out.partition(": LayerScale folded in")[0]
    assert "pos_embed: a zero row for the class token in front" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.pth", "DST", *ARCH], "There is no file 'none.pth'."),
        (
            ["SRC", "DST"],
            "the weights fit 3 timm architectures, which compute or prepare images differently. They are: deit_tiny_patch16_224 (image 224x224",
        ),
        (["SRC", "DST", "--arch", "vit_tiny_patch16_225"], "has no architecture named 'vit_tiny_patch16_225'."),
        (["SRC", "DST", "--arch", "vit_base_patch16_rpn_224"], "norms after attention and MLP (`blocks.0`)"),
        (["SRC", "DST", "--arch", "vit_small_patch16_224"], "of another shape (cls_token is [1, 1, 192] instead of"),
        (["SRC", "DST", *ARCH, "--img-size", "8", "8"], "`pos_embed` was trained for 196"),
        (["SRC", "DST", *ARCH, "--labels", "none.txt"], "There is no label file 'none.txt'."),
        (["SRC", "DST", *ARCH, "--image", "TEXT"], "is not an image that can be read."),
        (["TEXT", "DST", *ARCH], "is not a checkpoint"),
    ],
)
def test_a_user_s_mistake_is_one_error_line_and_a_remedy(arguments, message, small_checkpoint, tmp_path):
    (tmp_path / "text.pth").write_text("hello")
    places = {"SRC": small_checkpoint, "DST": tmp_path / "model", "TEXT": tmp_path / "text.pth"}
    code, out, err = run("convert", *(places.get(argument, argument) for argument in arguments))
    assert code == 1
    assert out == ""
    lines = [line for line in err.splitlines() if not line.endswith("…")]
    assert len(lines) == 2
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert lines[1].endswith((".", "?"))
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("option", "name", "message"),
    [
        ("--image", "pipe", "pipe' is not an image that can be read: it is a pipe."),
        ("--image", "thin.png", "thin.png' is 1x200000 pixels, and 248x49600000 while it is resized; at most"),
        ("--labels", "pipe", "The label file '"),
        ("--data-config", "pipe", "The data configuration '"),
    ],
)
@pytest.mark.parametrize("command", ["convert", "verify"])
def test_a_file_that_never_ends_or_grows_too_large_is_refused(
    small_checkpoint, folder, tmp_path, command, option, name, message
):
    os.mkfifo(tmp_path / "pipe")
    Image.new("L", (1, 200_000)).save(tmp_path / "thin.png")
    destination = tmp_path / "new" if command == "convert" else folder
    arch = ARCH if command == "convert" else ()
    code, _, err = run(command, small_checkpoint, destination, *arch, option, tmp_path / name)
    assert code == 1
    assert f"error: {message}" in err or f"error: '{tmp_path}/{message}" in err
    assert not (tmp_path / "new").exists()


def test_control_characters_in_names_are_escaped(save):
    code, _, err = run("inspect", save({"pos_embed": torch.ones(1, 197, 192), "\x1b[2Jboo": torch.ones(1)}), *ARCH)
    assert code == 1
    assert "\x1b" not in err


def test_a_destination_that_is_not_utf8_is_refused(small_checkpoint, folder, write_images, tmp_path):
    """Nothing could open it afterwards. The error shows half a character escaped, where stderr is strict, too."""
    for command in (
        ["convert", small_checkpoint, tmp_path / "con\udcff", *ARCH, "--no-verify"],
        ["revert", folder, tmp_path / "re\udcff", "--no-verify"],
    ):
        code, _, err = run(*command)
        assert code == 1 and not command[2].exists()
        assert f"{tmp_path}/{command[2].name[:-1]}\\udcff' is not UTF-8" in err
    images = write_images(1)
    code, _, err = run("predict", folder, images, tmp_path / "pre\udcff")
    assert code == 1 and "pre\\udcff' is not UTF-8" in err and not (tmp_path / "pre\udcff").exists()
    images.rename(images.parent / "list\udcff")
    code, _, err = run("predict", folder, images.parent / "list\udcff", tmp_path / "predictions")
    assert code == 1 and "list\\udcff' is not UTF-8" in err


def test_wrong_usage_is_exit_2():
    assert run("convert")[0] == 2
    assert run("convert", "a", "b", "--dtype", "int3")[0] == 2
    assert run("transmogrify")[0] == 2


@pytest.mark.parametrize("command", ["convert", "verify", "revert", "inspect"])
def test_an_interrupt_is_exit_130(command, small_checkpoint, folder, tmp_path, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    for name in ("convert_checkpoint", "verify_checkpoint", "revert_checkpoint", "inspect_checkpoint"):
        monkeypatch.setattr(vitconv.convert, name, interrupt)
    arguments = {"convert": [tmp_path / "m"], "verify": [folder], "revert": [tmp_path / "m"], "inspect": []}
    code, out, err = run(command, small_checkpoint, *arguments[command])
    assert (code, out) == (130, "")
    assert err.endswith("error: Interrupted.\nNothing was written.\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "Interrupted"), (signal.SIGTERM, 143, "Terminated")]
)
def test_a_signal_ends_the_process_in_order(number, code, word, small_checkpoint, tmp_path):
    command = [str(Path(sys.executable).with_name("vitconv")), "convert", small_checkpoint, tmp_path / "model", *ARCH]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job inherits the signal ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while "Writing the folder" not in process.stderr.readline():
        pass
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == code
    assert err.endswith(f"error: {word}.\nNothing was written.\n")
    assert list(tmp_path.iterdir()) == []


def test_version():
    assert run("--version")[1] == f"vitconv {vitconv.__version__}\n"


def test_as_a_process_without_a_traceback(tmp_path):
    done = run_process("convert", "none.pth", tmp_path / "model", *ARCH)
    assert done.returncode == 1
    assert "error: There is no file 'none.pth'.\nCheck the path of the checkpoint.\n" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_imports_nothing_heavy():
    code = "import sys; from vitconv.cli import app\ntry: app(['convert', '--help'])\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'timm', 'transformers', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_models_lists_what_converts():
    code, out, _ = run("models")
    assert code == 0
    assert "vit_base_patch16_384" in out and "ViTForImageClassification" in out
    assert "of timm's 297 Vision Transformers convert." in out
    code, out, _ = run("models", "--json")
    found = {verdict["name"]: verdict for verdict in json.loads(out)}
    assert found["deit_tiny_patch16_224"]["class_name"] == "ViTForImageClassification"
    assert found["deit_tiny_patch16_224"]["exactness"] == "moved"
    assert found["deit3_small_patch16_224"]["exactness"] == "folded"


def test_models_says_why_the_others_are_refused():
    code, out, _ = run("models", "--refused")
    assert code == 0
    assert "norms after attention and MLP (`blocks.0`)" in out
    assert "of timm's 297 Vision Transformers are refused." in out
    code, out, _ = run("models", "--refused", "--json")
    assert all(verdict["refusal"] and not verdict["class_name"] for verdict in json.loads(out))


def test_models_of_one_target():
    code, out, _ = run("models", "--target", "dinov2_with_registers")
    assert code == 0
    assert "vit_small_patch14_reg4_dinov2" in out and "vit_base_patch16_384" not in out
    code, _, err = run("models", "--target", "swin")
    assert code == 1
    assert err.startswith("error: There is no target 'swin'.\nChoose one of vit, deit,")


def test_the_shell_completes_architectures():
    assert "deit_tiny_patch16_224" in complete("deit_t")
    assert complete("resnet") == []


def test_another_image_size_is_said_aloud(small_checkpoint, tmp_path):
    code, _, err = run("convert", small_checkpoint, tmp_path / "m", *ARCH, "--img-size", "96", "96", "--no-verify")
    assert code == 0
    assert "note: `pos_embed` was resampled from 14x14 to 6x6 patches" in err


def test_a_name_that_is_not_in_the_cache(tmp_path):
    code, out, err = run("convert", "hf-hub:our/roofs", tmp_path / "model")
    assert (code, out) == (1, "")
    assert "error: The model 'our/roofs' is not in the local cache, and the Hub cannot be reached." in err


@pytest.mark.slow
def test_another_family_if_asked(small_checkpoint, tmp_path):
    target = ["--target", "dinov2"]
    code, out, _ = run("convert", small_checkpoint, tmp_path / "model", *ARCH, *target)
    assert code == 0
    assert "Dinov2ForImageClassification, width 192" in out
    assert "head.weight: zeros for the patches, which timm's head does not read" in out
    assert json.loads((tmp_path / "model" / "parity.json").read_text())["target"] == "dinov2"
    # The folder records it, so that nothing need be said again.
    assert run("verify", small_checkpoint, tmp_path / "model")[0] == 0
    code, _, err = run("inspect", small_checkpoint, *ARCH, "--target", "siglip")
    assert code == 1
    assert err.splitlines()[-2].startswith("error: SiglipForImageClassification does not compute what this model")


def test_the_way_back(small_checkpoint, folder, tmp_path):
    code, out, err = run("revert", folder, tmp_path / "back")
    assert code == 0
    assert f"✓ {tmp_path / 'back'}: converted back and proved\n" in out
    assert "model: timm's vit_tiny_patch16_224 with num_classes=5" in out
    assert "float64: logits equal bit for bit" in out
    assert f'timm.create_model("local-dir:{tmp_path / "back"}", pretrained=True)' in out
    assert "Comparing the models" in err
    code, _, err = run("revert", folder, tmp_path / "back")
    assert code == 1
    assert "exists already" in err


def test_the_way_back_names_what_timm_has_not(tmp_path):
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8,
        layer_norm_eps=1e-6,
    )  # fmt: skip
    transformers.ViTModel(config).save_pretrained(tmp_path / "hf")
    code, _, err = run("revert", tmp_path / "hf", tmp_path / "back")
    assert code == 1
    error, remedy = err.splitlines()[-2:]
    assert error.startswith("error: The model has a pooler, a layer on the class token")
    assert "--drop pooler" in remedy
    code, out, _ = run("revert", tmp_path / "hf", tmp_path / "back", "--drop", "pooler", "--no-verify")
    assert code == 0
    assert "left out: pooler" in out and "not verified (--no-verify)" in out
    assert run("revert", tmp_path / "hf", tmp_path / "other", "--drop", "head")[0] == 2


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize("command", [["models"], ["models", "--json"], ["--version"], ["verify", "--json"]])
def test_a_full_disk_behind_the_output(command, small_checkpoint, folder):
    arguments = [command[0], small_checkpoint, folder, *command[1:]] if command[0] == "verify" else command
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", "from vitconv.cli import run; run()", *arguments],
            stdout=full, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.endswith("error: The output cannot be written: No space left on device.\nWrite it elsewhere.\n")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "number", "code", "word"),
    [("verify", signal.SIGINT, 130, "Interrupted"), ("revert", signal.SIGTERM, 143, "Terminated")],
)
@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_signal_ends_verify_and_revert(command, number, code, word, step, small_checkpoint, folder, tmp_path):
    arguments = [folder, tmp_path / "back"] if command == "revert" else [small_checkpoint, folder]
    process = subprocess.Popen(
        [sys.executable, "-c", "from vitconv.cli import run; run()", command, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    for _ in range(step + 1):
        process.stderr.readline()
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == code
    assert err.endswith(f"error: {word}.\nNothing was written.\n")
    assert "Traceback" not in err and out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["convert", "inspect", "verify", "revert"])
def test_results_and_errors_as_json(command, small_checkpoint, folder, tmp_path):
    source = folder if command == "revert" else small_checkpoint
    other = {"inspect": [], "verify": [folder]}.get(command, [tmp_path / "new"])
    arch = ARCH if command in ("convert", "inspect") else []
    code, out, _ = run(command, source, *other, *arch, "--json", "-q")
    found = json.loads(out)
    assert code == 0
    if command == "convert":
        assert found["class_name"] == "ViTForImageClassification"
        assert found["verification"]["parity"]["float64"]["matches"]
        assert found["load"][0].startswith("from transformers import")
    if command == "inspect":
        assert found["moves"][0]["target"] == "vit.embeddings.cls_token"
    if command == "revert":
        assert found["timm_name"] == "vit_tiny_patch16_224"
    code, out, err = run(command, tmp_path / "none", *(other and [tmp_path / "no folder"]), "--json")
    error = json.loads(out)
    assert code == 1
    assert err.endswith(f"error: {error['error']}\n{error['remedy']}\n")


def test_wrong_usage_is_json_where_it_was_asked_for():
    done = run_process("convert", "a", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout) == {"error": "Missing argument 'DST'.", "remedy": "See vitconv convert --help."}


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["convert", "a", "b", "--json", "--img-size", "32"], "vitconv convert"),
        (["convert", "a", "b", "--json", "--no-such-option"], "vitconv convert"),
        (["--json"], "vitconv"),
        (["no-such-command", "--json"], "vitconv"),
        (["evaluate", "a", "b", "--json", "--arch", "vit_tiny_patch16_224"], "vitconv evaluate"),
        (["evaluate", "a", "b", "--json", "--source", ""], "vitconv evaluate"),
    ],
)
def test_every_wrong_usage_is_json_and_names_its_command(arguments, command, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["vitconv", *arguments])
    code, out, err = run(*arguments)
    assert code == 2
    assert json.loads(out)["remedy"] == f"See {command} --help." and json.loads(out)["error"]
    assert err.startswith(f"Usage: {command} ")


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["convert", "a.pth", "b", "--license", ""], "'--license'"),
        (["convert", "a.pth", ""], "'DST'"),
        (["evaluate", "a", "b", "--source", ""], "'--source'"),
        (["evaluate", "a", "b", "--expected", ""], "'--expected'"),
        (["evaluate", "a", "b", "--out", ""], "'--out'"),
        (["evaluate", "a", "b", "--source", "c", "--ignore", "mean", "--ignore", ""], "'--ignore'"),
        (["predict", "a", ""], "'IMAGES'"),
    ],
)
def test_an_empty_value_is_wrong_usage(arguments, name):
    """An empty path is the current folder, which is not what a script with an empty variable means."""
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert f"Invalid value for {name}: It is empty." in err


def test_the_next_step_repeats_what_was_ignored(save):
    weights = full_model("vit_tiny_patch16_224", num_classes=5).state_dict()
    cfg = {"mean": [0.5] * 3, "num_classes": 5}
    path = save({"state_dict": weights, "architecture": "vit_tiny_patch16_224", "pretrained_cfg": cfg})
    ignoring = ("--ignore", "mean")
    code, out, err = run("convert", path, path.parent / "model", "--no-verify", *ignoring)
    assert code == 0, err
    assert out.splitlines()[-1].endswith(f"photos --source {path} --ignore mean")


def test_a_quiet_conversion_prints_one_line_and_warnings(small_checkpoint, tmp_path):
    code, out, err = run("convert", small_checkpoint, tmp_path / "model", *ARCH, "-q", "--img-size", 96, 96)
    assert code == 0
    assert out == f"✓ {tmp_path / 'model'}: converted and proved\n"
    assert [line.partition(":")[0] for line in err.splitlines()] == ["warning"]


def test_a_verbose_inspection_says_what_is_read_from_where(small_checkpoint):
    code, out, err = run("inspect", small_checkpoint, *ARCH, "-v")
    assert code == 0
    assert f"reading '{small_checkpoint}': " in err
    assert "architecture: vit_tiny_patch16_224, as given" in err
    assert "reading" not in run("inspect", small_checkpoint, *ARCH)[2]


@pytest.mark.parametrize(
    "command", ["", "convert", "inspect", "verify", "revert", "models", "predict", "evaluate", "report"]
)
def test_help_fits_80_columns_and_names_no_python_types(command):
    arguments = [command] if command else []
    code, out, _ = run(*arguments, "-h")
    assert code == 0
    assert out == run(*arguments, "--help")[1]
    assert max(map(len, out.splitlines())) <= 80
    assert not any(mark in out for mark in ("<bool>", "<path>", "<str>", "{"))
    assert not any(line.endswith("...") for line in out.splitlines()[1:])  # no sentence is cut


def test_a_height_without_a_width_says_what_to_write(small_checkpoint):
    code, _, err = run("inspect", small_checkpoint, "--img-size", 224)
    assert code == 2
    assert "'--img-size' takes height and width, as in --img-size 224 224." in err


def test_a_beginner_s_mistakes_say_what_to_do(small_checkpoint, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "best.pth").touch()
    for arguments, problem, remedy in (
        (["convert", small_checkpoint, "photos", *ARCH], "holds files that no conversion writes (a.jpg)", "Choose"),
        (["convert", "photos", small_checkpoint], "exists already, and is a file: a folder is written.", "Choose"),
        (["convert", "weights", "new"], "holds none of model.safetensors", "inside it: best.pth."),
        (["convert", folder, "new"], "is a Transformers folder already.", "`vitconv revert`"),
        (["inspect", "timm/vit_x"], "There is no file 'timm/vit_x'.", "hf-hub:timm/vit_x."),
        (["inspect", "https://huggingface.co/timm/vit_x"], "There is no file", "hf-hub:timm/vit_x."),
        (["inspect", "runs/best.pth"], "There is no file 'runs/best.pth'.", "path of the checkpoint."),
        (
            ["inspect", small_checkpoint, "--arch", "ViT-Ti/16"],
            "no architecture named",
            "Did you mean vit_tiny_patch16_",
        ),
        (["verify", folder, small_checkpoint], "is a file, not a folder.", "Pass the source first"),
        (["verify", small_checkpoint, "photos"], "'photos' has no config.json.", "Pass the source first"),
        (["verify", small_checkpoint, folder, "--img-size", 96, 96], "is 224 instead of 96.", "--img-size"),
        (["verify", small_checkpoint, folder, "--image", "photos"], "it is a folder.", "Pass a PNG"),
        (["revert", "nowhere", "new"], "There is no folder 'nowhere'.", "Pass a folder with a Transformers model."),
        (["predict", "nowhere", "photos"], f"There is no folder '{tmp_path}/nowhere'.", "Pass a folder that"),
        (["predict", folder, small_checkpoint], "is not CSV that can be read: it is no text.", "Write a CSV"),
        (["predict", folder, "photos", small_checkpoint], "a file is where a folder should be.", "Choose"),
        (["report", "nowhere", "new"], "There is no folder 'nowhere'.", "Run"),
    ):
        code, out, err = run(*arguments)
        assert (code, out) == (1, ""), arguments
        assert problem in err.splitlines()[-2] and remedy in err.splitlines()[-1], (arguments, err)
    assert not (tmp_path / "new").exists()


def test_it_is_a_module_that_runs():
    done = subprocess.run([sys.executable, "-m", "vitconv", "--version"], capture_output=True, text=True)
    assert done.stdout == f"vitconv {vitconv.__version__}\n"


def test_models_of_a_name():
    code, out, _ = run("models", "vit_base*")
    assert code == 0
    assert "vit_base_patch16_384" in out and "deit" not in out
    assert run("models", "dinov2")[1].count("dinov2") > 5
    code, _, err = run("models", "vit_bose_patch16_224")
    assert code == 1
    assert err.splitlines()[1].startswith("Did you mean vit_base_patch16_224")
    code, out, _ = run("models", "vit_bose_patch16_224", "--json")
    assert code == 1 and json.loads(out)["remedy"] == err.splitlines()[1]


def test_refused_models_are_grouped_by_the_reason():
    _, out, _ = run("models", "--refused", "vit_base*")
    assert out.count("rotary positions of another kind") == 1
    assert "\n  vit_base_patch16_rope_224\n" in out
    assert "\n  vit_base_patch16_reg4_gap_256 (--head code)\n" in out
    assert "Those marked (--head code) convert with that option." in out
    assert "--head code" not in run("models", "--refused", "vit_base*rope*")[1]


def on_a_terminal(*arguments, columns=80):
    """What a terminal shows, without the colours and what is wiped out."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
    command = [str(Path(sys.executable).with_name("vitconv")), *map(str, arguments)]
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env={**environment, "TERM": "xterm-256color"}
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while part := os.read(ours, 65536):
                shown += part
        except OSError:  # the other end is closed
            pass
    os.close(ours)
    assert process.returncode == 0, shown.decode()
    return shown.decode(), re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|.*\r(?!\n)", "", shown.decode()).replace("\r\n", "\n")


@pytest.mark.slow
def test_a_terminal_keeps_the_steps_with_their_seconds_and_names_whole(small_checkpoint):
    raw, shown = on_a_terminal("inspect", small_checkpoint, *ARCH)
    assert "\x1b[32m" in raw  # the steps' marks, and the headline of the last block
    assert re.search(r"\x1b\[32m\x1b\[1m✓ \S+tiny.pth: 152 tensors become 200", raw)
    assert any(line.startswith("✓ Reading the checkpoint ") and line.endswith(" s") for line in shown.splitlines())
    assert "blocks.{0…11}.attn.qkv.weight[192:384]  192x192\n" in shown
    assert "  → vit.encoder.layer.{0…11}.attention.attention.key.weight\n" in shown
    assert "vit_base_patch16_rope_reg1_gap_256" in on_a_terminal("models", "--refused", "vit_base*")[1]
    listed = on_a_terminal("models", "vit_so150m2*", columns=40)[1]
    first_column = "".join(line.partition("  ")[0] for line in listed.splitlines())
    assert "vit_so150m2_patch16_reg1_gap_256" in first_column and "…" not in listed


def test_a_narrow_terminal_lists_models_in_lines_of_their_own():
    shown = on_a_terminal("models", "vit_small*dinov3", columns=60)[1]
    assert shown.startswith("vit_small_patch16_dinov3\n  → DINOv3ViTModel, made\n  with 7 classes: --head code\n")
    wide = on_a_terminal("models", "vit_small*dinov3", columns=120)[1]
    assert "vit_small_patch16_dinov3       DINOv3ViTModel  made       --head code\n" in wide


def test_a_wrapper_is_written_with_a_warning_and_only_by_name(wrapped, tmp_path):
    code, _, err = run("convert", wrapped[0], tmp_path / "out")
    assert code == 1
    assert "take --target timm_wrapper: timm inside Transformers (needs timm; no native attention maps" in err
    code, out, err = run("convert", wrapped[0], tmp_path / "out", "--target", "timm_wrapper")
    assert code == 0
    assert "warning: This is timm inside Transformers (needs timm; no native attention maps" in err
    assert f'AutoImageProcessor.from_pretrained("{tmp_path / "out"}")' in out
    code, out, err = run("inspect", wrapped[0], "--target", "timm_wrapper")
    assert "TimmWrapperForImageClassification, timm's eva02_tiny_patch14_224" in out
    assert "warning: This is timm inside Transformers" in err
    assert json.loads(run("inspect", wrapped[0], "--target", "timm_wrapper", "--json")[1])["target"] == "timm_wrapper"


def test_the_list_of_refusals_begins_with_the_way_out():
    assert run("models", "--refused")[1].startswith(
        "No class of Transformers computes these. Keep this model in timm, or take"
    )
