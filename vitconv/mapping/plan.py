"""The plan of a conversion: which rows of which timm tensor become which Transformers tensor, and its proof.

A plan is made before any byte moves and knows names and shapes only, so nothing here imports torch. It is
proved when made: every element of every source tensor is used exactly once and every target is filled, or a
:class:`~vitconv.errors.WeightsError` names the tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vitconv import mapping
from vitconv.architecture import AnyArchitecture, Shapes
from vitconv.errors import WeightsError, first_few
from vitconv.mapping.rewrites import join
from vitconv.markdown import code
from vitconv.markdown import table as markdown_table

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_BUG = "Report this as a bug in vitconv."


@dataclass(frozen=True)
class Move:
    """``target = source[rows]``.

    Attributes:
        source: a timm tensor.
        source_shape: all of its shape.
        rows: (start, stop) along its first dimension; ``None`` for all of it.
        target: the name in the other dialect.
        shape: of the target, which has as many elements as the rows.
    """

    source: str
    source_shape: tuple[int, ...]
    rows: tuple[int, int] | None
    target: str
    shape: tuple[int, ...]

    def apply(self, tensor: Tensor) -> Tensor:
        """The rows of the source tensor, a view."""
        part = tensor if self.rows is None else tensor[slice(*self.rows)]
        return part if tuple(part.shape) == self.shape else part.reshape(self.shape)


@dataclass(frozen=True, repr=False)
class Plan:
    """The moves of a conversion, proved to use every source element once."""

    moves: tuple[Move, ...]

    def apply(self, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Move the tensors: views of the source's memory, unless ``dtype`` asks for a cast.

        They come in the order of the source's names, as in the files that safetensors writes: what lies together in
        the source lies together in the target, and can be copied in one go.
        """
        moved = {
            move.target: move.apply(tensors[move.source])
            for move in sorted(self.moves, key=lambda move: (move.source, move.rows or (0, 0)))
        }
        if dtype is None:
            return moved
        return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in moved.items()}

    def revert(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The way back: join the targets into the sources they came from."""
        parts: dict[str, list[Move]] = {}
        for move in self.moves:
            parts.setdefault(move.source, []).append(move)
        return {
            source: tensors[moves[0].target].reshape(moves[0].source_shape)
            if moves[0].rows is None
            else join([tensors[move.target] for move in sorted(moves, key=lambda move: move.rows or (0, 0))])
            for source, moves in parts.items()
        }

    def __repr__(self) -> str:
        return f"Plan({len({move.source for move in self.moves})} tensors become {len(self.moves)})"

    def _repr_markdown_(self) -> str:
        """The table for notebooks; the rows of a tensor that is split are in bold."""
        rows = []
        for source, target, shape in self.table():
            name = f"**{code(source)}**" if "[" in source else code(source)
            rows.append((name, code(target), " × ".join(map(str, shape))))
        return markdown_table(("timm", "Transformers (in files)", "shape"), rows)

    def table(self) -> list[tuple[str, str, tuple[int, ...]]]:
        """The moves for people: (source with its rows, target, shape); the same move in every block is one line."""
        lines: dict[tuple[str, str], list[Move]] = {}
        for move in self.moves:
            rows = "" if move.rows is None else f"[{move.rows[0]}:{move.rows[1]}]"
            lines.setdefault((_numbered(move.source)[0] + rows, _numbered(move.target)[0]), []).append(move)
        table = []
        for (source, _), moves in lines.items():
            (name,), (target,) = (
                collapse(names) for names in zip(*((m.source, m.target) for m in moves), strict=True)
            )
            rows = "" if moves[0].rows is None else source[source.index("[") :]
            table.append((name + rows, target, moves[0].shape))
        return table


def make_plan(
    family: mapping.Family, architecture: AnyArchitecture, shapes: Shapes, layout: mapping.Dialect = "hub"
) -> Plan:
    """Plan the conversion of tensors of these shapes into ``layout``, and prove it.

    Args:
        family: the family of Transformers models to convert to.
        architecture: in the form that ``family.rewrite`` leaves it in.
        shapes: name and shape of every source tensor.
        layout: ``"hub"``, the names in files, or ``"transformers5"``, the names in memory.

    Raises:
        WeightsError: a source tensor is missing, unknown, of another shape, or has no place.
    """
    moves = []
    for row in family.rows(architecture, shapes):
        if (target := getattr(row, layout)) is not None:
            moves.append(_move(row, target, tuple(shapes[row.timm])))
    placeless = shapes.keys() - {move.source for move in moves}
    if placeless:
        raise WeightsError(
            f"{family.class_name(architecture)} has no place for {first_few(sorted(placeless))}.",
            "Pass the architecture and the tensors through the family's `rewrite` first.",
        )
    prove(moves, shapes)
    return Plan(tuple(moves))


def _move(row: mapping.Row, target: str, shape: tuple[int, ...]) -> Move:
    if row.part is None:
        return Move(row.timm, shape, None, target, shape[row.dropped :])
    which, of = row.part
    length = shape[0] // of
    return Move(row.timm, shape, (which * length, (which + 1) * length), target, (length, *shape[1:]))


def convert_tensors(
    state_dict: Mapping[str, Tensor],
    architecture: AnyArchitecture,
    layout: mapping.Dialect,
    dtype: torch.dtype | None = None,
    target: str | None = None,
) -> dict[str, Tensor]:
    """Simplify, plan and move: timm's tensors in another dialect, views wherever nothing is made or cast."""
    family = mapping.family_for(architecture, target)
    simple = family.rewrite(state_dict, architecture)
    plan = make_plan(family, simple.architecture, shapes_of(simple.state_dict), layout)
    return plan.apply(simple.state_dict, dtype)


def check_tensors(expected: Shapes, found: Shapes) -> None:
    """Raise :class:`WeightsError` unless both have the same names with the same shapes."""
    misshapen = [
        f"{name} is {list(found[name])} instead of {list(expected[name])}"
        for name in expected
        if name in found and tuple(found[name]) != tuple(expected[name])
    ]
    _complain(*_differing_names(expected, found), misshapen)


def check_names(expected: Iterable[str], found: Iterable[str]) -> None:
    """Raise :class:`WeightsError` unless both have the same names."""
    _complain(*_differing_names(expected, found), [])


def _differing_names(expected: Iterable[str], found: Iterable[str]) -> tuple[list[str], list[str]]:
    wanted, there = dict.fromkeys(expected), dict.fromkeys(found)
    return [name for name in wanted if name not in there], [name for name in there if name not in wanted]


def _complain(missing: list[str], unknown: list[str], misshapen: list[str]) -> None:
    complaints = []
    for what, names in {"missing": missing, "unknown": unknown, "of another shape": misshapen}.items():
        if names:
            listed = first_few(names, 2) if names is misshapen else first_few(collapse(names))
            complaints.append(f"{len(names)} {'tensor is' if len(names) == 1 else 'tensors are'} {what} ({listed})")
    if complaints:
        raise WeightsError(
            f"The weights do not fit the architecture: {'; '.join(complaints)}.",
            "Name the architecture that the weights were trained with; `vitconv inspect` without --arch finds those "
            "that they fit.",
        )


def prove(moves: Iterable[Move], shapes: Shapes) -> None:
    """Raise :class:`WeightsError` unless the moves use every row of every source once and fill no target twice."""
    used: dict[str, list[tuple[int, int]]] = {name: [] for name in shapes}
    targets: set[str] = set()
    for move in moves:
        if move.target in targets:
            raise WeightsError(f"The target `{move.target}` is filled twice.", _BUG)
        targets.add(move.target)
        if move.source not in shapes:
            raise WeightsError(f"The tensor `{move.source}` is missing.", _BUG)
        used[move.source].append(move.rows or (0, _rows(shapes[move.source])))
    for name, ranges in used.items():
        position = 0
        for start, stop in sorted(ranges):
            position = stop if start == position < stop else -1
        if position != _rows(shapes[name]):
            raise WeightsError(
                f"The rows of `{name}` are not used exactly once: {sorted(ranges)} of {_rows(shapes[name])}.", _BUG
            )


def _rows(shape: tuple[int, ...]) -> int:
    """The length of the first dimension; a single number, such as a batch norm's count, is one row."""
    return shape[0] if shape else 1


def collapse(names: Iterable[str]) -> list[str]:
    """Write the same tensor of many blocks as one: ``blocks.{0…11}.norm1.weight``.

    >>> collapse(["cls_token", "blocks.0.ls1.gamma", "blocks.1.ls1.gamma", "blocks.3.ls1.gamma"])
    ['cls_token', 'blocks.{0…1,3}.ls1.gamma']
    """
    groups: dict[str, list[int]] = {}
    for name in names:
        key, number = _numbered(name)
        groups.setdefault(key, []).extend([] if number is None else [number])
    return [
        key.replace("{}", "{" + _ranges(numbers) + "}" if len(numbers) > 1 else str(numbers[0])) if numbers else key
        for key, numbers in groups.items()
    ]


def _numbered(name: str) -> tuple[str, int | None]:
    """The name with its block number replaced by ``{}``, and the number."""
    match = re.fullmatch(r"(.*?\b(?:blocks|layer|layers)\.)([0-9]+)(\..*)", name)
    return (f"{match[1]}{{}}{match[3]}", int(match[2])) if match else (name, None)


def _ranges(numbers: list[int]) -> str:
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}…{last}" for first, last in runs)


def shapes_of(tensors: Mapping[str, object]) -> dict[str, tuple[int, ...]]:
    """Name and shape of each tensor."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}  # type: ignore[attr-defined]
