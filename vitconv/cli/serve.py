"""The command ``serve``."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitconv.cli.options import Classifier, Device, Processor, Verbose, one_of
from vitconv.cli.output import in_url, printable, warn_of_others
from vitconv.cli.process import end_in_order, errors_for_people
from vitconv.inference import ENGINES, EngineName
from vitconv.serving.workers import LONGEST, MOST_WORKERS

if TYPE_CHECKING:
    from vitconv.serving.ray import RaySettings

#: The variable of the environment with the key that requests must carry: an option would show it to every user.
API_KEY = "VITCONV_API_KEY"
_ENDED = "The server has ended."
_MOST_COPIES = 10_000


def serve(
    model: Classifier,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where to listen; 0.0.0.0 to be reached from other computers.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="The port; 0 for any free one.")] = 8000,
    device: Device = "auto",
    processor: Processor = "transformers",
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            max=MOST_WORKERS,
            help="How many images are computed at once. They share the cores; by default each has one, 8 at most. "
            "With 1, a single image is answered soonest.",
        ),
    ] = None,
    timeout: Annotated[
        float,
        typer.Option(
            metavar="S", min=0.001, max=LONGEST, help="Refuse images that would not be answered within S seconds."
        ),
    ] = 10.0,
    engine: Annotated[
        EngineName, one_of(ENGINES, "Run in this process, or as copies of the model behind Ray Serve's proxy.")
    ] = "local",
    replicas: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, max=_MOST_COPIES, help="With --engine ray: how many copies; 1 by default."),
    ] = None,
    max_replicas: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, max=_MOST_COPIES, help="With --engine ray: how many copies at most, under load."
        ),
    ] = None,
    write_config: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="With --engine ray: serve nothing, but write what a cluster needs to this new folder: "
            "docs/deployment.md.",
        ),
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Answer images over HTTP: docs/serving.md. The page /docs of the server has the endpoints.

    If the environment has VITCONV_API_KEY, requests must carry it: `Authorization: Bearer KEY`.
    """
    if engine == "ray":
        with errors_for_people() if write_config else errors_for_people(lambda: _ENDED):
            from vitconv.serving.ray import RaySettings

            copies = (replicas or 1, max_replicas, workers or 1)
            _serve_with_ray(RaySettings(str(model), device, processor, *copies, timeout), host, port, write_config)
        return
    for name, value in (("--replicas", replicas), ("--max-replicas", max_replicas), ("--write-config", write_config)):
        if value is not None:
            raise typer.BadParameter("It needs --engine ray.", param_hint=f"'{name}'")
    with errors_for_people(lambda: _ENDED):
        from vitconv.serving import open_classifier
        from vitconv.serving.rest import Settings, bind, create_app
        from vitconv.serving.rest import serve as run

        key = os.environ.get(API_KEY) or None
        settings = Settings(timeout=timeout, api_key=key, **({"workers": workers} if workers else {}))
        with bind(host, port) as listener:
            app = create_app(open_classifier(model, device, processor, batched=True), settings)
            listener.listen()  # who reads the address and connects at once waits a moment instead of being refused
            _say_where(model, listener.getsockname(), key)
            end_in_order()
            run(app, settings, listener)


def _serve_with_ray(settings: RaySettings, host: str, port: int, folder: Path | None) -> None:
    """Serve on a cluster of this machine; or only write what another one needs to a folder."""
    import torch

    from vitconv.inference.runtime import choose_device, read_info, wanted_device
    from vitconv.serving.ray import serve, write_configuration
    from vitconv.serving.rest import bind

    info = read_info(settings.model)  # what is wrong with the model is said before a cluster starts
    device = choose_device(wanted_device(info, settings.device), torch.cuda.device_count())
    settings = replace(settings, model=str(info.folder), device=device)
    if folder:
        for file in write_configuration(settings, folder, host, port):
            typer.echo(printable(file))
        return
    with bind(host, port) as listener:  # it is free; Ray Serve opens it itself
        where = listener.getsockname()
    end_in_order()
    key = os.environ.get(API_KEY) or None
    serve(settings, where[0], where[1], lambda: _say_where(info.folder, where, key))


def _say_where(model: Path, where: tuple[str, int], key: str | None) -> None:
    """Tell people, on stderr, where the server is, and who can reach it."""
    address, port = where[:2]
    who = "whoever has the key" if key else f"anybody: there is no key ({API_KEY})"
    warn_of_others(address, f"answers {who}")
    shown = in_url(address)
    typer.echo(
        f"{printable(model)} is served at http://{shown}:{port} until Ctrl-C. Its endpoints: http://{shown}:{port}/docs",
        err=True,
    )
