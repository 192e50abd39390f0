"""What a conversion costs, as a ratio to copying the same file with ``cp``, and to the classic route.

    python benchmarks/convert.py [--large] [--rounds 5] [--json FILE]    (20 minutes on two cores)
    python benchmarks/convert.py --proof    (only the proved conversions and the classic route)

Every way runs in a process of its own, in turn within each round, so that what disturbs the machine disturbs all;
the figures are medians over the rounds, the ratios medians of the ratios within a round. *In process* is the second
conversion of a process: it leaves out starting Python and importing. The files are in the page cache, and the disk is
not waited for: nor does ``cp``. Before each run the disk is given the time to catch up, or the kernel would hold up
whoever writes next; and a copy is made and removed, so that all find the memory for theirs at hand.

What was learned, on two cores of an ext4 machine:

* The kernel's ``copy_file_range`` runs at the speed of ``cp`` only where source and target lie at the same place of
  their pages. A safetensors header puts the data anywhere, and vitconv aligns what it writes to cache lines, so that
  they hardly ever do. There the kernel takes 1.43 × ``cp``, a mapped file written with ``write`` 1.6 to 2 × (page
  faults), reading and writing in turn through 256 KiB 1.36 ×, and reading 1 MiB ahead in a second thread while 256 KiB
  at a time are written 1.01 ×.
* Writing 1 MiB at a time is as fast on fresh memory, but 2 to 4 times as slow now and then: the page cache looks for
  pieces of memory as large as the call.
* SHA-256 of the source takes twice as long as copying it: without verification, nothing reads the source.
* Importing torch, timm and transformers takes longer than all that. Without verification none is imported for a
  safetensors file; for torch's format, torch alone.
* Of a proved conversion, importing torch, timm and Transformers takes more than half, as it does of the classic route,
  and mostly on one core. So what needs neither timm nor Transformers runs in a thread beside the imports and costs
  almost no time: writing, hashing the source, comparing the bytes there and back. Python's collector searches the
  objects that the imports leave for cycles, again and again: without it they take a tenth less.
* float64 with all tokens takes twice the CPU time of float32. Where float32 is equal bit for bit it is needed, too:
  an epsilon that is off by 1e-5 of itself changes no bit of this model's float32. But the blocks treat all tokens
  alike, and float64 with 32 of 577 tokens, a sixth of the CPU time, sees it, and one that is off by 1e-7 of itself.
  (Bits in float32 still say that the rest of the tokens are no exception: if they differ, float64 takes all.) In it
  a block's weights are converted only while it computes: two whole models would mean 1.4 GB to be found and zeroed.
* Python takes down what it has imported when it ends, which took 1.5 s of 11.1: the command ends without.
* What is left is two forward passes in float32, which no trick makes shorter. Median of 5 on two cores of an Intel
  Xeon at 2.5 GHz, quiet: 9.46 s from safetensors (0.87 × classic) and 9.52 s from .pth (0.89 ×); classic 10.76 s.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_TARGET = "TARGET"
_CLASSIC_WAY = "classic route, not verified"
_COMMAND = "from vitconv.cli import run; run()"

# The ways in process: done twice, as in a process that converts many; print the second's seconds and CPU seconds.
_TIMED = """
import shutil, sys, time, warnings
warnings.simplefilter("ignore")
source, target, arch = sys.argv[1:]
{prepare}
{run}
shutil.rmtree(target)
wall, cpu = time.perf_counter(), time.process_time()
{run}
print(time.perf_counter() - wall, time.process_time() - cpu)
"""
_CONVERT = {
    "prepare": "from vitconv.convert import convert_checkpoint",
    "run": "convert_checkpoint(source, target, architecture=arch, verify=False)",
}
_RENAME = """
def rename(tensors):
    out = {}
    for name, tensor in tensors.items():
        name = name.replace("blocks.", "vit.encoder.layer.").replace("norm1", "layernorm_before")
        name = name.replace("norm2", "layernorm_after").replace("attn.proj", "attention.output.dense")
        name = name.replace("mlp.fc1", "intermediate.dense").replace("mlp.fc2", "output.dense")
        name = name.replace("patch_embed.proj", "vit.embeddings.patch_embeddings.projection")
        name = name.replace("cls_token", "vit.embeddings.cls_token").replace("head.", "classifier.")
        name = name.replace("pos_embed", "vit.embeddings.position_embeddings")
        name = "vit.layernorm" + name[4:] if name.startswith("norm.") else name
        if "attn.qkv" in name:
            for part, third in zip(("query", "key", "value"), tensor.chunk(3)):
                out[name.replace("attn.qkv", "attention.attention." + part)] = third
        else:
            out[name] = tensor
    return out
"""
_SAVE_FILE = {
    "prepare": "import os, torch\nfrom safetensors.torch import load_file, save_file" + _RENAME,
    "run": "os.mkdir(target); save_file(rename(load_file(source)), target + '/model.safetensors')",
}
# As the script that transformers once shipped went about it: build, load, rename, load again, save.
_CLASSIC = (
    """
import sys, warnings
warnings.simplefilter("ignore")
import timm, torch, transformers
source, target, arch = sys.argv[1:]
"""
    + _RENAME
    + """
weights = torch.load(source, map_location="cpu", weights_only=True)
model = timm.create_model(arch, num_classes=len(weights["head.weight"]))
model.load_state_dict(weights)
config = transformers.ViTConfig(
    hidden_size=model.embed_dim, num_hidden_layers=len(model.blocks), layer_norm_eps=1e-6,
    num_attention_heads=model.blocks[0].attn.num_heads, intermediate_size=model.blocks[0].mlp.fc1.out_features,
    image_size=model.patch_embed.img_size[0], patch_size=model.patch_embed.patch_size[0], num_labels=model.num_classes,
)
twin = transformers.ViTForImageClassification(config)
renamed = rename(model.state_dict())
if int(transformers.__version__.partition(".")[0]) >= 5:
    renamed = {
        name.replace("encoder.layer.", "layers.").replace("attention.attention.query", "attention.q_proj")
        .replace("attention.attention.key", "attention.k_proj")
        .replace("attention.attention.value", "attention.v_proj")
        .replace("attention.output.dense", "attention.o_proj").replace("intermediate.dense", "mlp.fc1")
        .replace(".output.dense", ".mlp.fc2"): tensor for name, tensor in renamed.items()
    }
twin.load_state_dict(renamed)
twin.save_pretrained(target)
"""
)


def ways(safetensors: Path, pth: Path, arch: str) -> dict[str, list[str]]:
    """The command of every way; ``_TARGET`` stands for what it writes."""
    python, convert = sys.executable, [sys.executable, "-c", _COMMAND, "convert"]
    quick = ["--arch", arch, "--no-verify"]
    return {
        "cp": ["cp", str(safetensors), _TARGET],
        "vitconv, safetensors, in process": [python, "-c", _TIMED.format(**_CONVERT), str(safetensors), _TARGET, arch],
        "vitconv, .pth, in process": [python, "-c", _TIMED.format(**_CONVERT), str(pth), _TARGET, arch],
        "save_file of renamed views, in process": [
            python,
            "-c",
            _TIMED.format(**_SAVE_FILE),
            str(safetensors),
            _TARGET,
            arch,
        ],
        "vitconv, safetensors, not verified": [*convert, str(safetensors), _TARGET, *quick],
        "vitconv, .pth, not verified": [*convert, str(pth), _TARGET, *quick],
        "vitconv, safetensors, verified": [*convert, str(safetensors), _TARGET, "--arch", arch],
        "vitconv, .pth, verified": [*convert, str(pth), _TARGET, "--arch", arch],
        _CLASSIC_WAY: [python, "-c", _CLASSIC, str(pth), _TARGET, arch],
    }


def measure(command: list[str], sources: tuple[Path, ...], target: Path) -> dict[str, float]:
    """Run once: wall and CPU seconds, and the peak of resident memory in MiB."""
    # The same start for all: nothing on its way to the disk, and the memory for the copy at hand. (A virtual machine
    # gives free memory back to its host, and takes three times as long to write into what it has to ask for again.)
    os.sync()
    for source in sources:
        shutil.copyfile(source, target)
        target.unlink()
    begin = time.perf_counter()
    process = subprocess.Popen(
        [str(target) if part is _TARGET else part for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"},
    )
    output = process.stdout.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - begin
    if status:
        raise SystemExit(f"failed: {command[:3]}\n{output}")
    figures = {"wall": wall, "cpu": usage.ru_utime + usage.ru_stime, "rss": usage.ru_maxrss / 1024}
    if "process_time" in " ".join(command):
        figures["wall"], figures["cpu"] = map(float, output.split())
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    return figures


def benchmark(arch: str, classes: int, rounds: int, folder: Path) -> dict[str, Any]:
    """All ways in turn, after one round that warms up: the quick ones three times as often, and by themselves.

    What computes for seconds between two copies leaves the machine's caches in another state for the second.
    """
    sources = _make(arch, classes, folder)
    commands = ways(*sources, arch)
    slow = [way for way in commands if _is_slow(way)]
    quick = [way for way in commands if way not in slow]
    figures = _rounds({way: commands[way] for way in quick}, 3 * rounds, sources, folder / "target")
    figures |= _rounds({way: commands[way] for way in slow}, rounds, sources, folder / "target")
    cp = figures["cp"]["wall"]
    return {
        "architecture": arch,
        "megabytes": sources[0].stat().st_size / 1e6,
        "rounds": rounds,
        "ways": {
            way: {**figures[way], "ratio": figures[way].get("ratio", figures[way]["wall"] / cp)} for way in commands
        },
    }


def benchmark_proof(arch: str, classes: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Only what is proved, and the classic route, which proves nothing, in turn."""
    sources = _make(arch, classes, folder)
    commands = {way: command for way, command in ways(*sources, arch).items() if _is_slow(way)}
    return {
        "architecture": arch,
        "megabytes": sources[0].stat().st_size / 1e6,
        "rounds": rounds,
        "ways": _rounds(commands, rounds, sources, folder / "target"),
    }


def _is_slow(way: str) -> bool:
    return way == _CLASSIC_WAY or way.endswith(", verified")


def _rounds(
    commands: dict[str, list[str]], rounds: int, sources: tuple[Path, ...], target: Path
) -> dict[str, dict[str, float]]:
    runs: list[dict[str, dict[str, float]]] = []
    for number in range(rounds + 1):
        done = {way: measure(command, sources, target) for way, command in commands.items()}
        print(f"{sources[0].stem}: round {number} of {rounds}", file=sys.stderr)
        runs += [done] if number else []
    median = statistics.median
    figures = {way: {key: median(run[way][key] for run in runs) for key in ("wall", "cpu", "rss")} for way in commands}
    for key, other in (("ratio", "cp"), ("to_classic", _CLASSIC_WAY)):
        for way in commands if other in commands else ():
            figures[way][key] = median(run[way]["wall"] / run[other]["wall"] for run in runs)
    return figures


def _make(arch: str, classes: int, folder: Path) -> tuple[Path, Path]:
    """A checkpoint of random weights in both formats, made in a process of its own: this one stays small."""
    paths = folder / f"{arch}.safetensors", folder / f"{arch}.pth"
    script = """
import sys, timm, torch
from safetensors.torch import save_file
with torch.device("meta"):
    model = timm.create_model(sys.argv[1], num_classes=int(sys.argv[2]))
model.to_empty(device="cpu")
generator = torch.Generator().manual_seed(0)
with torch.no_grad():
    for name, parameter in model.named_parameters():
        parameter.normal_(1.0 if "norm" in name and parameter.ndim == 1 else 0.0, 0.02, generator=generator)
save_file(model.state_dict(), sys.argv[3])
torch.save(model.state_dict(), sys.argv[4])
"""
    subprocess.run([sys.executable, "-c", script, arch, str(classes), *map(str, paths)], check=True)
    os.sync()
    return paths


def machine() -> str:
    """The processor, its cores and the file system, in words."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, {platform.system()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--large", action="store_true", help="also a model of 2.5 GB")
    parser.add_argument("--proof", action="store_true", help="only the proved conversions and the classic route")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("build"), help="where to write; it may be on another disk")
    options = parser.parse_args()
    options.folder.mkdir(exist_ok=True)
    models = [("vit_base_patch16_384", 7), ("vit_large_patch16_384", 7)]
    models += [("vit_huge_patch14_224", 7)] if options.large else []
    results = []
    for arch, classes in models:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            run = benchmark_proof if options.proof else benchmark
            results.append(run(arch, classes, options.rounds, Path(folder).absolute()))
    _show(results)
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "results": results}, indent=2) + "\n")


def _show(results: list[dict[str, Any]]) -> None:
    print(f"\n{machine()}")
    for result in results:
        print(
            f"\n| {result['architecture']}, {result['megabytes']:.0f} MB | wall | CPU | ÷ cp | ÷ classic | peak RSS |"
        )
        print("|---|--:|--:|--:|--:|--:|")
        for way, figures in result["ways"].items():
            print(
                f"| {way} | {figures['wall']:.2f} s | {figures['cpu']:.2f} s | {_ratio(figures, 'ratio')} "
                f"| {_ratio(figures, 'to_classic')} | {figures['rss']:.0f} MiB |"
            )


def _ratio(figures: dict[str, float], key: str) -> str:
    return f"{figures[key]:.2f}" if key in figures else "–"


if __name__ == "__main__":
    main()
