import pytest

import vitconv.serving.ray
from vitconv.errors import InputError
from vitconv.serving.ray import RaySettings


@pytest.mark.parametrize("name", ["serve", "write_configuration"])
def test_what_is_missing_is_said_when_it_is_used(name, monkeypatch):
    monkeypatch.setattr("vitconv.inference.optional.find_spec", lambda package: None if package == "ray" else True)
    with pytest.raises(InputError, match="not installed: ray") as caught:
        getattr(vitconv.serving.ray, name)(RaySettings("mine"), "somewhere")
    assert "'.[rayserve]'" in caught.value.remedy


def test_other_names_do_not_exist():
    with pytest.raises(AttributeError, match="no attribute 'scale'"):
        vitconv.serving.ray.scale  # noqa: B018
