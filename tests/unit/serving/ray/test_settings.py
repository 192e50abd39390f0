import pytest

from vitconv.errors import InputError
from vitconv.serving.ray.settings import RaySettings


def test_as_many_copies_as_asked_for():
    found = RaySettings("mine", replicas=3).options()
    assert found["num_replicas"] == 3
    assert "autoscaling_config" not in found
    assert found["ray_actor_options"] == {"num_cpus": 1, "num_gpus": 0}


def test_more_copies_under_load():
    found = RaySettings("mine", replicas=1, most_replicas=4, workers=2).options()
    assert "num_replicas" not in found  # Ray refuses both
    assert (found["autoscaling_config"]["min_replicas"], found["autoscaling_config"]["max_replicas"]) == (1, 4)
    assert found["ray_actor_options"]["num_cpus"] == 2


@pytest.mark.parametrize(("device", "gpus"), [("cpu", 0), ("cuda", 1)])
def test_a_gpu_for_each_copy(device, gpus):
    assert RaySettings("mine", device).options()["ray_actor_options"]["num_gpus"] == gpus


def test_the_fewest_copies_are_not_more_than_the_most():
    with pytest.raises(InputError, match="At least 3 replicas are more than at most 2"):
        RaySettings("mine", replicas=3, most_replicas=2)


@pytest.mark.parametrize("given", [{"workers": 0}, {"timeout": float("nan")}])
def test_what_a_copy_could_not_do_is_refused_before_there_is_one(given):
    with pytest.raises(InputError, match="The (number of workers|timeout) is (0|nan)"):
        RaySettings("mine", **given)
