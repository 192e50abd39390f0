"""From a message to its result, whatever broker they come from and go to."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vitconv.errors import InputError, shown
from vitconv.files import NoRegularFileError, open_file
from vitconv.messaging.broker import MOST_ID, Message, event
from vitconv.models.images import MOST_BYTES

if TYPE_CHECKING:
    from vitconv.inference.answers import Answer
    from vitconv.serving.classifier import Classifier

#: CloudEvents' own attribute for data that lies elsewhere.
REFERENCE = "ce-dataref"
_PROBLEM = "vitconv-problem"
#: Bytes that Pub/Sub allows in an attribute. An id is never longer.
_MOST_ATTRIBUTE = MOST_ID
#: What a dead letter keeps, if it is short, where the topic does not take all.
_KEPT = ("ce-specversion", "ce-id", "ce-source", "ce-type", "ce-subject", "ce-time", REFERENCE, "content-type")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_PASS = "Send the path of a file, relative to the folder that --root names."


class Result(NamedTuple):
    """What comes of a message.

    Attributes:
        message: to send.
        answer: the one in it; ``None`` if it says what is wrong with the image.
    """

    message: Message
    answer: Answer | None


def result_of(message: Message, classifier: Classifier, root: Path | None = None) -> Result:
    """The result of a message: an answer, or what is wrong with its image.

    It depends on nothing but the message and the model: the result of a message that is delivered again is equal, bit
    for bit. CloudEvents' `source` is the model and `id` that of the message: together they tell repeats.

    Args:
        message: with an image as its content, or with the path of one in the attribute ``ce-dataref``.
        classifier: the model.
        root: the folder that paths start in; ``None`` to take no paths.

    Raises:
        OSError, VitconvError: the machine, a disk, the network or the model fails, not the image.
    """
    content: dict[str, Any]
    answer: Answer | None = None
    try:
        answer = classifier(_image(message, root))
        content, kind = answer.to_dict(), "vitconv.answer"
    except InputError as error:  # others are the model's or the device's fault, such as a GPU that fails
        content = {"error": {"problem": error.problem, "remedy": error.remedy}}
        kind = "vitconv.error"
    fingerprint = classifier.info.fingerprint
    text = json.dumps({"id": message.id, "fingerprint": fingerprint, **content}, ensure_ascii=False)
    sent = event(
        text.encode(),
        message.id,
        source=f"urn:vitconv:model:{fingerprint}",
        type=kind,
        content_type="application/json",
        key=f"{message.id}/{fingerprint}",
    )
    return Result(sent, answer)


def dead_letter(message: Message, problem: str) -> Message:
    """The message as it came, with the reason why it was given up."""
    added = {_PROBLEM: _short(problem), "vitconv-attempts": str(message.attempt)}
    return Message(message.content, {**message.attributes, **added}, message.key)


def smaller(letter: Message) -> Message | None:
    """A dead letter for a topic that does not take it as it is, which says so; ``None`` if there is none smaller.

    The first has few of its attributes, which are short, and its content. The second has no content.
    """
    known = (one for one in (*_KEPT, _PROBLEM, "vitconv-attempts") if one in letter.attributes)
    kept = {one: letter.attributes[one] for one in known if len(letter.attributes[one].encode()) <= _MOST_ATTRIBUTE}
    content, key, left_out = letter.content, letter.id, "attributes or its key"
    if kept == letter.attributes and key == letter.key:
        if not content:
            return None
        content, left_out = b"", f"content of {len(content):,} bytes"
    kept[_PROBLEM] = _short(f"The topic does not take its {left_out}. {letter.attributes[_PROBLEM]}")
    return Message(content, kept, key)


def _short(problem: str) -> str:
    return problem.encode()[:_MOST_ATTRIBUTE].decode(errors="ignore")


def _image(message: Message, root: Path | None) -> bytes:
    path = message.attributes.get(REFERENCE)
    return message.content if path is None else _read(path, root)


def _read(path: str, root: Path | None) -> bytes:
    """The content of a file below the root, whatever links lead to.

    Raises:
        InputError: it is not below the root, or no file, or too large.
        OSError: it cannot be read now.
    """
    if root is None:
        raise InputError("The message names a file, but the worker was given no folder for files.", "Use --root.")
    if _SCHEME.match(path):
        raise InputError(f"{shown(path)} is an address: vitconv fetches none.", _PASS)
    place = Path(os.path.realpath(root))
    try:
        file = Path(os.path.realpath(place / path))
        if not file.is_relative_to(place) or os.path.isabs(path):
            raise InputError(f"{shown(path)} is not below the folder for files.", _PASS)
        with open_file(file) as stream:
            content = stream.read(MOST_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise InputError(f"There is no file {shown(path)}.", _PASS) from error
    except (IsADirectoryError, NoRegularFileError) as error:
        raise InputError(f"{shown(path)} is no file.", _PASS) from error
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise InputError(f"There is no file {shown(path)}.", _PASS) from error
        raise
    if len(content) > MOST_BYTES:
        raise InputError(f"{shown(path)} has more than {MOST_BYTES:,} bytes.", "Make the image smaller, or crop it.")
    return content
