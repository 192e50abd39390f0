"""Find the model's tensors inside the wrappers of a checkpoint.

Training scripts wrap: ``{"state_dict": …, "optimizer": …}``, an EMA copy beside the weights, ``module.`` from DDP,
``_orig_mod.`` from torch.compile, ``model.`` or ``backbone.`` from Lightning, ``visual.trunk.`` from open_clip, in any
order and nesting. A wrapper is not recognised by its name but by what it leaves: a *reading* is a place in the
nesting and a prefix, and it fits if what remains are exactly the architecture's tensor names, with or without a head.
A reading without a head is only taken if nothing else in the file looks like the head it may have been trained with,
or if the caller says so. Nothing here imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from vitconv.architecture import HEADS
from vitconv.checkpoints import unsupported
from vitconv.checkpoints.tensorfile import dtype_name, is_tensor
from vitconv.errors import CheckpointError, first_few

# Every Vision Transformer has one of these tensors, and no other model: its prefix is the prefix of a model.
_ANCHORS = ("patch_embed.proj.weight", "embeds.proj.weight")
#: Those of timm's whose patches are embedded otherwise have this one, with the model's width as its first side, too.
_OTHER_ANCHORS = ("blocks.0.norm1.weight",)
#: With one of these words, a name with "ema" means the trained weights: `model_without_ema`.
_NOT_EMA = frozenset({"no", "non", "not", "without", "pre", "before", "raw"})
_HEAD = frozenset({*HEADS, "head.bias", "head.fc.bias", "head_dist.weight", "head_dist.bias"})
_DEPTH = 4
#: No checkpoint of a Vision Transformer has more tensors, its optimizer's state included, or more models. For each
#: model all names are looked at.
_MOST_TENSORS, _MOST_MODELS = 100_000, 50

#: Words that name a head for a tensor of any shape; within a longer word, too (`decode_head`, `my_classifier`).
_HEAD_WORDS = re.compile(r"head|classif|logits|clf|arcface|cosface")
#: Words that name a head where the tensor is a matrix; as a word of their own (`fc`, `fc2`, `cls_layer`, `out_proj`).
_MATRIX_WORDS = re.compile(
    r"fc|linear|lin|out(put)?|proj(ection|ector)?|cls|class(es)?|category|predict(or|ion)?|prototypes?|probe|scores?|mlp"
    r"|dense|softmax"
)
#: Matrices beside a model that are not its head: a text tower, a token, an optimizer's state.
_NO_HEAD = re.compile(
    r"(^|\.)(text|textual|text_model|text_encoder|text_tower|text_projection|token_embedding|resblocks|mask_token"
    r"|optim(izer)?s?(_\w+)?)(\.|$)"
)
#: The modules that are a head among a model's own: timm's, and what training code puts in its place (`head.0.weight`).
_HEAD_MODULE = re.compile(r"\w*(head|classif)\w*")
#: A head may read the class token beside the mean of the others (twice the width), or the last blocks' (DINO: four).
_WIDTHS = range(1, 9)


@dataclass(frozen=True)
class Reading:
    """One way to read a model out of a checkpoint.

    Attributes:
        place: the keys that lead to the mapping, such as ``("state_dict",)``.
        prefix: what all its names begin with, such as ``"module."``.
        tensors: by their names without the prefix.
        others: names of what lies beside them in the same mapping.
        mapping: all of it.
        left_out: paths of the tensors of a head that were taken out of it.
    """

    place: tuple[str, ...]
    prefix: str
    tensors: dict[str, Any]
    others: tuple[str, ...]
    mapping: Mapping[Any, Any] = field(repr=False, compare=False)
    left_out: tuple[str, ...] = ()

    @property
    def headed(self) -> bool:
        """Whether it has a head."""
        return any(name in self.tensors for name in HEADS)

    @property
    def ema(self) -> bool:
        """Whether these are the weights' exponential moving average."""
        words = "_".join((*self.place, self.prefix)).replace(".", "_").lower().split("_")
        return "ema" in words and not _NOT_EMA.intersection(words)

    def __str__(self) -> str:
        where = "".join(f"['{key}']" for key in self.place) or "the top level"
        return f"{where}, names beginning with '{self.prefix}'" if self.prefix else where


@dataclass(frozen=True)
class Unwrapped:
    """The model's tensors, and notes for people on how they were found."""

    tensors: dict[str, Any]
    notes: tuple[str, ...]


def unwrap(
    content: Mapping[Any, Any],
    names: Set[str] | None,
    *,
    ema: bool = True,
    headless: bool = False,
    respell: Callable[[Mapping[str, Any]], dict[str, Any] | None] = lambda tensors: None,
) -> Unwrapped:
    """Find the model in ``content``.

    Args:
        content: what the file holds.
        names: the architecture's tensor names; ``None`` to take the only model in the file, with any names.
        ema: take the EMA weights where there are both.
        headless: take the model without a head; a note names what looks like one and is left out.
        respell: renames tensors that have older names; returns ``None`` if it cannot.

    Raises:
        CheckpointError: there is no model, several fit, it has no head and something in the file looks like one, or
            it is another library's, another family's, quantised, or an adapter.
    """
    everything = [name for name, _ in islice(_flat(content), _MOST_TENSORS + 1)]
    if len(everything) > _MOST_TENSORS:
        raise CheckpointError(
            f"The checkpoint holds more than {_MOST_TENSORS:,} tensors, such as {first_few(everything[:2])}.",
            "Save the state dict of the model to a separate file.",
        )
    _refuse(unsupported.added_parts(everything))
    anchors = _ANCHORS if names is None or not names.isdisjoint(_ANCHORS) else _OTHER_ANCHORS
    found = list(islice(_readings(content, anchors), _MOST_MODELS + 1))
    if len(found) > _MOST_MODELS:
        raise CheckpointError(
            f"The checkpoint holds more than {_MOST_MODELS} models: {first_few(map(str, found), 2)}.",
            "Save the state dict of the model you mean to a separate file.",
        )
    if headless:
        found = [_without_head(reading, names) for reading in found]

    def fits(tensors: Mapping[str, Any]) -> bool:
        return names is None or set(tensors) | _HEAD == set(names) | _HEAD

    notes = []
    fitting = [reading for reading in found if fits(reading.tensors)]
    if not fitting and names is not None:
        respelled = [replace(reading, tensors=respell(reading.tensors) or {}) for reading in found]
        fitting = [reading for reading in respelled if fits(reading.tensors)]
        notes += ["Tensors with older names were renamed by timm's own checkpoint_filter_fn."] if fitting else []
    if not fitting:
        _refuse(unsupported.family(everything))
    if not found:
        raise CheckpointError(
            f"There is no Vision Transformer in the checkpoint: no tensor is called `{anchors[0]}`"
            f" (there is {first_few(everything) or 'nothing'}).",
            "Pass the state dict of a timm Vision Transformer.",
        )
    if not fitting:
        # None fits: take the nearest, so that the error can name what it lacks.
        fitting = [max(found, key=lambda reading: len(set(reading.tensors) & set(names or ())))]
    reading, said = _choose(fitting, ema, headless)
    notes += said
    fit = {(one.place, one.prefix) for one in fitting}
    others = [one for one in found if (one.place, one.prefix) not in fit]
    notes += _other_models(reading, others, set(names or ()) - _HEAD)
    without = _without_head(reading, names)
    suspects = [] if reading.headed else [*without.left_out, *_heads_outside(reading, found, content, anchors)]
    if suspects and not headless:
        where = "in its place" if suspects[0] in without.left_out else "beside it"
        raise CheckpointError(
            f"The model at {reading} has no head, but `{suspects[0]}` {where} looks like one"
            + (f" (and so do {first_few(suspects[1:])})." if suspects[1:] else "."),
            "Save the head with the model, as timm names it: `head.weight` and `head.bias`; or convert the model "
            "without a head (--headless).",
        )
    if suspects:
        notes.append(
            f"The model is converted without a head (--headless): {first_few(suspects, limit=12)} "
            f"{'is' if len(suspects) == 1 else 'are'} left out."
        )
    if reading.place or reading.prefix:
        notes.append(f"The weights are those at {reading}.")
    if reading.others:
        notes.append(f"Beside them {len(reading.others)} entries are left out: {first_few(reading.others)}.")
    return Unwrapped(reading.tensors, tuple(notes))


def _refuse(found: tuple[str, str, str] | None) -> None:
    if found is not None:
        name, what, remedy = found
        raise CheckpointError(f"This is {what}: it has `{name}`.", remedy)


def _flat(content: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Every tensor with its own name, wherever it is."""
    for _, mapping in _mappings(content):
        for name, value in mapping.items():
            if is_tensor(value):
                yield str(name), value


def _mappings(content: Mapping[Any, Any]) -> Iterator[tuple[tuple[str, ...], Mapping[Any, Any]]]:
    """Every mapping in the nesting with the keys that lead there, once each: a file may repeat one endlessly."""
    seen: set[int] = set()
    waiting: list[tuple[tuple[str, ...], Mapping[Any, Any]]] = [((), content)]
    for place, mapping in waiting:
        if id(mapping) in seen:
            continue
        seen.add(id(mapping))
        yield place, mapping
        if len(place) < _DEPTH:
            waiting += [((*place, str(key)), value) for key, value in mapping.items() if isinstance(value, Mapping)]


def _readings(content: Mapping[Any, Any], anchors: tuple[str, ...]) -> Iterator[Reading]:
    for place, mapping in _mappings(content):
        tensors = {str(name): value for name, value in mapping.items() if is_tensor(value)}
        prefixes = [name.removesuffix(end) for name in tensors for end in anchors if f".{name}".endswith(f".{end}")]
        for prefix in prefixes:
            # A model within a model, such as a student's teacher, is another one.
            nested = tuple(longer for longer in prefixes if longer != prefix and longer.startswith(prefix))
            inside = {
                name[len(prefix) :]: tensor
                for name, tensor in tensors.items()
                if name.startswith(prefix) and not name.startswith(nested)
            }
            others = tuple(
                name
                for name in map(str, mapping)
                if name not in tensors or not name.startswith(prefix) or name.startswith(nested)
            )
            yield Reading(place, prefix, inside, others, mapping)


def _choose(fitting: list[Reading], ema: bool, headless: bool) -> tuple[Reading, list[str]]:
    if len(fitting) == 1:
        return fitting[0], []
    averaged = [reading for reading in fitting if reading.ema]
    plain = [reading for reading in fitting if not reading.ema]
    if not len(averaged) == len(plain) == 1:
        raise CheckpointError(
            f"The checkpoint holds {len(fitting)} models that fit: {first_few(map(str, fitting))}.",
            "Save the state dict of the model you mean to a separate file.",
        )
    taken, left = (averaged[0], plain[0]) if ema else (plain[0], averaged[0])
    if left.headed and not taken.headed and not headless:
        words = ("EMA", "trained weights")
        one, other = words if ema else words[::-1]
        raise CheckpointError(
            f"The {one} at {taken} {'has' if ema else 'have'} no head, but the {other} at {left} "
            f"{'have' if ema else 'has'} one.",
            f"Take the {other} {'with --no-ema' if ema else 'without --no-ema'}, or the {one} without a head with "
            "--headless.",
        )
    if ema:
        return taken, [
            "The checkpoint holds trained weights and their EMA: the EMA was taken (--no-ema takes the others)."
        ]
    return taken, ["The checkpoint holds trained weights and their EMA: the trained weights were taken."]


def _other_models(taken: Reading, others: list[Reading], needed: Set[str]) -> list[str]:
    """Notes on models beside the one taken that do not fit exactly.

    Raises:
        CheckpointError: one of them has all the tensors of the architecture, and more, and neither is an EMA.
    """
    notes = []
    for other in others:
        more = sorted(set(other.tensors) - needed - _HEAD)
        if needed and needed <= set(other.tensors) and not taken.ema and not other.ema:
            raise CheckpointError(
                f"The checkpoint holds a model that fits at {taken}, and another at {other} that only has more "
                f"tensors ({first_few(more)}).",
                "Save the state dict of the model you mean to a separate file.",
            )
        if other.ema != taken.ema:
            lacking = sorted(needed - set(other.tensors))
            why = f"it lacks {first_few(lacking)}" if lacking else f"it has more tensors: {first_few(more)}"
            notes.append(f"The {'EMA' if other.ema else 'trained weights'} at {other} cannot be taken: {why}.")
    return notes


def _without_head(reading: Reading, names: Set[str] | None) -> Reading:
    """The reading without its head, of any form; tensors that the model needs are kept."""
    needed = set(names or ()) - _HEAD
    head = {
        name: None for name in reading.tensors if _HEAD_MODULE.fullmatch(name.partition(".")[0]) and name not in needed
    }
    paths = (".".join((*reading.place, reading.prefix + name)) for name in head)
    kept = {name: tensor for name, tensor in reading.tensors.items() if name not in head}
    return replace(reading, tensors=kept, left_out=(*reading.left_out, *paths))


def _heads_outside(
    reading: Reading, found: Iterable[Reading], content: Mapping[Any, Any], anchors: tuple[str, ...]
) -> list[str]:
    """Names of tensors anywhere in the file that may be the head of a model that has none, the likeliest first.

    These are tensors with the name of a head, and matrices whose input has the width of the model's output or of the
    output of another such matrix. The model's own tensors, copies of them (an EMA, a teacher) and the state of
    optimizers are left out.
    """
    original = next(one for one in found if one.mapping is reading.mapping and one.prefix == reading.prefix)
    shape = next(original.tensors[name] for name in anchors if name in original.tensors).shape
    width = shape[0] if len(shape) else 0
    trunk = {name.partition(".")[0] for tensors in (reading.tensors, original.tensors) for name in tensors}
    trunk = {module for module in trunk if not _HEAD_MODULE.fullmatch(module)}
    prefixes: dict[int, set[str]] = {}
    for one in found:
        prefixes.setdefault(id(one.mapping), set()).add(one.prefix)

    def own(mapping: Mapping[Any, Any], name: str) -> bool:
        """Whether it belongs to this model, or to the same part of another."""
        known = prefixes.get(id(mapping), ())
        longest = max((prefix for prefix in known if name.startswith(prefix)), key=len, default=None)
        if mapping is reading.mapping and longest == reading.prefix:
            return True
        starts = [0, *(match.end() for match in re.finditer(r"\.", name[:1000]))]
        return any(name[:start] in known and name[start:].partition(".")[0] in trunk for start in starts)

    outside = [
        (path, tensor)
        for path, mapping, name, tensor in _everywhere(content)
        if not own(mapping, name) and not _NO_HEAD.search(path)
    ]
    named = [path for path, tensor in outside if _is_called_a_head(path, len(tensor.shape))]
    # From the model's width on, from matrix to matrix.
    taking: dict[int, list[tuple[str, int]]] = {}
    for path, tensor in outside:
        if len(tensor.shape) == 2 and "float" in dtype_name(tensor):
            gives, takes = tensor.shape
            taking.setdefault(takes, []).append((path, gives))
    fitting: dict[str, None] = {}
    waiting = [width * times for times in _WIDTHS]
    for size in waiting:
        for path, gives in taking.pop(size, ()):
            fitting[path] = None
            waiting.append(gives)
    both = [path for path in named if path in fitting]
    return list(dict.fromkeys([*both, *named, *fitting]))


def _is_called_a_head(path: str, dimensions: int) -> bool:
    words = re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", path).lower())
    if dimensions and any(map(_HEAD_WORDS.search, words)):
        return True
    return dimensions >= 2 and any(map(_MATRIX_WORDS.fullmatch, words))


def _everywhere(content: Mapping[Any, Any]) -> Iterator[tuple[str, Mapping[Any, Any], str, Any]]:
    """Every tensor that has a name, at any depth: (its path, its mapping, its name, it); but an optimizer's state.

    A mapping that the file repeats comes once.
    """
    seen: set[int] = set()
    # A path is a pair of the one above and a key: whole ones would fill the memory where a file nests very deep.
    waiting: list[tuple[Any, Any]] = [((), content)]
    for path, inner in waiting:
        if id(inner) in seen:
            continue
        seen.add(id(inner))
        named = isinstance(inner, Mapping)
        for key, value in inner.items() if named else enumerate(inner):
            if named and is_tensor(value):
                yield _dotted((path, str(key))), inner, str(key), value
            elif isinstance(value, (Mapping, list, tuple)) and not (key == "state" and "param_groups" in inner):
                waiting.append(((path, str(key)), value))


def _dotted(path: tuple[Any, ...]) -> str:
    keys: list[str] = []
    while path and len(keys) < 20:
        path, key = path
        keys.append(key)
    return ".".join(reversed(keys))
