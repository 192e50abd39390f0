"""Time conversions, relative to copying the same file with ``cp`` and to the classic route.

    python benchmarks/convert.py [--large] [--rounds 5] [--json FILE]    (20 minutes on two cores)
    python benchmarks/convert.py --proof    (only the proved conversions and the classic route)

Each method runs in its own process. The methods take turns within each round, so that a disturbance of the machine
affects all of them. Times are medians over the rounds, ratios are medians of the ratios within a round. *In process*
is the second conversion in one process: it excludes starting Python and importing. The files are in the page cache,
and no method waits for the disk; ``cp`` does not either. Before each run, ``sync`` lets the disk catch up, because the
kernel would otherwise slow down the next writer. A copy is also made and removed, so that the memory for the output is
available to every method.

Findings, on two cores of a machine with ext4:

* The kernel's ``copy_file_range`` is as fast as ``cp`` only if source and target have the same offset within their
  pages. A safetensors header can have any length, and vitconv aligns its output to cache lines, so the offsets rarely
  match. Then ``copy_file_range`` takes 1.43 × ``cp``, writing from a mapped file 1.6 to 2 × (page faults), and
  alternately reading and writing 256 KiB 1.36 ×. Reading 1 MiB ahead in a second thread while writing 256 KiB at a
  time takes 1.01 ×.
* Writing 1 MiB at a time is as fast on fresh memory, but sometimes 2 to 4 times slower: the page cache then searches
  for free blocks of that size.
* SHA-256 of the source takes twice as long as copying it. Without verification, the source is not hashed.
* Importing torch, timm and transformers takes longer than all of this. Without verification, a safetensors file needs
  none of them, and torch's format only torch.
* In a proved conversion, importing torch, timm and Transformers takes more than half of the time, mostly on one core;
  the same holds for the classic route. So the work that needs neither timm nor Transformers runs in a thread beside
  the imports, and adds almost no time: writing, hashing the source, comparing the bytes in both directions. Python's
  garbage collector repeatedly searches the imported objects for cycles; without it, the imports take a tenth less.
* float64 with all tokens takes twice the CPU time of float32. It is needed even if float32 is equal bit for bit: a
  relative error of 1e-5 in epsilon changes no bit of this model in float32. But the blocks treat all tokens alike.
  float64 with 32 of 577 tokens takes a sixth of the CPU time and detects this error, and even one of 1e-7. (Equality
  in float32 covers the other tokens: if float32 differs, float64 runs with all tokens.) A block's weights are
  converted to float64 only while the block computes; two whole models would take 1.4 GB.
* Python takes 1.5 s of 11.1 s at exit to free what it has imported. The command exits without this.
* The rest is two forward passes in float32, which cannot be avoided. Median of 5 on two otherwise idle cores of an
  Intel Xeon at 2.5 GHz: 9.46 s from safetensors (0.87 × classic), 9.52 s from .pth (0.89 ×), classic 10.76 s.
* The weights are read into memory: a mapped file that training writes over ends the process. Reading 1.2 GB takes
  0.65 s of CPU time, in the main thread while another one writes; behind the writing, it took 0.6 s more in all. Huge
  pages make it slower (0.9 s). In memory, tensors are aligned. Those mapped from another program's safetensors are
  not, and on an AMD EPYC float32 then differed in last bits, so that float64 ran with all tokens: 1.22 × classic for
  a ViT-B and 1.53 × for a ViT-L, and 0.96 × and 1.09 × then. From .pth: 0.90 × and 0.97 ×, and 0.96 × and 1.05 ×.
* The new folder's weights are read, too, where Transformers mapped them. On an Intel Xeon at 2.8 GHz, medians of 3:
  0.97 × (ViT-B) and 1.22 × (ViT-L) from safetensors, 0.98 × and 1.15 × from .pth. A ViT-L then takes 5.3 GiB at its
  peak instead of 4.9.
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

# The methods in process convert twice, like a process that converts many files, and print the second conversion's wall
# and CPU seconds.
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
# The steps of the script that transformers once shipped: build, load, rename, load again, save.
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
    """The command of each method; ``_TARGET`` stands for the path that it writes."""
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
    """Run a command once; return wall seconds, CPU seconds and the peak of resident memory in MiB."""
    # Every run starts alike: no data waits to be written to disk, and memory for the output is available. (A virtual
    # machine returns free memory to its host, and writing into memory that it must request again takes three times as
    # long.)
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
    """Time all methods in turn, after a warm-up round. The fast ones run separately, with three times the rounds.

    They run separately because seconds of computation between two copies change the state of the machine's caches.
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
    """Time only the proved conversions and the classic route, which proves nothing, in turn."""
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
    """Make a checkpoint of random weights in both formats, in a separate process so that this one stays small."""
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
    """The processor, the number of cores and the operating system."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, {platform.system()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--large", action="store_true", help="also time a model of 2.5 GB")
    parser.add_argument("--proof", action="store_true", help="only the proved conversions and the classic route")
    parser.add_argument("--rounds", type=int, default=5, help="the number of rounds")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument(
        "--folder", type=Path, default=Path("build"), help="the folder for temporary files; it may be on another disk"
    )
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
