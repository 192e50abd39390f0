"""What a family of Transformers models is: its names for timm's tensors, its configuration, and what it can express.

A table has a row for each tensor: timm's name, the name in files (what every Transformers reads and what 5.x still
writes), and what 5.x calls the parameter in memory; in 4.x it is called as in files. ``=`` means the same name as in
files, ``-`` that the row does not hold there; a fourth column names facts (see :mod:`vitconv.mapping.timm`) without
which the row does not hold at all. ``{i}`` is the block's number, ``{s}`` and ``{j}`` are those of a stage and a block
of the ResNet before the patches. Behind timm's name may stand, in brackets, the part of the rows that the row is about
(``[q]``, ``[k]``, ``[v]``: thirds, ``[gate]``, ``[up]``: halves) or, as in Python, an index of leading dimensions of
length 1 (``pos_embed[0]``). A row whose tensor a model does not have is skipped; that nothing is left over is proved
by :mod:`vitconv.mapping.plan`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from vitconv.architecture import Architecture, Shapes, describe_fact
from vitconv.mapping.rewrites import Rewrite, Rewritten
from vitconv.mapping.timm import holds, written_out

if TYPE_CHECKING:
    from torch import Tensor

Dialect = Literal["hub", "transformers5"]

_PARTS = {"q": (0, 3), "k": (1, 3), "v": (2, 3), "gate": (0, 2), "up": (1, 2)}


@dataclass(frozen=True)
class Row:
    """One line of the table for one block: a timm tensor, or a part of one, and its other names.

    Attributes:
        timm: timm's name of the whole tensor.
        part: (which, of how many) equal parts of its rows goes here; ``None`` for all of it.
        dropped: how many leading dimensions, of length 1, the other dialects do not have.
        hub, transformers5: the names elsewhere; ``None`` where the row does not hold.
    """

    timm: str
    part: tuple[int, int] | None
    dropped: int
    hub: str | None
    transformers5: str | None


def width_from_config(known: Architecture, config: Any) -> dict[str, Any]:
    """The one setting that most families add to those that all configurations share: the width of the MLP."""
    return {"intermediate_size": config.intermediate_size}


def is_classifier(class_name: str) -> bool:
    """Whether the class is one of Transformers' image classifiers, which it all names alike."""
    return "ForImageClassification" in class_name


def num_labels(class_name: str, config: Any) -> int:
    """The number of classes of a model of this class; 0 for a headless one."""
    return config.num_labels if is_classifier(class_name) else 0


#: A part of the models that training alone uses: see :attr:`Family.droppable`.
MASK_TOKEN = {"mask_token": "a token for masked patches"}


@dataclass(frozen=True)
class Family:
    """A family of Transformers models.

    Attributes:
        name: Transformers' name for it.
        model_type: its configurations' name in Transformers, for an architecture.
        table: see above.
        base_classes: of the classes, those that are their models' base, whose names lack the prefix.
        prefix: what the other classes' names begin with.
        prefix_in_files: whether the base classes' names have the prefix in files.
        class_name: the class that computes what an architecture computes.
        classes: all classes that ``class_name`` may give.
        config: the contents of ``config.json`` that depend on the architecture, without the labels.
        expresses: for the facts that may be other than :class:`~vitconv.architecture.Architecture`'s defaults, all
            values that they may have; ``None`` for any.
        limits: what else an architecture has that the family does not express, in a few words each.
        rewrites: what brings an architecture into the family's form, in this order, each where it is needed.
        output_expression: where in the model's output is what timm returns, as Python.
        from_config: the inverse of ``config``: the fields of the architecture that the vision model's configuration
            tells, beside those that all configurations share (:func:`sizes`). The architecture that it is given is
            one of timm's, for what the configuration does not tell.
        num_labels: the number of classes that a class of this name has with a configuration.
        vision_config: the part of a configuration that describes the vision model.
        hidden_act: the activation that a model with this vision configuration computes.
        epsilon: the name of the setting for the norms' epsilon.
        widths, counts: the names of its own settings that are widths of layers, and of those that count something and
            may be 0: a configuration with an immense one is refused.
        decisive: of settings whose whole value does not matter to the numbers: the part of it that does.
        droppable: parts that timm's models do not have, and that may be left out: a component of the tensors' names,
            and what it is.
        before_revert: changes to a Transformers model's tensors before they are converted back, and notes on them.
        random_in_auto_model: what ``AutoModel`` adds to a model with a head, with random weights, in a few words;
            empty if it adds nothing.
        norms_every_token: whether the last norm sees all tokens, as timm's does, so that it is a stage to compare.
        placeholders: how many tokens the model has in front of timm's, to which no patch attends.
        logits: where in the output of a classifier the logits are.
        code_module: the module in the folder that has the classes, where Transformers does not; else empty.
    """

    name: str
    model_type: Callable[[Any], str]
    table: str
    class_name: Callable[[Any], str]
    classes: tuple[str, ...]
    config: Callable[[Any], dict[str, Any]]
    expresses: Mapping[str, Sequence[Any] | None]
    limits: Callable[[Architecture], list[str]]
    rewrites: tuple[Rewrite, ...]
    output_expression: Callable[[Any], str]
    base_classes: tuple[str, ...] = ()
    prefix: str = ""
    prefix_in_files: bool = False
    norms_every_token: bool = True
    random_in_auto_model: str = ""
    placeholders: Callable[[Architecture], int] = lambda architecture: 0
    logits: str = "logits"
    code_module: str = ""
    from_config: Callable[[Architecture, Any], dict[str, Any]] = width_from_config
    num_labels: Callable[[str, Any], int] = num_labels
    vision_config: Callable[[Any], Any] = lambda config: config
    hidden_act: Callable[[Any], str] = lambda config: config.hidden_act
    epsilon: str = "layer_norm_eps"
    widths: tuple[str, ...] = ()
    counts: tuple[str, ...] = ()
    decisive: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)
    droppable: Mapping[str, str] = field(default_factory=lambda: MASK_TOKEN)
    before_revert: Callable[[Mapping[str, Tensor]], tuple[dict[str, Tensor], list[str]]] = lambda tensors: (
        dict(tensors),
        [],
    )

    @property
    def tag(self) -> str:
        """What the Hub calls it."""
        return self.name

    def obstacles(self, architecture: Any) -> list[str]:
        """What the architecture has that the family does not express; empty if it expresses all."""
        return self.unsupported(architecture) or self.limits(architecture)

    def unsupported(self, architecture: Any) -> list[str]:
        """The facts that the family has no place for, each by itself."""
        found = []
        for fact in fields(Architecture):
            if fact.default is MISSING:
                continue
            value = getattr(architecture, fact.name)
            allowed = self.expresses.get(fact.name, (fact.default,))
            if allowed is not None and value not in allowed:
                found.append(describe_fact(fact.name, architecture))
        return found

    def rewrite(self, state_dict: Mapping[str, Tensor], architecture: Any) -> Rewritten:
        """Apply every rewrite that the architecture needs to take the family's form."""
        result = Rewritten(dict(state_dict), architecture)
        for rewrite in self.rewrites:
            if rewrite.needed(result.architecture):
                result = rewrite.apply(result)
        return result

    def exactness(self, architecture: Any) -> str:
        """``"moved"``, ``"made"`` or ``"folded"``: see :class:`vitconv.models.catalogue.Verdict`."""
        needed = [rewrite for rewrite in self.rewrites if rewrite.needed(architecture)]
        return "folded" if any(rewrite.folds for rewrite in needed) else "made" if needed else "moved"

    def is_pure_rename(self, architecture: Any) -> bool:
        """Whether no rewrite is needed: every tensor is only moved."""
        return self.exactness(architecture) == "moved"

    def stages(self, architecture: Architecture, dialect: Dialect) -> tuple[str, str | None]:
        """Where the model has its blocks, and the norm of all tokens behind them, if it has one: paths of modules."""
        shapes = dict.fromkeys(("blocks.0.norm1.weight", "norm.weight"), ())
        first, *norm = (str(getattr(row, dialect)) for row in self.rows(architecture, shapes))
        blocks, _, _ = first.partition(".0.")
        return blocks, norm[0].removesuffix(".weight") if norm and self.norms_every_token else None

    def output(self, architecture: Architecture, output: Any) -> Tensor:
        """What timm returns, of the model's output: :attr:`output_expression`, evaluated."""
        expression = self.output_expression(architecture)
        if expression == "pooler_output" and output.pooler_output is None:  # the pooler was left out
            expression = "last_hidden_state[:, 0]"
        return eval(f"output.{expression}", {"output": output})

    def rows(self, architecture: Any, shapes: Shapes) -> Iterator[Row]:
        """The table written out for one architecture, as far as it has the tensors, block by block."""
        lines = [line.split() for line in written_out(self.table, architecture)]
        in_blocks = [line for line in lines if "{i}" in line[0]]
        first = lines.index(in_blocks[0])
        for line in lines[:first]:
            yield from self._row(line, architecture, shapes)
        for block in range(architecture.num_hidden_layers):
            for line in in_blocks:
                yield from self._row([text.replace("{i}", str(block)) for text in line], architecture, shapes)
        for line in lines[first:]:
            if line not in in_blocks:
                yield from self._row(line, architecture, shapes)

    def _row(self, line: list[str], architecture: Any, shapes: Shapes) -> Iterator[Row]:
        text, hub, memory, *when = line
        name, part = re.fullmatch(r"([^\[]+)(?:\[([a-z0,]+)\])?", text).groups()  # type: ignore[union-attr]
        if name not in shapes or not all(holds(facts, architecture) for facts in when):
            return

        is_base = self.class_name(architecture) in self.base_classes

        def there(text: str, with_prefix: bool) -> str | None:
            if text == "-":
                return None
            return text if with_prefix else text.removeprefix(self.prefix)

        yield Row(
            timm=name,
            part=_PARTS.get(part),
            dropped=0 if part is None or part in _PARTS else part.count("0"),
            hub=there(hub, not is_base or self.prefix_in_files),
            transformers5=there(hub if memory == "=" else memory, not is_base),
        )


def sizes(a: Architecture) -> dict[str, Any]:
    """What all configurations of Transformers call alike; a square's size is one number, else (height, width)."""
    image_size, patch_size = (size[0] if size[0] == size[1] else list(size) for size in (a.image_size, a.patch_size))
    return {
        "image_size": image_size,
        "patch_size": patch_size,
        "num_channels": a.num_channels,
        "hidden_size": a.hidden_size,
        "num_hidden_layers": a.num_hidden_layers,
        "num_attention_heads": a.num_attention_heads,
        "hidden_act": a.hidden_act,
    }


def rotary_with_registers(a: Architecture) -> list[str]:
    """The obstacles of a model that lacks what DINOv3 and its like have, Transformers' classes without exception."""
    found = [] if a.rope_theta else ["no rotary positions (`rope`)"]
    return found + ([] if a.num_register_tokens else ["no register tokens (`reg_token`)"])


def rotary_from_config(known: Architecture, config: Any) -> dict[str, Any]:
    """What the configurations of DINOv3 and its like tell of rotary positions and registers."""
    return {
        "rope_theta": (config.rope_theta or 0.0) if known.rope_theta else 0.0,
        "num_register_tokens": config.num_register_tokens + (not known.class_token),
    }


def pooled_by_the_model(a: Architecture) -> str:
    """The output of a headless model that gives its class token as ``pooler_output``, and all tokens."""
    patches = f"last_hidden_state[:, {a.num_prefix_tokens}:].mean(1)"
    return {"token": "pooler_output", "avg": patches, "": "last_hidden_state"}[a.global_pool]


def one_norm(a: Architecture) -> list[str]:
    """The obstacle of a model that has no final norm, or two."""
    count = a.final_norm + a.fc_norm
    return [] if count == 1 else [f"{count} final norms (`norm`, `fc_norm`)"]


def square(a: Architecture) -> list[str]:
    """The obstacle of a model whose image or patches are not square."""
    found = []
    if a.image_size[0] != a.image_size[1]:
        found.append(f"an image that is not square ({a.image_size[0]}x{a.image_size[1]})")
    if a.patch_size[0] != a.patch_size[1]:
        found.append(f"patches that are not square ({a.patch_size[0]}x{a.patch_size[1]})")
    return found


def tokens_only_headless(a: Architecture) -> list[str]:
    """The obstacle of a head on all tokens."""
    return ["a head on every token (`global_pool=''`)"] if a.global_pool == "" and a.classifier else []


def headless_only(a: Architecture) -> list[str]:
    """The obstacle of a classification head, for families that have none."""
    return tokens_only_headless(a) or (["a classification head (`head`)"] if a.classifier else [])
