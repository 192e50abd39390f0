"""What timm's Vision Transformers are, known without importing timm: its names, their facts, their preprocessing.

``catalogue.json`` is generated from timm (``make catalogue``) and kept honest by a test against the installed one. It
speaks for that version of timm alone: with another one installed, timm itself is asked. Nothing here imports torch,
but :func:`generate`.
"""

from __future__ import annotations

import difflib
import fnmatch
import functools
import importlib.metadata
import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from vitconv import mapping
from vitconv.architecture import Architecture, Shapes, fit_to_weights
from vitconv.errors import ArchitectureError, InputError, VitconvError
from vitconv.mapping.family import is_classifier

FILE = Path(__file__).with_name("catalogue.json")

#: timm's modules that define Vision Transformers.
MODULES = (
    "vision_transformer",
    "deit",
    "beit",
    "eva",
    "naflexvit",
    "vision_transformer_hybrid",
    "vision_transformer_relpos",
    "vision_transformer_sam",
)


@dataclass(frozen=True, repr=False)
class Entry:
    """One of timm's architectures.

    Attributes:
        name: timm's, without a tag.
        architecture: what it is, with timm's own classes and image size; ``None`` if it is refused.
        refusal: why no Transformers class computes the same; ``None`` if one does.
        facts: what it is, also if it is refused; ``None`` if it has a module that vitconv does not know.
        classifier: whether it has a classification head as timm lists it.
        tags: for each pretrained tag, the default first, how it wants its images prepared.
    """

    name: str
    architecture: Architecture | None
    refusal: str | None
    facts: Architecture | None
    classifier: bool
    tags: Mapping[str, Mapping[str, Any]]

    def __repr__(self) -> str:
        return f"Entry({self.name}: {'refused' if self.architecture is None else 'converts'}, {len(self.tags)} tags)"


@dataclass(frozen=True, repr=False)
class Candidate:
    """An architecture that weights fit.

    Attributes:
        name: timm's.
        architecture: with the weights' classes, channels and image size.
        data: how its default tag wants its images prepared.
        image_size: (height, width) of timm's own model of this name.
    """

    name: str
    architecture: Architecture
    data: Mapping[str, Any]
    image_size: tuple[int, int]

    def __repr__(self) -> str:
        return f"Candidate({self.name})"

    @property
    def facts(self) -> dict[str, Any]:
        """All that its numbers depend on."""
        return asdict(self.architecture) | {name: value for name, value in self.data.items() if name != "tag"}


@functools.cache
def entries() -> dict[str, Entry]:
    """All of timm's Vision Transformers, by name."""
    content = json.loads(FILE.read_text(encoding="utf-8"))
    return {name: _entry(name, facts) for name, facts in content["architectures"].items()}


def _entry(name: str, facts: Mapping[str, Any]) -> Entry:
    architecture = facts.get("architecture")
    if architecture is not None:
        fields_by_name: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in architecture.items()}
        architecture = Architecture(**fields_by_name)
    tags = {tag: {**values, "tag": tag or None} for tag, values in facts["tags"].items()}
    refusal = facts.get("refusal")
    classifier = architecture.classifier if architecture else facts["num_classes"] > 0
    return Entry(name, architecture if refusal is None else None, refusal, architecture, classifier, tags)


#: How other projects and papers write a part of a name: ``ViT-S/16``, ``vit_b_16``.
_SHORT = {"s": "small", "b": "base", "l": "large", "h": "huge", "g": "giant", "t": "tiny", "ti": "tiny"}


def similar_names(name: str) -> list[str]:
    """A few architectures that somebody may have meant by a name that timm does not have.

    >>> similar_names("ViT-S/16")[0]
    'vit_small_patch16_224'
    """
    own = name.rpartition("/")[2] if name.rpartition("/")[2][:1].isalpha() else name  # without the Hub's organisation
    words = [_SHORT.get(word, word) for word in re.split(r"[^a-z0-9.]+", own.lower())]
    if len(words) > 2 and words[1] in _SHORT.values() and words[2].isdecimal():
        words[2] = f"patch{words[2]}"
    wanted = "_".join(words)
    beginning = [known for known in entries() if known == wanted or known.startswith(f"{wanted}_")]
    close = difflib.get_close_matches(wanted, entries(), n=4)
    return list(dict.fromkeys([*sorted(beginning, key=lambda known: (len(known), known)), *close]))[:4]


@functools.cache
def is_current() -> bool:
    """Whether the installed timm is the one that the catalogue was made from."""
    content = json.loads(FILE.read_text(encoding="utf-8"))
    try:
        return importlib.metadata.version("timm") == content["timm"]
    except importlib.metadata.PackageNotFoundError:
        return False


def look_up(name: str) -> Candidate | None:
    """A convertible architecture by its name, perhaps with a tag; ``None`` where timm itself should be asked."""
    base, _, tag = name.partition(".")
    entry = entries().get(base) if is_current() else None
    if entry is None or entry.architecture is None or (tag and tag not in entry.tags):
        return None
    data = entry.tags[tag or next(iter(entry.tags))]
    return Candidate(name, entry.architecture, data, entry.architecture.image_size)


def candidates(shapes: Shapes, image_size: tuple[int, int] | None = None) -> list[Candidate]:
    """The architectures whose tensors have exactly these names and, but for classes and image size, shapes.

    Those whose own image size is that of the weights come first.
    """
    found = []
    for entry in entries().values():
        if entry.architecture is None or not _is_near(entry.architecture, shapes):
            continue
        try:
            fitted = fit_to_weights(entry.architecture, shapes, image_size)
        except VitconvError:
            continue
        if mapping.timm_shapes(fitted) == dict(shapes):
            found.append(Candidate(entry.name, fitted, next(iter(entry.tags.values())), entry.architecture.image_size))
    return sorted(found, key=lambda candidate: candidate.image_size != candidate.architecture.image_size)


def _is_near(architecture: Architecture, shapes: Shapes) -> bool:
    """Whether it is worth a closer look: the same width and patches."""
    if architecture.any_size:
        return shapes.get("embeds.proj.weight", ())[:1] == (architecture.hidden_size,)
    patch = shapes.get("patch_embed.proj.weight", ())
    return (patch[:1], patch[2:]) == ((architecture.hidden_size,), architecture.kernel_size)


def differences(found: list[Candidate]) -> dict[str, str]:
    """For each candidate, in words, what the others have otherwise; empty if all compute the same.

    Where they do differ, the image size of timm's own model of each name is told, too.
    """
    facts = {candidate.name: candidate.facts for candidate in found}
    differing = [key for key in found[0].facts if len({str(values[key]) for values in facts.values()}) > 1]
    if not differing:
        return {}
    return {
        candidate.name: ", ".join(
            [
                "image {}x{}".format(*candidate.image_size),
                *(f"{key} {_short(candidate.facts[key])}" for key in differing),
            ]
        )
        for candidate in found
    }


def _short(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return "/".join(_short(one) for one in value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)


#: The options of the commands that take a model which no class of Transformers computes with its head, or at all.
WITH_HEAD_CODE, WITH_WRAPPER = "--head code", f"--target {mapping.WRAPPER.name}"


class Becomes(NamedTuple):
    """The class that a model becomes, and what it takes.

    Attributes:
        class_name: the class.
        option: what must be given for it: nothing, :data:`WITH_HEAD_CODE` or :data:`WITH_WRAPPER`.
        pipeline: whether ``pipeline("image-classification")`` loads it.
    """

    class_name: str
    option: str
    pipeline: bool


def with_classes(entry: Entry, count: int | None) -> Becomes:
    """What one of timm's architectures becomes with so many classes.

    Args:
        entry: the architecture.
        count: 0 for a model without a head; ``None`` for timm's own.
    """
    if entry.facts is not None:
        architecture = entry.facts if count is None else replace(entry.facts, num_labels=count)
        for target, option in ((None, ""), (mapping.HEAD_CODE, WITH_HEAD_CODE)):
            with suppress(ArchitectureError):
                name = mapping.class_name(architecture, target)
                return Becomes(name, option, is_classifier(name))
    headed = entry.classifier if count is None else count > 0
    classifier, model = mapping.WRAPPER.classes
    return Becomes(classifier if headed else model, WITH_WRAPPER, headed)


@dataclass(frozen=True, repr=False)
class Verdict:
    """What becomes of one of timm's architectures.

    Attributes:
        name: timm's, without a tag.
        class_name: the Transformers class that computes the same; ``None`` if none does.
        output_expression: where in its output is what timm returns, as Python.
        exactness: ``"moved"``: every tensor is a timm tensor or a part of one, unchanged; ``"made"``: some are
            constants, or timm's in another arrangement; ``"folded"``: some were worked into others, and rounded once;
            empty if it is refused.
        refusal: why no class computes the same.
        own_head: what it becomes with a head of one's own: :func:`with_classes`.
    """

    name: str
    class_name: str | None
    output_expression: str | None
    exactness: str
    refusal: str | None
    own_head: Becomes

    def to_dict(self) -> dict[str, Any]:
        """The verdict as plain data, for JSON."""
        return asdict(self)

    def __repr__(self) -> str:
        return f"Verdict({self.name}: {self.class_name or 'refused'}{', ' if self.exactness else ''}{self.exactness})"

    @property
    def obstacles(self) -> str:
        """The features that stand in the way, without the rest of the sentence; empty if none does."""
        return (self.refusal or "").partition(": it has ")[2].rstrip(".")


def verdicts(target: str | None = None, name: str | None = None) -> list[Verdict]:
    """The verdict on each of timm's Vision Transformers, by name.

    Args:
        target: only ask whether this family computes the same; by default any.
        name: only of architectures with such a name: a pattern such as ``"vit_base*"``, or a part of the name.

    Raises:
        InputError: there is no such target, or no such name.
    """
    if target == mapping.WRAPPER.name:
        raise InputError(
            f"All of timm's {len(entries())} Vision Transformers convert to '{target}', which runs timm's own model.",
            "Leave the target out to see which have a native class.",
        )
    pattern = name if name and any(mark in name for mark in "*?[") else f"*{name or ''}*"
    wanted = [entry for entry in entries().values() if fnmatch.fnmatchcase(entry.name, pattern)]
    if not wanted:
        close = similar_names(name or "")
        raise InputError(
            f"None of timm's {len(entries())} Vision Transformers has a name like '{name}'.",
            f"Did you mean {', '.join(close)}?" if close else "`vitconv models` lists the names.",
        )
    found = []
    for entry in wanted:
        own = with_classes(entry, 7)
        if entry.architecture is None:
            found.append(Verdict(entry.name, None, None, "", entry.refusal, own))
            continue
        try:
            family = mapping.family_for(entry.architecture, target)
        except ArchitectureError as error:
            found.append(Verdict(entry.name, None, None, "", error.problem, own))
            continue
        known = entry.architecture
        found.append(
            Verdict(
                *(entry.name, family.class_name(known), family.output_expression(known), family.exactness(known)),
                None,
                own,
            )
        )
    return found


def by_refusal(found: Iterable[Verdict]) -> dict[str, list[str]]:
    """The names of those that are refused, by the reason; the reason of the most first."""
    groups: dict[str, list[str]] = {}
    for verdict in found:
        if verdict.refusal is not None:
            groups.setdefault(verdict.refusal, []).append(verdict.name)
    return dict(sorted(groups.items(), key=lambda group: -len(group[1])))


# ------------------------------------------------------------------------------------------------------------
# Making it.


def generate() -> dict[str, Any]:
    """Ask the installed timm for everything that is in ``catalogue.json``."""
    import timm

    from vitconv.models.timm import build_timm

    names = sorted({name for module in MODULES for name in timm.list_models(module=module)})
    facts: dict[str, dict[str, Any]] = {}
    tensors: dict[str, frozenset[tuple[str, tuple[int, ...]]]] = {}
    for name in names:
        model = build_timm(name)
        facts[name] = catalogue_entry(name, model)
        tensors[name] = _fixed_shapes({key: tuple(tensor.shape) for key, tensor in model.state_dict().items()})
    for refused in (name for name in names if "refusal" in facts[name]):
        twins = [name for name in names if "refusal" not in facts[name] and tensors[name] == tensors[refused]]
        if twins:
            # Then weights alone could not tell one from the other, and `candidates` must not choose.
            raise NotImplementedError(f"{refused} is refused, but has the tensors of {twins}.")
    return {"timm": timm.__version__, "architectures": facts}


def _fixed_shapes(shapes: Shapes) -> frozenset[tuple[str, tuple[int, ...]]]:
    """Names and shapes, but for what a user may choose: classes, channels, image size."""
    fixed = {name: shape for name, shape in shapes.items() if not name.startswith("head.")}
    for name in ("pos_embed", "embeds.pos_embed"):
        fixed[name] = shapes.get(name, (0,))[-1:]
    fixed["embeds.proj.weight"] = shapes.get("embeds.proj.weight", ())[:1]
    patch = shapes.get("patch_embed.proj.weight", ())
    fixed["patch_embed.proj.weight"] = (*patch[:1], *patch[2:])
    return frozenset(fixed.items())


def catalogue_entry(name: str, model: Any) -> dict[str, Any]:
    import timm

    from vitconv.models.data_config import tag_config
    from vitconv.models.timm import understand

    configs = {model.pretrained_cfg.get("tag") or "": model.pretrained_cfg}
    for full in timm.list_pretrained(f"{name}.*"):
        configs.setdefault(full.partition(".")[2], timm.get_pretrained_cfg(full).to_dict())
    if any(config.get("global_pool") for config in configs.values()):
        raise NotImplementedError(f"A tag of {name} changes its architecture.")
    data = {tag: tag_config(config) for tag, config in configs.items()}
    data = {tag: {key: value for key, value in config.items() if key != "tag"} for tag, config in data.items()}
    found: dict[str, Any] = {}
    try:
        known = understand(model)
        found["architecture"] = _unusual(known)
        mapping.family_for(known)
    except ArchitectureError as error:
        found["refusal"] = error.problem
    if "architecture" not in found:
        found["num_classes"] = model.num_classes
    return {**found, "tags": data}


def _unusual(architecture: Architecture) -> dict[str, Any]:
    """The fields that differ from their defaults."""
    values = asdict(architecture)
    return {field.name: values[field.name] for field in fields(Architecture) if values[field.name] != field.default}
