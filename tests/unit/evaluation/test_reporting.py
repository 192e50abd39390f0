import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from markdown_it import MarkdownIt

from vitconv.errors import InputError
from vitconv.evaluation import evaluate
from vitconv.evaluation.plots import save_pictures
from vitconv.evaluation.reporting import Change, changes, report
from vitconv.evaluation.thresholds import Threshold
from vitconv.inference.predictions import Parts, Run, make_rows

CLASSES = ("ash", "beech & <oak>")


@pytest.fixture
def evaluation(tmp_path, write_images, monkeypatch):
    """Evaluate two classes on real images; returns the folder."""
    monkeypatch.setattr("vitconv.evaluation.metrics.RESAMPLES", 50)

    def run(limit=1.0, labels=True, broken=()):
        images = write_images(4, broken=broken, labels=[CLASSES[i % 2] for i in range(4)] if labels else None)
        logits = np.array([[3, 1], [0, 2], [1, 2], [0, 1]], np.float32)
        errors = ["There is no image." if i in broken else None for i in range(4)]
        paths = images.read_text().splitlines()[1:]
        table = make_rows(0, [path.partition(",")[0] for path in paths], logits, errors, CLASSES)
        Parts(tmp_path / "predictions", Run({}, CLASSES), 1, overwrite=True).write(0, table, "key")
        (tmp_path / "expected.csv").write_text("path,class\nimages/00000.jpg,ash\nimages/00002.jpg,ash\n")
        thresholds = {"agreement": {"min": limit}}
        result = evaluate(tmp_path / "predictions", images, expected=tmp_path / "expected.csv", thresholds=thresholds)
        save_pictures(result, tmp_path / "evaluation")
        result.save(tmp_path / "evaluation", tmp_path / "evaluation" / "metrics.json")
        return tmp_path / "evaluation"

    return run


def test_the_page_says_not_passed_and_why(evaluation, tmp_path):
    (missed,) = report(evaluation(), tmp_path / "report")
    assert (
        missed
        == "Images that get the expected answer (agreement): 0.5, below 1: most often 'ash', 1 of 2 images wrong (images/00002.jpg)."
    )
    page = (tmp_path / "report" / "index.html").read_text()
    assert "<h1>Not passed</h1>" in page
    assert "Images that get the expected answer (agreement): 0.5, below 1" in page
    assert "<p>1 of 2 images get the expected answer.</p>" in page
    assert "<li>2 images have no expected answer.</li>" in page
    assert (
        '<td>Images that get the expected answer</td><td class="number">1 of 2</td><td class="number">≥ 100 %</td>'
        in page
    )
    assert "What changed" not in page  # nothing was given to compare with
    text = (tmp_path / "report" / "report.md").read_text()
    assert text.startswith("# ❌ Not passed\n")
    assert r"| images/00002.jpg | ash | beech \& \<oak\> | ash |" in text


def test_the_page_says_passed_and_what_changed(evaluation, tmp_path):
    folder = evaluation(limit=0.5)
    last = json.loads((folder / "metrics.json").read_text()) | {"accuracy": 0.5, "gone": 1.0}
    (tmp_path / "last.json").write_text(json.dumps(last))
    assert report(folder, tmp_path / "report", last=tmp_path / "last.json") == []
    page = (tmp_path / "report" / "index.html").read_text()
    assert "<h1>Passed</h1>" in page
    section = page[page.index("What changed") : page.index("</section>", page.index("What changed"))]
    rows = [re.findall(r">([^<>\n]+)</td>", row) for row in re.findall(r"<tr>(.*)</tr>", section)]
    assert rows[1:] == [["Images that get their label (accuracy)", "2 of 4", "3 of 4"], ["gone", "1", "–"]]


@pytest.mark.parametrize("option", ["last", "verification"])
def test_a_pipe_is_refused_without_waiting(option, evaluation, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe' is a pipe, not a file"):
        report(evaluation(), tmp_path / "report", **{option: tmp_path / "pipe"})


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
@pytest.mark.parametrize("kind, words", [("fifo", "a pipe"), ("device", "a device"), ("immense", "16,777,216")])
def test_a_picture_without_an_end_is_not_read(kind, words, evaluation, tmp_path):
    picture = evaluation() / "images.png"
    picture.unlink()
    if kind == "fifo":
        os.mkfifo(picture)
    elif kind == "device":
        picture.symlink_to("/dev/zero")
    else:
        with picture.open("wb") as file:
            file.truncate(2**40)
    command = [Path(sys.executable).with_name("vitconv"), "report", picture.parent, tmp_path / "report"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: The picture '{picture}' ") and words in done.stderr
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    "content",
    [None, "", "null", "[1]", json.dumps(dict.fromkeys(map(str, range(100_001)), 1.0))],
    ids=["missing", "empty", "null", "a list", "too many"],
)
def test_a_missing_or_invalid_earlier_run_is_ignored(evaluation, tmp_path, content):
    if content is not None:
        (tmp_path / "last.json").write_text(content)
    report(evaluation(), tmp_path / "report", last=tmp_path / "last.json")
    assert "There is no earlier run" in (tmp_path / "report" / "report.md").read_text()


def test_the_page_needs_no_other_file_and_no_network(evaluation, tmp_path):
    report(evaluation(), tmp_path / "report")
    page = (tmp_path / "report" / "index.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]{0,40})', page)
    assert len(sources) == 4  # the expected answers have no logits, so there is no picture of them
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"https?://", re.sub(r"data:[^\"]*", "", page))
    pictures = re.findall(r"!\[.*\]\((.*)\)", (tmp_path / "report" / "report.md").read_text())
    assert len(pictures) == 4
    assert all((tmp_path / "report" / name).exists() for name in pictures)


def test_names_are_not_markup(evaluation, tmp_path):
    report(evaluation(), tmp_path / "report")
    page = (tmp_path / "report" / "index.html").read_text()
    assert "beech &amp; &lt;oak&gt;" in page
    assert "<oak>" not in page


#: Where a browser, or a reader of Markdown, would see a script, a picture from elsewhere, a heading, a table's end.
HOSTILE = "<script>alert(1)</script> ![a](http://e.org/a.png) [b](http://e.org) | `c` *d* _e_ &lt; $f$ \\ \n\n# g\n\n| h |\n|---|\n www.e.org"


def test_names_are_not_markup_in_either_page(evaluation, tmp_path):
    """The name of a class, a path, an error, a metric and a threshold are shown exactly as they are."""
    folder = evaluation(broken=(3,))

    def pages(name):
        summary = json.loads((folder / "evaluation.json").read_text())
        one = summary["thresholds"][0]
        one["name"], one["value"] = name, 0.5
        threshold = Threshold(name, one["bound"], one["limit"], 0.5)
        one["passed"], one["detail"], one["text"] = threshold.passed, "", str(threshold)
        summary["passed"] = all(other["passed"] for other in summary["thresholds"])
        summary["metrics"][name] = 0.5
        summary["intervals"][name] = [0.25, 0.75]
        summary["disagreements"] = [
            {"path": name, "expected": name, "predicted": name, "label": name, "probability": 0.5}
        ]
        summary["errors"] = [{"path": name, "error": name}]
        summary["about"], summary["sentences"], summary["skipped"] = {name: name}, [name, name], [name]
        summary["splits"] = [{"split": one, "labelled": 2, "right": 1} for one in (name, "fit")]
        known = {"path": name, "reason": name, "expected": name, "predicted": name, "max_logit_difference": 0.5}
        summary["known_differences"], summary["metrics"]["known_differences"] = [known], 30
        (tmp_path / "hostile").mkdir(exist_ok=True)
        for file in folder.iterdir():
            (tmp_path / "hostile" / file.name).write_bytes(file.read_bytes())
        (tmp_path / "hostile" / "evaluation.json").write_text(json.dumps(summary))
        (tmp_path / "last.json").write_text(json.dumps({name + " once": 0.5}))
        proof = {"parity": {name: {"same_bits": True, "stages": [{"name": name, "max_abs": 0.0}]}}}
        (tmp_path / "proof.json").write_text(json.dumps(proof))
        files = {"last": tmp_path / "last.json", "verification": tmp_path / "proof.json"}
        assert report(tmp_path / "hostile", tmp_path / "report", **files)[0].startswith(f"{name}: 0.5")
        return [(tmp_path / "report" / file).read_text() for file in ("report.md", "index.html")]

    (text, page), (neutral_text, neutral_page) = pages(HOSTILE), pages("xyz")
    tokens, neutral = (MarkdownIt("commonmark").enable("table").parse(one) for one in (text, neutral_text))
    assert [token.type for token in tokens] == [token.type for token in neutral]
    inline = [child.type for token in tokens for child in token.children or []]
    assert set(inline) <= {"text", "text_special", "code_inline", "softbreak", "image"}
    assert inline.count("image") == 4  # its own
    shown = "".join(child.content for token in tokens for child in token.children or [])
    assert shown.count(" ".join(HOSTILE.split())) == neutral_text.count("xyz")
    assert page.count("alert(1)") == neutral_page.count("xyz")
    assert "<script" not in page and len(re.findall("<[a-z/]", page)) == len(re.findall("<[a-z/]", neutral_page))


def test_images_that_could_not_be_read_are_listed(evaluation, tmp_path):
    report(evaluation(broken=(3,)), tmp_path / "report")
    page = (tmp_path / "report" / "index.html").read_text()
    assert "Images that could not be read (1)" in page
    assert "1 of 4 images could not be read." in page
    assert "There is no image." in page


def test_there_are_pictures_without_labels(evaluation, tmp_path):
    report(evaluation(labels=False), tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    assert "accuracy" not in text and "What changed" not in text
    assert "(confusion.png)" in text and "(classes.png)" in text
    assert "reliability.png" not in text  # which would only say that there is nothing to draw
    page = (tmp_path / "report" / "index.html").read_text()
    assert page.count("<figure>") == text.count("![")


def test_the_proof_of_the_conversion_is_shown(evaluation, tmp_path):
    stages = [{"name": "logits", "max_abs": 3e-16}]
    parity = {"float64": {"same_bits": True, "stages": stages}, "float32": {"same_bits": False, "stages": stages}}
    (tmp_path / "proof.json").write_text(json.dumps({"parity": parity}))
    report(evaluation(), tmp_path / "report", verification=tmp_path / "proof.json")
    text = (tmp_path / "report" / "report.md").read_text()
    assert "- float64: logits equal bit for bit" in text
    assert "- float32: logits largest difference 3.0e-16" in text


def test_missing_files_are_named(tmp_path, evaluation):
    with pytest.raises(InputError, match=f"There is no folder '{tmp_path / 'nothing'}'."):
        report(tmp_path / "nothing", tmp_path / "report")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty' has no evaluation.json."):
        report(tmp_path / "empty", tmp_path / "report")
    folder = evaluation()
    (folder / "logits.png").unlink()
    with pytest.raises(InputError, match="logits.png"):
        report(folder, tmp_path / "report")
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize("content", ["{}", '{"metrics": []}', '{"metrics": {"errors": 0}, "thresholds": [{}]}'])
def test_an_evaluation_of_another_version_is_refused(evaluation, tmp_path, content):
    folder = evaluation()
    (tmp_path / "proof.json").write_text('{"other": 1}')
    with pytest.raises(InputError, match="written by another version"):
        report(folder, tmp_path / "report", verification=tmp_path / "proof.json")
    (folder / "evaluation.json").write_text(content)
    with pytest.raises(InputError, match="written by another version"):
        report(folder, tmp_path / "report")
    assert not (tmp_path / "report").exists()


#: A threshold of the evaluation's four images.
KEPT = {"name": "images", "bound": "min", "limit": 4.0, "value": 4, "detail": "", "passed": True}
KEPT["text"] = "Images: 4, at least 4."


@pytest.mark.parametrize(
    "change, words",
    [
        ({"thresholds": [KEPT | {"text": 5}]}, r"`evaluation.thresholds\[0\].text` is 5, not a string"),
        ({"thresholds": [KEPT | {"passed": "no"}]}, r"`evaluation.thresholds\[0\].passed` is 'no'"),
        ({"thresholds": [KEPT]}, "was edited: `passed` contradicts its thresholds"),
        ({"thresholds": [KEPT | {"value": 0.5}]}, "'images' has another value than its threshold states"),
        ({"thresholds": [KEPT | {"limit": 5}]}, "the result of the threshold of 'images' contradicts its value"),
        (
            {"thresholds": [KEPT | {"text": "All is well."}]},
            "the result of the threshold of 'images' contradicts its value",
        ),
        ({"metrics": {"images": 4, "errors": 0, "accuracy": float("nan")}}, "accuracy` is nan, not a finite number"),
        ({"passed": 1}, "`evaluation.passed` is 1"),
        ({"metrics": {"images": 4, "errors": True}}, "`evaluation.metrics.errors` is True, not a number"),
        ({"metrics": {"images": -4, "errors": 0}}, "`evaluation.metrics.images` is -4, not a number of images"),
        (
            {"metrics": {"images": float("nan"), "errors": 0}},
            "`evaluation.metrics.images` is nan, not a number of images",
        ),
        ({"thresholds": [KEPT] * 100_001}, "has 100,001 entries; at most 100,000 are allowed"),
        ({"metrics": {"images": 4}}, "`evaluation.metrics` has no `errors`"),
        ({"intervals": {"agreement": ["a", "b"]}}, "not two finite numbers"),
        ({"disagreements": [5]}, r"`evaluation.disagreements\[0\]` is 5, not a mapping"),
        ({"errors": [{"path": None, "error": "a"}]}, "`evaluation.errors.0..path` is None, not a string"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_invalid_evaluation_is_refused_before_anything_is_written(evaluation, tmp_path, change, words):
    folder = evaluation()
    summary = json.loads((folder / "evaluation.json").read_text())
    (folder / "evaluation.json").write_text(json.dumps(summary | change))
    with pytest.raises(InputError, match=words):
        report(folder, tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_an_invalid_verification_is_refused(evaluation, tmp_path):
    stages = [{"name": "logits", "max_abs": 1.0}]
    (tmp_path / "proof.json").write_text(json.dumps({"parity": {"float64": {"same_bits": "no", "stages": stages}}}))
    with pytest.raises(InputError, match="`verification.parity.float64.same_bits` is 'no'"):
        report(evaluation(), tmp_path / "report", verification=tmp_path / "proof.json")


def test_names_are_shown_on_one_line_printable_and_shortened(evaluation, tmp_path):
    folder = evaluation()
    summary = json.loads((folder / "evaluation.json").read_text())
    row = {"path": "rtl\u202egnp.png", "expected": "a\0b", "predicted": "\x1b[31m", "label": "z" * 5000}
    summary["disagreements"] = [row | {"probability": 0.5}]
    summary["errors"] = [{"path": "y" * 5000, "error": "x" * 5000}]
    (folder / "evaluation.json").write_text(json.dumps(summary))
    report(folder, tmp_path / "report")
    for file in ("index.html", "report.md"):
        page = (tmp_path / "report" / file).read_text()
        assert all(character.isprintable() or character == "\n" for character in page)
        assert "rtl\ufffdgnp.png" in page and "a\ufffdb" in page
        for character, most in (("z", 200), ("y", 200), ("x", 1000)):
            assert character * most + "…" in page and character * (most + 1) not in page


def test_changes_smaller_than_rounding_are_ignored():
    before, after = {"a": 1.0, "b": 1.0, "gone": 2.0}, {"a": 1 + 1e-9, "b": 1.1, "new": 3.0}
    assert changes(before, after) == [Change("b", 1.0, 1.1), Change("new", None, 3.0), Change("gone", 2.0, None)]


@pytest.mark.slow
def test_the_command_fails_if_a_threshold_is_missed(evaluation, tmp_path):
    command = Path(sys.executable).with_name("vitconv")
    folder = evaluation()
    done = subprocess.run([command, "report", folder, tmp_path / "report"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        "error: Images that get the expected answer (agreement): 0.5, below 1: most often 'ash', 1 of 2 images wrong (images/00002.jpg).\n"
        f"{tmp_path}/report/index.html shows it.\n"
    )
    folder = evaluation(limit=0.5)
    done = subprocess.run([command, "report", folder, tmp_path / "report"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/report/index.html: passed\n")


def edited(folder, **changes):
    """Change parts of the summary in the folder."""
    file = folder / "evaluation.json"
    summary = json.loads(file.read_text())
    file.write_text(
        json.dumps(summary | {name: value(summary) if callable(value) else value for name, value in changes.items()})
    )


def pages(folder, destination, **files):
    """Report, and return the texts of the two pages."""
    report(folder, destination, **files)
    return [(destination / name).read_text() for name in ("index.html", "report.md")]


def test_the_header_says_what_was_evaluated_and_when(evaluation, tmp_path):
    folder = evaluation()
    edited(folder, about={"model": "mine", "model's SHA-256": "502514a868561582…", "date": "2026-01-02 03:04 UTC"})
    page, text = pages(folder, tmp_path / "report")
    header = page[page.index("<header>") : page.index("</header>")]
    assert "<dt>model&#39;s SHA-256</dt><dd>502514a868561582…</dd>" in header
    assert "<dt>date</dt><dd>2026-01-02 03:04 UTC</dd>" in header
    assert "<title>Not passed: mine, 2026-01-02 03:04 UTC</title>" in page
    assert "- model's SHA-256: 502514a868561582…\n- date: 2026-01-02 03:04 UTC" in text


@pytest.mark.parametrize(
    "thresholds, compared, title",
    [
        ([], 0, "Nothing to judge"),
        ([], 2, "Not judged"),
        (["not_compared"], 0, "Nothing to judge"),
        (["not_compared"], 2, "Passed"),
        (["accuracy"], 0, "Passed"),
    ],
)
def test_a_page_is_green_only_if_something_was_judged(evaluation, tmp_path, thresholds, compared, title):
    folder = evaluation()
    metrics = {"images": 4, "errors": 0, "compared": compared, "not_compared": 0, "accuracy": 1.0}
    limits = [Threshold(name, "max", 1.0, metrics[name]) for name in thresholds]
    rows = [vars(one) | {"passed": one.passed, "text": str(one)} for one in limits]
    right, wrong = (True, None) if title == "Passed" else (None, True)
    edited(folder, metrics=metrics, thresholds=rows, passed=wrong, disagreements=[], intervals={})
    with pytest.raises(InputError, match="was edited: `passed` contradicts its thresholds"):
        pages(folder, tmp_path / "report")
    edited(folder, passed=right)
    page, text = pages(folder, tmp_path / "report")
    assert f"<h1>{title}</h1>" in page
    state = "passed" if title == "Passed" else "neutral"
    assert f'<div class="verdict {state}">' in page
    assert text.startswith(f"# {'✅' if title == 'Passed' else '➖'} {title}\n")


def test_skipped_thresholds_are_named(evaluation, tmp_path):
    folder = evaluation()
    edited(folder, skipped=["max_logit_difference"])
    page, text = pages(folder, tmp_path / "report")
    assert '<td>Largest difference of a logit</td><td colspan="2">not judged</td>' in page
    assert "| – | Largest difference of a logit | not judged | |" in text
    assert "The expected answers have no logits." in page and "The expected answers have no logits." in text


def test_known_differences_have_their_own_table_with_the_way_out(evaluation, tmp_path):
    folder = evaluation()
    page, text = pages(folder, tmp_path / "report")
    assert "--processor timm" not in page + text
    row = {"path": "a.png", "reason": "Another crop.", "expected": "ash", "predicted": None}
    rows = [row | {"max_logit_difference": value} for value in (0.02643, None)]
    edited(folder, known_differences=rows, metrics=lambda old: old["metrics"] | {"known_differences": 30})
    page, text = pages(folder, tmp_path / "report")
    assert "<h2>Images with a known difference (30)</h2>" in page and "<code>--processor timm</code>" in page
    assert "The table shows the first 2." in page and "The table shows the first 2." in text
    assert (
        "| a.png | Another crop. | ash | not readable | 0.0264 |\n| a.png | Another crop. | ash | not readable | – |"
        in text
    )
    assert '<td data-of="reason">Another crop.</td>' in page


def test_fitted_images_are_told_from_others_and_take_the_intervals_of_the_labels(evaluation, tmp_path):
    folder = evaluation()
    metrics = {"images": 20, "errors": 0, "compared": 20, "agreement": 0.5, "labelled": 20, "accuracy": 0.75}
    found = {"metrics": metrics, "thresholds": [], "passed": None, "disagreements": []}
    edited(folder, **found, intervals={"agreement": [0.27, 0.73], "accuracy": [0.5, 0.9]})
    page, text = pages(folder, tmp_path / "report")
    assert "27 % to 73 %" in page and "50 % to 90 %" in page and "fitted" not in page
    edited(
        folder, splits=[{"split": "fit", "labelled": 12, "right": 12}, {"split": "test", "labelled": 8, "right": 3}]
    )
    page, text = pages(folder, tmp_path / "report")
    assert "27 % to 73 %" in page and "50 % to 90 %" not in page + text
    assert '<td>fit, which the model was fitted on</td><td class="number">12 of 12</td>' in page
    assert "| test | 3 of 8 |" in text


@pytest.mark.parametrize("images, interval", [(9, [0.1, 0.9]), (20, [0.5, 0.5])], ids=["few images", "no width"])
def test_an_interval_that_says_nothing_is_left_out(evaluation, tmp_path, images, interval):
    folder = evaluation()
    metrics = {"images": images, "errors": 0, "labelled": images, "accuracy": 0.5}
    edited(folder, metrics=metrics, thresholds=[], passed=None, disagreements=[], intervals={"accuracy": interval})
    page, text = pages(folder, tmp_path / "report")
    assert "95 % interval" not in page + text and " to " not in text[text.index("## Metrics") :]


def test_a_missed_threshold_shows_the_exact_value(evaluation, tmp_path):
    folder = evaluation()
    one = Threshold("cost", "max", 0.95, 0.9500001)
    rows = [vars(one) | {"passed": False, "text": str(one)}]
    edited(folder, thresholds=rows, metrics=lambda old: old["metrics"] | {"cost": 0.9500001}, passed=False)
    page, text = pages(folder, tmp_path / "report")
    assert f'<td class="text" colspan="3">{one}</td>' in page and f"- ✗ {one}" in text


def test_a_change_below_the_rounding_is_shown_exactly(evaluation, tmp_path):
    folder = evaluation()
    edited(folder, metrics=lambda old: old["metrics"] | {"max_logit_difference": 5e-5})
    (tmp_path / "last.json").write_text(json.dumps({"max_logit_difference": 3e-5}))
    page, _ = pages(folder, tmp_path / "report", last=tmp_path / "last.json")
    assert '<td>Largest difference of a logit</td><td class="number">3e-5</td><td class="number">5e-5</td>' in page


def test_a_summary_of_another_version_is_refused(evaluation, tmp_path):
    folder = evaluation()
    edited(folder, schema=3)
    with pytest.raises(InputError, match="`evaluation.schema` is 3, not 2"):
        report(folder, tmp_path / "report")


def test_the_page_is_made_for_the_dark_and_for_narrow_screens(evaluation, tmp_path):
    page, _ = pages(evaluation(), tmp_path / "report")
    assert "@media (prefers-color-scheme: dark)" in page
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    # On narrow screens each cell of a wide table is a line, with its heading.
    assert '<td data-of="expected class">ash</td>' in page
