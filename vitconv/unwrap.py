"""Find the model's tensors in whatever a checkpoint holds around them.

Training scripts wrap: ``{"state_dict": …, "optimizer": …}``, an EMA copy beside the weights, ``module.`` from DDP,
``_orig_mod.`` from torch.compile, ``model.`` or ``backbone.`` from Lightning, ``visual.trunk.`` from open_clip, in any
order and nesting. A wrapper is not recognised by its name but by what it leaves: a *reading* is a place in the
nesting and a prefix, and it fits if what remains are exactly the architecture's tensor names, with or without a head.
Nothing here imports torch: a tensor is what has a ``shape`` and a ``dtype``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from typing import Any

from vitconv import foreign
from vitconv.errors import CheckpointError, first_few

# A tensor that every Vision Transformer has, and nothing else: where it is, a model begins.
_ANCHOR = "patch_embed.proj.weight"
_HEAD = frozenset({"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"})
_DEPTH = 4


@dataclass(frozen=True)
class Reading:
    """One way to read a model out of a checkpoint.

    Attributes:
        place: the keys that lead to the mapping, such as ``("state_dict",)``.
        prefix: what all its names begin with, such as ``"module."``.
        tensors: by their names without the prefix.
        others: names of what lies beside them in the same mapping.
    """

    place: tuple[str, ...]
    prefix: str
    tensors: dict[str, Any]
    others: tuple[str, ...]

    @property
    def ema(self) -> bool:
        """Whether these are the weights' exponential moving average."""
        return "ema" in "_".join((*self.place, self.prefix)).replace(".", "_").lower().split("_")

    def __str__(self) -> str:
        where = "".join(f"['{key}']" for key in self.place) or "the top level"
        return f"{where}, names beginning with '{self.prefix}'" if self.prefix else where


@dataclass(frozen=True)
class Unwrapped:
    """The tensors, and what was done to get at them, in sentences to be said aloud."""

    tensors: dict[str, Any]
    notes: tuple[str, ...]


def unwrap(
    content: Mapping[Any, Any],
    names: Set[str] | None,
    *,
    ema: bool = True,
    respell: Callable[[Mapping[str, Any]], dict[str, Any] | None] = lambda tensors: None,
) -> Unwrapped:
    """Find the model in ``content``.

    Args:
        content: what the file holds.
        names: the architecture's tensor names; ``None`` to take the only model there is, whatever its names.
        ema: take the EMA weights where there are both.
        respell: gives tensors in an older spelling their names of today; ``None`` if it cannot.

    Raises:
        CheckpointError: there is no model, several fit, its head seems to lie outside of it, or it is another
            library's, another family's, quantised, or an adapter.
    """
    everything = [name for name, _ in _flat(content)]
    _refuse(foreign.added_parts(everything))
    found = list(_readings(content))

    def fits(tensors: Mapping[str, Any]) -> bool:
        return names is None or set(tensors) | _HEAD == set(names) | _HEAD

    notes = []
    fitting = [reading for reading in found if fits(reading.tensors)]
    if not fitting and names is not None:
        respelled = [replace(reading, tensors=respell(reading.tensors) or {}) for reading in found]
        fitting = [reading for reading in respelled if fits(reading.tensors)]
        notes += ["Names of an older spelling were renamed by timm's own checkpoint_filter_fn."] if fitting else []
    if not fitting:
        _refuse(foreign.family(everything))
    if not found:
        raise CheckpointError(
            f"There is no Vision Transformer in the checkpoint: no tensor is called `{_ANCHOR}`"
            f" (there is {first_few(everything) or 'nothing'}).",
            "Pass the state dict of a timm Vision Transformer.",
        )
    if not fitting:
        # None fits: take the nearest, so that the message can name what is missing from it.
        fitting = [max(found, key=lambda reading: len(set(reading.tensors) & set(names or ())))]
    reading, said = _choose(fitting, ema)
    notes += said
    suspects = _heads_outside(reading, content)
    if suspects:
        raise CheckpointError(
            f"The model at {reading} has no head, but `{suspects[0]}` beside it looks like one.",
            "Save the head with the model, as timm names it: `head.weight` and `head.bias`.",
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
            if _is_tensor(value):
                yield str(name), value


def _mappings(content: Mapping[Any, Any]) -> Iterator[tuple[tuple[str, ...], Mapping[Any, Any]]]:
    """Every mapping in the nesting with the keys that lead there, each once: a file may repeat one without end."""
    seen: set[int] = set()
    waiting: list[tuple[tuple[str, ...], Mapping[Any, Any]]] = [((), content)]
    for place, mapping in waiting:
        if id(mapping) in seen:
            continue
        seen.add(id(mapping))
        yield place, mapping
        if len(place) < _DEPTH:
            waiting += [((*place, str(key)), value) for key, value in mapping.items() if isinstance(value, Mapping)]


def _readings(content: Mapping[Any, Any]) -> Iterator[Reading]:
    for place, mapping in _mappings(content):
        tensors = {str(name): value for name, value in mapping.items() if _is_tensor(value)}
        for anchor in (name for name in tensors if name == _ANCHOR or name.endswith(f".{_ANCHOR}")):
            prefix = anchor[: -len(_ANCHOR)]
            inside = {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
            others = tuple(str(name) for name in mapping if not str(name).startswith(prefix) or name not in tensors)
            yield Reading(place, prefix, inside, others)


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _choose(fitting: list[Reading], ema: bool) -> tuple[Reading, list[str]]:
    if len(fitting) == 1:
        return fitting[0], []
    averaged = [reading for reading in fitting if reading.ema]
    plain = [reading for reading in fitting if not reading.ema]
    if len(averaged) == len(plain) == 1:
        if ema:
            return averaged[0], [
                "Of the trained weights and their EMA, the EMA was taken (--no-ema takes the others)."
            ]
        return plain[0], ["Of the trained weights and their EMA, the trained weights were taken."]
    raise CheckpointError(
        f"The checkpoint holds {len(fitting)} models that fit: {first_few(map(str, fitting))}.",
        "Save the state dict of the one that is meant to a file of its own.",
    )


def _heads_outside(reading: Reading, content: Mapping[Any, Any]) -> list[str]:
    """Tensors beside a headless model that could be its head: a matrix as wide as the model, called like one."""
    if "head.weight" in reading.tensors:
        return []
    for key in reading.place:
        content = next(value for name, value in content.items() if str(name) == key)
    width = reading.tensors[_ANCHOR].shape[0]
    return [
        str(name)
        for name, value in content.items()
        if str(name) in reading.others
        and _is_tensor(value)
        and len(value.shape) == 2
        and value.shape[1] == width
        and any(word in str(name).lower() for word in ("head", "classif", "fc.", "linear"))
    ]
