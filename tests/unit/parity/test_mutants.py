"""Every mutant is caught, and by the stage it lives in; what nothing changes would be a defect of this suite."""

import shutil

import pytest
from mutants import BASES, MUTANTS, make_base, run_checks
from safetensors.torch import load_file


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    return {name: make_base(name, folder / name.replace(" ", "-")) for name in BASES}


def test_there_are_sixty_and_no_two_alike():
    assert len(MUTANTS) >= 60
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


@pytest.fixture(params=["convert", pytest.param("verify", marks=pytest.mark.slow)])
def converting(request):
    """Whether a mutant is judged by the proof that ``vitconv convert`` makes, or by ``vitconv verify``."""
    return request.param == "convert"


@pytest.mark.parametrize("name", BASES)
def test_the_right_conversion_passes(name, bases, converting):
    outcome = run_checks(bases[name], bases[name].folder, converting=converting)
    assert (outcome.verdict, outcome.numbers, outcome.allclose) == (None, None, True)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_is_caught_by_the_stage_it_lives_in(mutant, bases, converting, tmp_path):
    base = bases[mutant.base]
    shutil.copytree(base.folder.parent, tmp_path / "base")
    folder = tmp_path / "base" / "hf"
    mutant.edit(folder)
    assert any(changed(path, folder / path.name) for path in base.folder.iterdir()), "the mutant changes nothing"
    outcome = run_checks(base, folder, converting=converting)
    assert outcome.caught(mutant), outcome
    if mutant.stage in ("bytes", "pixels", "labels", "config"):
        assert outcome.verdict == mutant.stage
    else:
        assert outcome.numbers == mutant.stage
        assert outcome.verdict in ("bytes", "config")


def changed(path, other):
    if path.suffix != ".safetensors":
        return path.read_bytes() != other.read_bytes()
    one, two = load_file(path), load_file(other)
    return one.keys() != two.keys() or any(
        one[name].dtype != two[name].dtype or not one[name].equal(two[name]) for name in one
    )


def test_the_numbers_alone_do_not_see_a_key_bias(bases, tmp_path):
    """Why the bytes are checked too."""
    (mutant,) = [mutant for mutant in MUTANTS if mutant.name.startswith("k bias noisy")]
    shutil.copytree(bases["plain"].folder, tmp_path / "hf")
    mutant.edit(tmp_path / "hf")
    outcome = run_checks(bases["plain"], tmp_path / "hf")
    assert (outcome.numbers, outcome.allclose) == (None, True)
    assert outcome.verdict == "bytes"
