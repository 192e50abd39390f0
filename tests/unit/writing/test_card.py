import json
import math
import re
from dataclasses import replace

import pytest
import timm
import torch
import transformers
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from models import full_model, reduced, small_model

from vitconv.convert import convert_checkpoint
from vitconv.errors import ArchitectureError, InputError
from vitconv.mapping import FAMILIES, family_for
from vitconv.models.catalogue import entries
from vitconv.models.images import sample_image
from vitconv.models.pixels import known_difference, timm_pixels


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cards")

    def convert(name, architecture, **arguments):
        classes = arguments.pop("num_classes")
        torch.save(full_model(architecture, num_classes=classes).state_dict(), folder / f"{name}.pth")
        return convert_checkpoint(folder / f"{name}.pth", folder / name, architecture=architecture, **arguments)

    return {
        "plain": convert("plain", "vit_tiny_patch16_224", num_classes=2, labels=["cat", "dog"]),
        "folded": convert("folded", "deit3_small_patch16_224", num_classes=3, dtype="float16"),
        "headless": convert("headless", "vit_tiny_patch16_224", num_classes=0, verify=False),
    }


def card(done):
    return ModelCard.load(done.destination / "README.md")


def test_the_hub_understands_it(folders):
    data = card(folders["plain"]).data
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "image-classification"
    assert card(folders["headless"]).data.pipeline_tag == "image-feature-extraction"


def test_says_how_it_was_made_and_how_close_it_came(folders):
    text = card(folders["plain"]).text
    assert "`plain.pth`" in text
    assert "cat, dog" in text
    assert "from timm's pretrained tag 'augreg_in21k_ft_in1k'" in text
    assert "| float64 |" in text
    assert "In float64 32 tokens of the picture went through the blocks: in float32, with all of them, every" in text
    assert "5,524,802 elements of the source 5,524,802 are in this folder, bit for bit, and 0 were folded" in text


def test_draws_every_stage_beside_its_limit(folders):
    """A fold rounds, so the bars of the folded model have a length; where nothing is folded, all stages are equal."""
    for name in ("plain", "folded"):
        (picture,) = re.findall(r"```text\n(.*?)\n```", card(folders[name]).text, re.DOTALL)
        comparison = folders[name].verification.parity["float64"]
        assert len(picture.splitlines()) == len(comparison.stages)
        for line, stage in zip(picture.splitlines(), comparison.stages, strict=True):
            assert line.split()[0] == stage.name
            if stage.max_abs == 0:
                assert line.endswith("  = equal bit for bit")
            else:  # six decades from 1e-18 to the limit, 1e-12, in 40 characters
                begin, value = line.split("|")
                assert begin.count("█") == math.ceil((math.log10(stage.relative) + 18) / 6 * 40)
                assert value.strip() == f"{stage.relative:.1e}"
    assert "█" in picture
    assert "to the limit, 1e-12." in card(folders["plain"]).text


def test_says_what_was_rewritten(folders):
    text = card(folders["folded"]).text
    assert "- `blocks.{0…11}.attn.proj.weight, blocks.{0…11}.attn.proj.bias, " in text
    assert ".mlp.fc2.bias`: LayerScale folded in" in text
    assert "- `pos_embed`: a zero row for the class token in front" in text
    assert "| float16 |" in text
    assert "tokens of the picture" not in text
    assert "are in this folder, cast to float16, and" in text


def check_auto_model(done):
    """What the card says of `AutoModel` is what Transformers does."""
    text = card(done).text
    if not done.architecture.classifier:
        assert "`AutoModel`" not in text
        return
    model, info = transformers.AutoModel.from_pretrained(done.destination, output_loading_info=True)
    if type(model).__name__ == done.class_name:  # with its head
        assert not info["unexpected_keys"] and not info["missing_keys"] and "`AutoModel`" not in text
        return
    assert info["unexpected_keys"]  # the head
    says = "Do not load it with `AutoModel`, which leaves out the head and adds" in text
    assert bool(info["missing_keys"]) == says
    assert ("`AutoModel` loads this model without its head." in text) == (not says)


def stated(tmp_path, readme=None, **pretrained):
    """The license in the card of a model that was converted from a timm folder."""
    model = full_model("vit_tiny_patch16_224", num_classes=2)
    model.pretrained_cfg |= {"num_classes": 2, **pretrained}
    timm.models.save_for_hf(model, tmp_path / "timm", safe_serialization=True)
    if readme is not None:
        (tmp_path / "timm" / "README.md").write_text(readme)
    return card(convert_checkpoint(tmp_path / "timm", tmp_path / "hf", verify=False)).data.license


def test_the_license_is_the_one_in_the_source_s_card(tmp_path):
    assert stated(tmp_path, "---\nlicense: cc-by-nc-4.0\n---\n# Roofs\n", license="mit") == "cc-by-nc-4.0"


def test_the_license_may_be_in_the_source_s_config(tmp_path):
    assert stated(tmp_path, license="mit") == "mit"


@pytest.mark.parametrize("name", ["no", "null", "1.0"])
def test_a_license_is_text_whatever_yaml_would_read(name, tmp_path):
    assert stated(tmp_path, license=name) == name
    torch.save(full_model("vit_tiny_patch16_224", num_classes=2).state_dict(), tmp_path / "w.pth")
    given = {"architecture": "vit_tiny_patch16_224", "verify": False, "license": name}
    assert card(convert_checkpoint(tmp_path / "w.pth", tmp_path / "given", **given)).data.license == name


def test_an_empty_license_is_refused(tmp_path):
    with pytest.raises(InputError, match="The license '' is not an identifier"):
        convert_checkpoint(tmp_path / "w.pth", tmp_path / "hf", license="")


@pytest.mark.parametrize("readme", [None, "no metadata", "---\nlicense: [a, b]\n---\n", "---\n: : :\n---\n", "\xff"])
def test_no_license_is_invented(readme, tmp_path):
    """Of timm's tag, apache-2.0 is known: it is that of timm's weights."""
    assert stated(tmp_path, readme, license=None) is None


def test_a_license_that_is_given_goes_first(tmp_path):
    torch.save(full_model("vit_tiny_patch16_224", num_classes=2).state_dict(), tmp_path / "w.pth")
    given = {"architecture": "vit_tiny_patch16_224", "verify": False}
    done = convert_checkpoint(tmp_path / "w.pth", tmp_path / "hf", license="apache-2.0", **given)
    assert card(done).data.license == "apache-2.0"
    assert card(convert_checkpoint(tmp_path / "w.pth", tmp_path / "other", **given)).data.license is None
    with pytest.raises(InputError, match="'Apache 2' is not an identifier"):
        convert_checkpoint(tmp_path / "w.pth", tmp_path / "bad", license="Apache 2", **given)
    assert not (tmp_path / "bad").exists()


def test_the_base_model_is_the_one_on_the_hub(hub_cache, tmp_path):
    model = full_model("vit_tiny_patch16_224", num_classes=2)
    timm.models.save_for_hf(model, tmp_path / "timm", safe_serialization=True)
    hub_cache({file.name: file.read_bytes() for file in (tmp_path / "timm").iterdir()})
    done = convert_checkpoint("hf-hub:our/roofs", tmp_path / "hf", verify=False)
    assert card(done).data.base_model == "our/roofs"


def test_says_when_nothing_was_proved(folders):
    assert "Not verified" in card(folders["headless"]).text


def each_way_to_use_a_model():
    """For each class, and each way to read timm's answer off its output: (class, timm's name, classes, target)."""
    found = {}
    for entry in entries().values():
        counts = () if entry.facts is None else (5, 0) if entry.facts.classifier else (0,)
        for classes in counts:
            architecture = replace(entry.facts, num_labels=classes)
            try:
                family = family_for(architecture)
            except ArchitectureError:
                continue
            way = family.class_name(architecture), family.output_expression(architecture)
            found.setdefault(way, (way[0], entry.name, classes, None))
    # No architecture of timm's becomes this one but by --target.
    ways = [*found.values(), ("Dinov2ForImageClassification", "deit3_base_patch16_224", 5, "dinov2")]
    return [pytest.param(*way, id=f"{way[0]}-{way[1]}-{way[2]}") for way in ways]


def test_all_classes_have_a_way():
    assert {way.values[0] for way in each_way_to_use_a_model()} == {
        name for family in FAMILIES for name in family.classes
    }


def run_examples(done, photo):
    """Run every example in the card as it stands there, in a fresh namespace, with the paths put in."""
    sources = re.findall(r"```python\n(.*?)```", card(done).text, re.DOTALL)
    assert sources
    namespaces = []
    for source in sources:
        code = source.replace("path/to/this/folder", str(done.destination)).replace("photo.jpg", str(photo))
        namespaces.append({})
        exec(code, namespaces[-1])
    return namespaces


def answer_of(done, namespace):
    return namespace["logits" if done.architecture.classifier else "features"].detach()


def assert_timm_s(done, model, namespace, pixels):
    """The example made these pixels to the bit, and of them what the timm model returns."""
    assert torch.equal(namespace["inputs"]["pixel_values"], pixels)
    with torch.no_grad():
        expected = model(pixels)
    answer = answer_of(done, namespace)
    assert answer.shape == expected.shape
    # A fold rounds; how close the models come is proved elsewhere.
    assert torch.allclose(answer, expected, rtol=0, atol=1e-4 * expected.abs().max())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "timm_name", "classes", "target"), each_way_to_use_a_model())
def test_every_example_of_every_class_gives_what_timm_returns(name, timm_name, classes, target, tmp_path):
    """On a photo that both processors prepare alike; and with timm's, on one that Transformers crops otherwise."""
    model = reduced(timm_name, **({"num_classes": classes} if entries()[timm_name].facts.classifier else {}))
    model = model.float()
    torch.save(model.state_dict(), tmp_path / "timm.pth")
    done = convert_checkpoint(
        tmp_path / "timm.pth",
        tmp_path / "hf",
        architecture=model,
        target=target,
        data={"crop_pct": 1.0, "crop_mode": "center"} if timm_name != "vit_5b_patch16_sapiens2" else None,
        verify=False,
    )
    assert json.loads((done.destination / "config.json").read_text())["architectures"] == [name]
    height, width = done.data.image_size
    alike = sample_image((2 * width, 2 * height))
    alike.save(tmp_path / "alike.png")
    assert known_difference(alike, done.data) is None
    examples = run_examples(done, tmp_path / "alike.png")
    assert len(examples) == 2
    for namespace in examples:
        assert_timm_s(done, model, namespace, timm_pixels(alike, done.data)[None])

    other = sample_image((width + 3, height)).convert("RGBA")
    other.putalpha(100)
    other.save(tmp_path / "other.png")
    assert known_difference(other, done.data)
    own, with_timm = run_examples(done, tmp_path / "other.png")
    pixels = timm_pixels(other, done.data)[None]
    assert_timm_s(done, model, with_timm, pixels)
    assert not torch.equal(own["inputs"]["pixel_values"], pixels)

    check_auto_model(done)
    data = card(done).data
    assert (data.pipeline_tag == "image-classification") == ("ForImageClassification" in name)


@pytest.mark.parametrize(
    ("kind", "data", "count"),
    [
        ("one channel", {"crop_pct": 1.0}, 2),
        ("not square", {}, 1),
        ("plain", {"crop_mode": "border"}, 1),
        ("oblong patches", {"crop_mode": "squash", "crop_pct": 1.0}, 2),
    ],
)
def test_every_example_of_every_kind_of_input_gives_what_timm_returns(kind, data, count, tmp_path):
    """Grey images, and what only timm's transform makes: there, it is the only example."""
    model = small_model(kind)
    torch.save(model.state_dict(), tmp_path / "timm.pth")
    done = convert_checkpoint(tmp_path / "timm.pth", tmp_path / "hf", architecture=model, data=data, verify=False)
    photo = sample_image((96, 96))
    photo.save(tmp_path / "photo.png")
    examples = run_examples(done, tmp_path / "photo.png")
    assert len(examples) == count
    for namespace in examples:
        assert_timm_s(done, model, namespace, timm_pixels(photo, done.data)[None])
    assert ("No preprocessor_config.json: " in card(done).text) == (count == 1)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("plain", {"crop_pct": 1.0}),
        ("one channel", {"crop_pct": 1.0}),
        ("not square", {}),
        ("plain", {"crop_mode": "border"}),
        ("six channels", {}),
    ],
)
def test_the_lines_that_a_conversion_prints_load_what_there_is(kind, data, tmp_path):
    """Also where only timm's transform makes the pixels."""
    model = small_model(kind)
    torch.save(model.state_dict(), tmp_path / "timm.pth")
    done = convert_checkpoint(tmp_path / "timm.pth", tmp_path / "hf", architecture=model, data=data, verify=False)
    namespace = {}
    exec("\n".join(done.loading_lines), namespace)
    assert type(namespace["model"]).__name__ == done.class_name
    assert ("processor" in namespace) == (kind != "six channels")
    if "processor" in namespace:
        photo = sample_image((96, 96)).convert("L" if kind == "one channel" else "RGB")
        pixels = namespace["processor"](photo, return_tensors="pt")["pixel_values"]
        assert torch.equal(pixels, timm_pixels(photo, done.data)[None])


def test_a_model_that_no_image_file_fits_has_an_example_too(tmp_path):
    model = small_model("six channels")
    torch.save(model.state_dict(), tmp_path / "timm.pth")
    done = convert_checkpoint(tmp_path / "timm.pth", tmp_path / "hf", architecture=model, verify=False)
    assert not list(done.destination.glob("*processor*.json"))
    (namespace,) = run_examples(done, tmp_path / "photo.png")
    assert_timm_s(done, model, namespace, torch.zeros(1, 6, 32, 32))
    assert "timm_processor.json" not in card(done).text


@pytest.mark.parametrize("name", ["plain", "folded", "headless"])
def test_the_examples_of_full_models_run(folders, name, tmp_path):
    sample_image().save(tmp_path / "photo.jpg")
    for namespace in run_examples(folders[name], tmp_path / "photo.jpg"):
        assert answer_of(folders[name], namespace).shape == (1, {"plain": 2, "folded": 3, "headless": 192}[name])


def test_says_where_the_two_processors_differ(folders, tmp_path):
    text = card(folders["plain"]).text
    assert "## timm's pixels for every image (needs timm)" in text
    assert "3, 7, 11… pixels (3 modulo 4)" in text
    assert "blends it with white" in text
    assert "timm's pixels, bit for bit" in text

    def texts(kind, **data):
        model = small_model(kind)
        torch.save(model.state_dict(), tmp_path / "timm.pth")
        arguments = {"architecture": model, "data": data, "verify": False, "overwrite": True}
        return card(convert_checkpoint(tmp_path / "timm.pth", tmp_path / "hf", **arguments)).text

    always = texts("plain", crop_pct=0.9)  # of 32 pixels, 35 are resized to: a margin of 3 whatever the image
    assert "begins the crop of every image one pixel earlier" in always
    assert "timm's pixels, bit for bit" not in always
    grey = texts("one channel", crop_pct=1.0)
    assert "3, 7, 11… pixels" in grey
    assert "blends" not in grey
    squashed = texts("plain", crop_mode="squash", crop_pct=1.0)
    assert "3, 7, 11… pixels" not in squashed
    assert "blends" in squashed


def test_no_name_is_markup(tmp_path):
    """Of a checkpoint with markup for its name and its classes."""
    hostile = "<script>a</script> ![a](http:/e.org/a.png) `b` --- | *c* $d$ # &lt;"
    model = small_model("plain")

    def tokens(name, labels):
        torch.save(model.state_dict(), tmp_path / name)
        arguments = {"architecture": model, "labels": labels, "verify": False, "overwrite": True}
        done = convert_checkpoint(tmp_path / name, tmp_path / "hf", **arguments)
        assert card(done).data.library_name == "transformers"
        return MarkdownIt("commonmark").enable("table").parse(card(done).text)

    plain = [f"{i}" for i in range(len(model.head.weight))]
    found = tokens(hostile.replace("/", "∕") + ".pth", [f"{i} {hostile}" for i in plain])
    neutral = tokens("w.pth", [f"x{i}" for i in plain])
    assert [token.type for token in found] == [token.type for token in neutral]
    texts = ("text", "text_special", "code_inline")  # what could begin a formula is code
    for one, other in zip(found, neutral, strict=True):
        kinds = [[child.type for child in token.children or [] if child.type not in texts] for token in (one, other)]
        assert kinds[0] == kinds[1]
    shown = "".join(child.content for token in found for child in token.children or [])
    assert hostile.replace("/", "∕") + ".pth" in shown
    assert f"0 {hostile}, 1 {hostile}" in shown


def test_no_path_of_this_machine(folders):
    for done in folders.values():
        for file in ("README.md", "parity.json", "config.json", "preprocessor_config.json", "timm_processor.json"):
            assert str(done.destination.parent) not in (done.destination / file).read_text()
