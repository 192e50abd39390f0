from vitconv.errors import CheckpointError


def test_a_name_of_any_length_is_cut_wherever_it_stands():
    name = "a." * 500_000
    error = CheckpointError(f"'w.pth' holds `{name}`, and `{name}` again.", f"Save it without `{name}`.")
    assert len(str(error)) < 1000
    assert error.problem.startswith("'w.pth' holds `a.a.") and error.problem.endswith("…` again.")
