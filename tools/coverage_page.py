"""Write catalogue.json and docs/coverage.md from the Vision Transformers that the installed timm lists."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import jinja2

from vitconv.models import catalogue

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("moved", "made", "folded")


def coverage_page() -> str:
    """Return the text of docs/coverage.md: the counts, then the verdict on every architecture."""
    verdicts = catalogue.verdicts()
    converted = [verdict for verdict in verdicts if verdict.class_name]
    refused = [verdict for verdict in verdicts if not verdict.class_name]
    classes = []
    for name, count in Counter(verdict.class_name for verdict in converted).most_common():
        of_class = [verdict for verdict in converted if verdict.class_name == name]
        expressions = list(dict.fromkeys(verdict.output_expression for verdict in of_class))
        classes.append((name, expressions, count, _counts(of_class)))
    reasons = [
        (reason, [verdict.name for verdict in refused if verdict.obstacles == reason])
        for reason, _ in Counter(verdict.obstacles for verdict in refused).most_common()
    ]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=False,
        trim_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("coverage.md.j2").render(
        version=json.loads(catalogue.FILE.read_text(encoding="utf-8"))["timm"],
        total=len(verdicts),
        verdicts=verdicts,
        own=Counter(verdict.own_head.option for verdict in verdicts),
        counts=_table(),
        converted=converted,
        refused=refused,
        classes=classes,
        totals=_counts(converted),
        reasons=reasons,
    )


def _table() -> list[tuple[str, ...]]:
    """How many convert: with seven classes, as timm lists them, and without a head."""
    found = [
        [catalogue.with_classes(entry, count) for entry in catalogue.entries().values()] for count in (7, None, 0)
    ]
    native = [[one for one in ones if not one.option] for ones in found]
    with_code = [[one for one in ones if one.option in ("", catalogue.WITH_HEAD_CODE)] for ones in found]
    rows = {
        "a class of Transformers": native,
        '… that `pipeline("image-classification")` loads': [[one for one in ones if one.pipeline] for ones in native],
        "also with `--head code`": with_code,
        "also with `--target timm_wrapper`": found,
    }
    return [(name, *(str(len(ones)) for ones in columns)) for name, columns in rows.items()]


def _counts(verdicts: list[catalogue.Verdict]) -> list[int]:
    counts = Counter(verdict.exactness for verdict in verdicts)
    return [counts[kind] for kind in KINDS]


def write_catalogue() -> None:
    """Write ``catalogue.json``, one architecture a line."""
    content = catalogue.generate()
    lines = ",\n".join(
        f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in content["architectures"].items()
    )
    text = f'{{"timm": "{content["timm"]}", "architectures": {{\n{lines}\n}}}}\n'
    catalogue.FILE.write_text(text, encoding="utf-8")
    catalogue.entries.cache_clear()


if __name__ == "__main__":
    write_catalogue()
    (ROOT / "docs" / "coverage.md").write_text(coverage_page(), encoding="utf-8")
