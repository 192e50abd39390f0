from vitconv.models.images import load_image, sample_image
from vitconv.serving.probe import sample_file


def test_it_is_the_sample_image():
    assert load_image(sample_file()).tobytes() == sample_image().tobytes()
