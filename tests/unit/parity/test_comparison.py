import copy
import dataclasses
import json
import sys

import matplotlib
import pytest
import rich
import torch
from models import FOLDED, KINDS, pixels_for, reduced, small_hybrid, small_model

from vitconv.convert import to_huggingface
from vitconv.errors import InputError, ParityError
from vitconv.parity.comparison import EQUAL, _cosine, _spread, compare, measure_stage
from vitconv.parity.criteria import CRITERIA
from vitconv.parity.verification import nonfinite_values


@pytest.fixture
def pair():
    model = small_model()
    return model, to_huggingface(model), pixels_for(model)


@pytest.mark.parametrize("kind", KINDS)
def test_a_right_conversion_matches(kind):
    model = small_model(kind)
    if kind in FOLDED:
        model = model.double()  # so that folding does not round to float32
    parity = compare(model, to_huggingface(model), pixels_for(model), dtypes=("float64",))
    parity.assert_match()
    last = parity["float64"].stages[-1]
    assert last.relative <= 1e-14
    assert last.name == ("features" if kind.startswith("headless") else "logits")
    assert (parity["float64"].top1, parity["float64"].topk) == (1, 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_pixels_that_hide_every_difference_are_refused(pair, value):
    timm_model, hf_model, pixels = pair
    hf_model.classifier.weight.data.zero_()
    with pytest.raises(InputError, match="The pixels are not finite"):
        compare(timm_model, hf_model, torch.full_like(pixels, value))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda timm, hf, x: (torch.compile(timm), hf, x), "A OptimizedModule is not a timm model, but has one in it"),
        (lambda timm, hf, x: (timm, torch.nn.DataParallel(hf), x), "vitconv does not compare a DataParallel"),
        (lambda timm, hf, x: (timm, timm, x), "vitconv does not compare a VisionTransformer"),
        (lambda timm, hf, x: (timm, hf, x[0]), r"The pixels are of shape \(3, 32, 32\), not a batch"),
        (lambda timm, hf, x: (timm, hf, x[:0]), r"The pixels are of shape \(0, 3, 32, 32\), not a batch"),
        (lambda timm, hf, x: (timm, hf, x.numpy()), "The pixels are a ndarray, not a batch"),
    ],
)
def test_what_cannot_be_compared_is_named(pair, arguments, message):
    with pytest.raises(InputError, match=message):
        compare(*arguments(*pair))


def test_a_model_that_returns_tuples_is_named(pair):
    pair[1].config.return_dict = False
    with pytest.raises(InputError, match="returns a tuple, as `return_dict` in its configuration is False"):
        compare(*pair)


def test_no_dtype_proves_nothing(pair):
    with pytest.raises(InputError, match="No dtype is given to compare in"):
        compare(*pair, dtypes=())


def test_stages_are_in_the_order_of_the_computation(pair):
    stages = compare(*pair)["float32"].stages
    assert [stage.name for stage in stages] == ["embeddings", "blocks.0", "blocks.1", "norm", "logits"]
    assert all(stage.scale > 0.1 for stage in stages)


@pytest.mark.parametrize("tokens", [None, 6])
@pytest.mark.parametrize(
    ("change", "stage"),
    [
        (lambda m: m.vit.embeddings.position_embeddings.data[0, 3].add_(1e-3), "embeddings"),
        (lambda m: m.vit.layers[0].attention.v_proj.bias.data.add_(1e-3), "blocks.0"),
        (lambda m: setattr(m.vit.layers[1].layernorm_before, "eps", 1e-12), "blocks.1"),
        (lambda m: setattr(m.vit.layers[1].mlp, "activation_fn", torch.nn.GELU("tanh")), "blocks.1"),
        (lambda m: m.vit.layernorm.weight.data.mul_(1 + 1e-9), "norm"),
        (lambda m: m.classifier.bias.data[2].add_(1e-6), "logits"),
        (lambda m: m.vit.layernorm.bias.data[0].fill_(float("nan")), "norm"),
    ],
)
def test_an_error_is_found_in_its_stage(pair, change, stage, tokens):
    timm_model, hf_model, pixels = pair
    hf_model.double()
    change(hf_model)
    parity = compare(timm_model, hf_model, pixels, dtypes=("float64",), tokens=tokens)
    assert not parity.matches
    with pytest.raises(ParityError, match=f"diverge at `{stage}` in float64"):
        parity.assert_match()


@pytest.mark.parametrize(
    "change",
    [
        lambda stem: stem.embedder.convolution.weight.data[0, 0, 0, 0].add_(1e-3),
        lambda stem: setattr(stem.encoder.stages[2].layers[0].conv3, "eps", 1e-6),
        lambda stem: setattr(stem.encoder.stages[0].layers[0].norm1, "eps", 1e-6),
        lambda stem: setattr(stem.embedder, "pooler", torch.nn.MaxPool2d(3, 2, 1)),
    ],
)
def test_an_error_before_the_patches_is_found_in_the_embeddings(change):
    model = small_hybrid().double()
    twin = to_huggingface(model)
    compare(model, twin, pixels_for(model), dtypes=["float64"]).assert_match()
    change(twin.embeddings.backbone.bit)
    with pytest.raises(ParityError, match="diverge at `embeddings` in float64"):
        compare(model, twin, pixels_for(model), dtypes=["float64"]).assert_match()


def test_few_tokens_are_spread_over_the_picture(pair):
    timm_model, hf_model, pixels = pair
    with torch.no_grad():
        hf_model.vit.embeddings.position_embeddings[0, 1 + 3] += 1e-3  # the second of the five patches below
    assert _spread(17, 6, 1) == [0, 1, 4, 7, 10, 13]
    parity = compare(timm_model, hf_model, pixels, dtypes=["float64"], tokens=6)
    assert [stage.within for stage in parity["float64"].stages] == [False] * 5
    assert compare(timm_model, hf_model, pixels, dtypes=["float64"], tokens=17)["float64"].tokens is None


def test_few_tokens_in_float64_see_what_float32_cannot(pair):
    """Why float64 is not left out where float32 is equal bit for bit."""
    timm_model, hf_model, pixels = pair
    for module in hf_model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps *= 1 + 1e-6
    assert compare(timm_model, hf_model, pixels, dtypes=["float32"])["float32"].same_bits
    exact = compare(timm_model, hf_model, pixels, dtypes=["float64"], tokens=6)["float64"]
    assert exact.diverges_at.name == "blocks.0"


@pytest.mark.parametrize("tokens", [None, 6])
def test_a_block_s_weights_are_converted_only_while_it_computes(pair, tokens, monkeypatch):
    timm_model, hf_model, pixels = pair
    seen = []
    right = timm_model.blocks[1].forward
    weights = [block.mlp.fc1.weight for block in timm_model.blocks]
    monkeypatch.setattr(timm_model.blocks[1], "forward", lambda x: seen.append([w.dtype for w in weights]) or right(x))
    compare(timm_model, hf_model, pixels, dtypes=["float64"], tokens=tokens).assert_match()
    assert seen == [[torch.float32, torch.float64]]


def test_the_models_come_back_as_they_were(pair):
    timm_model, hf_model, pixels = pair
    timm_model.train()
    hf_model.to(torch.bfloat16)
    before = [copy.deepcopy(model.state_dict()) for model in (timm_model, hf_model)]
    compare(timm_model, hf_model, pixels)
    for model, state_dict in zip((timm_model, hf_model), before, strict=True):
        assert all(torch.equal(tensor, state_dict[name]) for name, tensor in model.state_dict().items())
        assert all(tensor.dtype == state_dict[name].dtype for name, tensor in model.state_dict().items())
    assert timm_model.training
    assert not hf_model.training
    assert not any(module._forward_hooks for module in (*timm_model.modules(), *hf_model.modules()))


def test_an_exception_in_the_timm_model_is_raised(pair):
    timm_model, hf_model, pixels = pair
    timm_model.head = torch.nn.Linear(3, 5)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        compare(timm_model, hf_model, pixels)


def test_an_exception_in_the_other_model_is_raised(pair):
    timm_model, hf_model, pixels = pair
    hf_model.classifier = torch.nn.Linear(3, 5)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        compare(timm_model, hf_model, pixels)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_low_precision_is_judged_against_float64(pair, dtype):
    timm_model, hf_model, pixels = pair
    parity = compare(timm_model, hf_model, pixels, dtypes=[dtype])
    assert all(stage.error <= 1.5 for stage in parity[dtype].stages)
    hf_model.vit.layers[0].attention.v_proj.bias.data.add_(0.3)
    stage = compare(timm_model, hf_model, pixels, dtypes=[dtype])[dtype].diverges_at
    assert stage.name == "blocks.0"
    with pytest.raises(ParityError, match="times as far from the float64 reference as the original, and 1.5 times is"):
        compare(timm_model, hf_model, pixels, dtypes=[dtype]).assert_match()


def test_float32_allows_another_order_of_summation_and_no_more(pair):
    timm_model, hf_model, pixels = pair
    hf_model.set_attn_implementation("eager")
    compare(timm_model, hf_model, pixels, dtypes=["float32"]).assert_match()
    hf_model.vit.layers[1].mlp.fc1.bias.data.mul_(1 + 1e-3)
    assert compare(timm_model, hf_model, pixels, dtypes=["float32"])["float32"].diverges_at.name == "blocks.1"


def test_float32_allows_twice_what_the_original_itself_is_off():
    """Where a processor sums up a patch in one go, timm's convolution rounds by more than another order explains."""
    exact = torch.tensor([1.0, 0.5], dtype=torch.float64)
    original = exact - torch.tensor([0, 3e-6], dtype=torch.float64)
    criterion = CRITERIA["float32"]
    assert not measure_stage("embeddings", [original, exact], criterion, []).within
    assert measure_stage("embeddings", [exact, original, exact + 2e-6], criterion, []).within
    assert not measure_stage("embeddings", [exact, original, exact + 4e-6], criterion, []).within


def test_a_second_look_beside_float64_decides_in_float32(monkeypatch):
    model = reduced("vit_base_patch16_radio_v3")  # Transformers multiplies matrices where timm convolves
    twin = to_huggingface(model, verify=False)
    pixels = pixels_for(model)
    strict = dataclasses.replace(CRITERIA["float32"], tolerance=1e-9)
    monkeypatch.setitem(CRITERIA, "float32", strict)
    compare(model, twin, pixels, dtypes=["float32"]).assert_match()
    with torch.no_grad():
        twin.encoder.layer[1].mlp.fc1.bias[0] += 1e-3
    with pytest.raises(ParityError, match=r"diverge at `blocks\.1` in float32: .* rounding explains"):
        compare(model, twin, pixels, dtypes=["float32"]).assert_match()


def test_eager_attention_is_compared_with_sdpa_in_float64(pair):
    timm_model, hf_model, pixels = pair
    hf_model.set_attn_implementation("eager")
    compare(timm_model, hf_model, pixels, dtypes=["float64"]).assert_match()
    assert hf_model.config._attn_implementation == "eager"


def test_measures_what_it_says(pair):
    timm_model, hf_model, pixels = pair
    hf_model.classifier.bias.data[2] += 0.5
    last = compare(timm_model, hf_model, pixels, dtypes=["float64"])["float64"].stages[-1]
    assert last.max_abs == pytest.approx(0.5)
    assert last.mean_abs == pytest.approx(0.1)
    with torch.no_grad():
        one, other = timm_model.double()(pixels.double()), hf_model.double()(pixels.double()).logits
    assert last.scale == pytest.approx(one.abs().max().item())
    assert last.relative == pytest.approx(0.5 / last.scale)
    assert last.cosine == pytest.approx(torch.cosine_similarity(one.flatten(), other.flatten(), dim=0).item())


@pytest.mark.parametrize("size", [3, 1000, 100_000])
def test_of_equal_outputs_the_cosine_is_exactly_one(size):
    """The quotient of the product and the lengths is 3e-16 below for one of these."""
    output = torch.randn(size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    assert _cosine(output, output.clone()) == 1.0
    assert _cosine(output, -output) == pytest.approx(-1.0, abs=1e-12)
    assert _cosine(output, torch.zeros_like(output)) == 0.0


def test_agreement_counts_the_batch(pair):
    timm_model, hf_model, _ = pair
    pixels = pixels_for(timm_model, batch=8)
    hf_model.classifier.bias.data[0] += 100
    comparison = compare(timm_model, hf_model, pixels, dtypes=["float64"])["float64"]
    with torch.no_grad():
        share = (timm_model(pixels).argmax(-1) == 0).double().mean().item()
    assert comparison.top1 == share
    assert comparison.topk == 1  # all five classes are among the best five


def test_models_of_another_shape_are_not_compared(pair):
    timm_model, _, pixels = pair
    with pytest.raises(ParityError, match="One model is at `blocks.1` where the other is at `norm`"):
        compare(timm_model, to_huggingface(small_model(depth=1)), pixels)
    with pytest.raises(ParityError, match="At `embeddings` one model has shape"):
        compare(timm_model, to_huggingface(small_model(embed_dim=32)), pixels)
    with pytest.raises(ParityError, match="converts to ViTForImageClassification, and the other is a ViTModel"):
        compare(timm_model, to_huggingface(small_model("headless")), pixels)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_dinov3_qkvb", "vit_base_patch16_sapiens2"])
def test_a_norm_of_all_tokens_is_a_stage_wherever_the_class_has_it(name):
    model = reduced(name)
    stages = compare(model, to_huggingface(model, verify=False), pixels_for(model), dtypes=["float64"])[
        "float64"
    ].stages
    assert [stage.name for stage in stages] == ["embeddings", "blocks.0", "blocks.1", "norm", "features"]


@pytest.mark.parametrize(("dtype", "message"), [("int8", "no dtype 'int8'"), ("tf32", "TF32 is a mode of GPUs")])
def test_an_impossible_dtype(pair, dtype, message):
    with pytest.raises(InputError, match=message):
        compare(*pair, dtypes=[dtype])


@pytest.mark.parametrize("device", ["cuda:99", "abacus", "meta", "hpu", "vulkan"])
def test_an_impossible_device(pair, device):
    with pytest.raises(InputError, match=f"no device '{device}' here"):
        compare(*pair, device=device)


def test_low_precision_without_rounding_allows_none():
    """Where the original is exact in bfloat16, a converted model that is not is wrong by any ratio."""
    exact = torch.ones(1, 2, dtype=torch.float64)
    assert measure_stage("logits", [exact, exact, exact], CRITERIA["bfloat16"], []).within
    assert not measure_stage("logits", [exact, exact, exact * 1.01], CRITERIA["bfloat16"], []).within


def test_the_figures_are_plain_data(pair):
    figures = json.loads(json.dumps(compare(*pair).to_dict()))
    assert figures["float64"]["matches"] is True
    assert figures["float64"]["stages"][-1]["name"] == "logits"
    assert list(figures["float64"]["stages"][0]) == [
        *("name", "max_abs", "mean_abs", "scale", "cosine", "error", "limit", "finite")
    ]


def test_prints_as_a_table_and_draws_itself(pair, capsys):
    parity = compare(*pair)
    rich.print(parity)
    printed = capsys.readouterr().out
    assert "float64" in printed
    assert "blocks.1" in printed
    matplotlib.use("agg")
    axes = parity.plot()
    assert axes.get_yscale() == "log"
    assert len(axes.lines) == 4  # the figures and the limit, in two dtypes


def test_equal_stages_are_drawn_in_the_band_that_says_so_each_dtype_on_its_own_line(pair):
    matplotlib.use("agg")
    parity = compare(*pair)
    stages = [
        (dataclasses.replace(stage, max_abs=0.0), dataclasses.replace(stage, max_abs=1e-19))
        for stage in parity["float64"].stages
    ]
    equal, tiny = zip(*stages, strict=True)
    comparisons = tuple(dataclasses.replace(one, stages=equal) for one in parity.comparisons)
    axes = dataclasses.replace(parity, comparisons=comparisons).plot()
    first, second = (line.get_ydata()[0] for line in axes.lines[::2])
    low, high = EQUAL
    assert low < second < first < high
    assert "equal (Δ = 0)" in [label.get_text() for label in axes.get_yticklabels()]
    # The smallest difference is not equality.
    axes = dataclasses.replace(parity, comparisons=(dataclasses.replace(comparisons[0], stages=tiny),)).plot()
    assert min(axes.lines[0].get_ydata()) >= high


def test_drawing_without_matplotlib_names_the_extra(pair, monkeypatch):
    parity = compare(*pair, dtypes=["float64"])
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    finder = type("Without", (), {"find_spec": staticmethod(_not_installed)})
    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    with pytest.raises(InputError, match="needs matplotlib, which is not installed") as caught:
        parity.plot()
    assert "pip install -e '.[plot]' in vitconv's clone" in caught.value.remedy


def _not_installed(name, *arguments):
    if name.partition(".")[0] == "matplotlib":
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_an_answer_near_zero_is_judged_by_its_terms():
    """One class, one image, and a logit that cancels to almost nothing: rounding is not an error."""
    model = small_model("one class").double()
    pixels = pixels_for(model, batch=1).double()
    with torch.no_grad():
        model.head.bias -= model(pixels)[0] * (1 - 1e-13)
    compare(model, to_huggingface(model), pixels).assert_match()


def test_gradients_are_left_as_they_were(pair):
    timm_model, hf_model, pixels = pair
    hf_model(pixels, labels=torch.tensor([0, 1])).loss.backward()
    before = hf_model.classifier.weight.grad.clone()
    compare(timm_model, hf_model, pixels)
    assert torch.equal(hf_model.classifier.weight.grad, before)
    assert hf_model.classifier.weight.grad.dtype == torch.float32


def test_what_is_not_finite_must_be_the_same_and_is_counted():
    model = small_model()
    with torch.no_grad():
        model.blocks[1].mlp.fc2.bias[3] = torch.inf
    twin = to_huggingface(model)
    parity = compare(model, twin, pixels_for(model))
    assert parity.matches
    assert parity["float64"].stages[1].finite == 1
    assert parity["float64"].stages[2].finite == 63 / 64
    assert "1.56% of the values at `blocks.1` are NaN or infinite" in nonfinite_values(parity)[0]
    with torch.no_grad():
        twin.state_dict()["vit.layers.1.mlp.fc2.bias"][3] = -torch.inf
    assert compare(model, twin, pixels_for(model))["float64"].diverges_at.name == "blocks.1"
