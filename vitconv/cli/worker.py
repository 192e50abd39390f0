"""The command ``worker``."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from vitconv.cli.options import Classifier, Device, Processor, Verbose
from vitconv.cli.output import in_url, printable, warn_of_others
from vitconv.cli.process import end_in_order, errors_for_people, stop_first
from vitconv.errors import InputError
from vitconv.serving.workers import MOST_WORKERS

#: Seconds. Brokers take a worker that has not asked for minutes to be dead.
_LONGEST_WAIT = 60


def _seconds(text: str) -> float:
    """Seconds, from a text such as ``50ms`` or ``2s``."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s)", text)
    if not found:
        raise typer.BadParameter(f"'{text}' is no time such as 50ms or 2s.")
    seconds = float(found[1]) / (1000 if found[2] == "ms" else 1)
    if seconds > _LONGEST_WAIT:
        raise typer.BadParameter(f"'{text}' is more than {_LONGEST_WAIT}s.")
    return seconds


def worker(
    model: Classifier,
    source: Annotated[
        str, typer.Option("--from", metavar="URL", help="Where messages come from: kafka://HOST:PORT?topic=…&group=…")
    ],
    target: Annotated[
        str, typer.Option("--to", metavar="URL", help="Where results go: kafka://… or pubsub://PROJECT/TOPIC.")
    ],
    dead_letter: Annotated[
        str, typer.Option(metavar="URL", help="Where messages go that come to nothing, whatever is tried.")
    ],
    batch: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, max=10_000, help="The most messages that are pulled and acknowledged together."
        ),
    ] = 8,
    wait: Annotated[
        float, typer.Option(parser=_seconds, metavar="TIME", help="How long a batch waits to be full: 50ms, 2s…")
    ] = "50ms",  # type: ignore[assignment]  # typer parses the default, too
    tries: Annotated[
        int,
        typer.Option(metavar="N", min=1, max=1_000, help="A message that fails so often goes to the dead letters."),
    ] = 5,
    root: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The folder in which messages may name a file, by its path.")
    ] = None,
    exactly_once: Annotated[
        bool, typer.Option("--exactly-once", help="Send and acknowledge in a transaction: Kafka to the same Kafka.")
    ] = False,
    device: Device = "auto",
    processor: Processor = "transformers",
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            max=MOST_WORKERS,
            help="How many images are computed at once. They share the cores; by default each has one, 8 at most.",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where --port listens; 0.0.0.0 to be reached from other computers.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            max=65535,
            help="Show health and metrics at this port; 0 for any free one.",
        ),
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Answer the images of a queue, Kafka or Pub/Sub: docs/queue.md says what is guaranteed.

    Many workers may read one topic: they share its messages.
    """
    with errors_for_people(lambda: "The worker has ended."), ExitStack() as opened:
        from vitconv.messaging import Transactions, Worker, WorkerSettings, connect, place_of, watched
        from vitconv.serving import open_classifier
        from vitconv.serving.rest import bind

        places = {"--from": place_of(source), "--to": place_of(target), "--dead-letter": place_of(dead_letter)}
        for name in ("--to", "--dead-letter"):
            if places[name] == places["--from"]:
                raise InputError(
                    f"{name} is the topic that the messages come from: the worker would answer itself for ever.",
                    "Name another topic.",
                )
        if root is not None and not root.is_dir():
            raise InputError(f"There is no folder '{root}'.", "Check --root.")
        urls = (source, target, dead_letter)
        images, results, letters = (opened.enter_context(connect(url, most=2 * batch)) for url in urls)
        settings = WorkerSettings(batch, wait, tries, root, **({"workers": workers} if workers else {}))
        classifier = open_classifier(model, device, processor)
        deliver = Transactions(images, results, letters).deliver if exactly_once else None
        working = Worker(classifier, images, results, letters, settings, deliver=deliver)
        listener = opened.enter_context(bind(host, port)) if port is not None else None
        if listener is not None:
            warn_of_others(listener.getsockname()[0], "shows its figures to anybody")
        opened.enter_context(watched(working, listener))
        if listener is not None:
            address, found = listener.getsockname()[:2]
            where = f"http://{in_url(address)}:{found}"
            typer.echo(f"Its health and figures: {where}/health/ready, {where}/metrics", err=True)
        typer.echo(f"{printable(model)} answers the messages of {printable(source)} until Ctrl-C.", err=True)
        end_in_order()
        with stop_first(working.stop):
            working.run()
