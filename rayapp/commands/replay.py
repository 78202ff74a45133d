"""`rayapp replay`: an interaction of the click log, step by step, under any version of any model."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rayapp.commands import WrongUsage
from rayapp.commands.annotation import LOCAL, MAX_BYTES, Server, Token
from rayapp.errors import BadRequest, NotFound

if TYPE_CHECKING:
    import numpy.typing as npt

    from rayapp.client import Client, InteractionState
    from rayapp.responses import InteractionEvent


def replay(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="An image's id.")],
    server: Server = LOCAL,
    interaction: Annotated[str, typer.Option(metavar="ID", help="[default: the image's newest]")] = "",
    user: Annotated[str, typer.Option(metavar="NAME", help="Whose; for reviewers.  [default: your own]")] = "",
    model: Annotated[str, typer.Option(metavar="MODEL", help="[default: the interaction's]")] = "",
    version: Annotated[str, typer.Option(metavar="VERSION", help="[default: the one that serves]")] = "",
    reference: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A label map.  [default: the image's final label]")
    ] = None,
    token: Token = None,
) -> None:
    """Ask a model what it makes of logged clicks, one after another, and print Dice against a reference."""
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    from rayapp.client import Client
    from rayapp.training.metrics import dice

    with Client(server, token=token) as client:
        states = [state for state in client.interactions(image, user=user) if interaction in ("", state["id"])]
        if not states:
            raise NotFound(f"image {image!r} has no such interaction")
        state = next((state for state in reversed(states) if state["events"]), states[-1])
        names = _structures(client, model or state["model"])
        truth = _reference(client, image, reference)
        logged = client.interaction(state["id"])
        table = Table("step", "prompt", *names, "mean")
        status = Console(stderr=True).status("replaying…")
        with status:
            for step, said in _steps(state):
                status.update(f"step {step}: {said}")
                try:
                    found = logged.mask(step=step, model=model, version=version)
                except BadRequest as error:
                    table.add_row(str(step), said, error.detail)
                    continue
                scores = np.array(dice(found, truth, max(names.values())))[[value - 1 for value in names.values()]]
                mean = np.nan if np.isnan(scores).all() else np.nanmean(scores)
                table.add_row(str(step), said, *map(_shown, scores), _shown(mean))
    console = Console()
    if not console.is_terminal:
        console.width = 200  # a file or a pipe has no edge to fold prompts at
    console.print(table)


def _structures(client: Client, model: str) -> dict[str, int]:
    """Values by name, as the reference has them too."""
    try:
        labels = client.info()["models"][model]["labels"]
    except KeyError:
        raise NotFound(f"the server has no model {model!r}") from None
    return {name: value for name, value in labels.items() if value} or {"foreground": 1}


def _steps(state: InteractionState) -> list[tuple[int, str]]:
    """The log's numbers to look at, the opening first, and what was said there."""
    steps = [(int(state["id"].partition("-")[0]), "none")]
    return steps + [(event["step"], _said(event)) for event in state["events"]]


def _said(event: InteractionEvent) -> str:
    prompt = event["prompt"]
    clicks = prompt.get("clicks", {})
    words = [f"{name} {','.join(map(str, point))}" for name, points in clicks.items() for point in points]
    words += [name for name in ("reset", "label", "roi", "slice", "curves") if prompt.get(name) is not None]
    return "; ".join(words) or str(event["kind"])


def _reference(client: Client, image: str, file: Path | None) -> npt.NDArray[Any]:
    from rayapp.imaging.placement import read_label_map
    from rayapp.imaging.reader import read_grid

    if file is not None and not file.is_file():
        raise WrongUsage(f"--reference: there is no file {file.name}")
    with tempfile.TemporaryDirectory(prefix="rayapp-") as folder:
        source = client.download_image(image, Path(folder))
        (Path(folder) / "label").mkdir()
        label = file or client.download_label(image, Path(folder) / "label")
        return read_label_map(label, read_grid(source), max_bytes=MAX_BYTES).array


def _shown(score: float) -> str:
    return "" if score != score else f"{score:.3f}"
