import pytest
import torch
from huggingface_hub import ModelCard
from models import full_model
from test_coverage import reduced
from test_mapping import ONE_EACH

from vitconv.convert import convert_checkpoint


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


def test_says_what_was_rewritten(folders):
    text = card(folders["folded"]).text
    assert "- LayerScale folded in" in text
    assert "- a zero row for the class token in front" in text
    assert "| float16 |" in text
    assert "tokens of the picture" not in text
    assert "are in this folder, cast to float16, and" in text


def test_says_when_nothing_was_proved(folders):
    assert "Not verified" in card(folders["headless"]).text


@pytest.mark.parametrize("name", ["plain", "headless"])
def test_its_example_runs(folders, name, tmp_path, monkeypatch):
    from vitconv.preprocess import sample_image

    sample_image().save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    code = card(folders[name]).text.partition("```python\n")[2].partition("```")[0]
    results = {}
    exec(code.replace("path/to/this/folder", str(folders[name].destination)), results)
    assert results["logits" if name == "plain" else "features"].shape == (1, 2 if name == "plain" else 192)


@pytest.mark.parametrize("name", sorted(ONE_EACH.values()))
def test_every_family_s_example_gives_what_timm_returns(name, tmp_path, monkeypatch):
    from vitconv.preprocess import sample_image

    model = reduced(name).float()
    torch.save(model.state_dict(), tmp_path / "timm.pth")
    done = convert_checkpoint(tmp_path / "timm.pth", tmp_path / "hf", architecture=model, verify=False)
    sample_image().save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    code = card(done).text.partition("```python\n")[2].partition("```")[0]
    results = {}
    exec(code.replace("path/to/this/folder", str(done.destination)), results)
    with torch.no_grad():
        expected = model(results["inputs"]["pixel_values"])
    answer = results["logits" if done.architecture.classifier else "features"].detach()
    assert torch.allclose(answer, expected, rtol=0, atol=1e-4 * expected.abs().max())
    data = card(done).data
    assert (data.pipeline_tag == "image-classification") == ("ForImageClassification" in code)


def test_no_path_of_this_machine(folders):
    for done in folders.values():
        for file in ("README.md", "parity.json", "config.json", "preprocessor_config.json"):
            assert str(done.destination.parent) not in (done.destination / file).read_text()
