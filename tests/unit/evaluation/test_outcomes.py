import pytest

from vitconv.errors import InputError
from vitconv.evaluation.outcomes import _why_no_labels, read_labels
from vitconv.inference.images import read_images


def test_a_name_that_only_looks_like_a_class_is_told_apart(tmp_path):
    """The names of files on a Mac may have é as an e and an accent."""
    classes, folder = ("\u00e9rable", "oak"), tmp_path / "e\u0301rable"
    folder.mkdir()
    (folder / "a.png").touch()
    alike = r"'e\u0301rable', which looks like the class '\xe9rable'"
    (warning,) = _why_no_labels(read_images(tmp_path), classes)
    assert f"not all of them are classes of the model (e\u0301rable: {alike}). Rename" in warning
    with pytest.raises(InputError) as refused:
        read_labels(tmp_path, classes)
    assert refused.value.problem.endswith(f"a class that the model does not have: 'e\u0301rable': {alike}.")
    assert _why_no_labels(read_images(tmp_path), ("erable", "oak")) == ()
