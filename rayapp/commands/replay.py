"""`rayapp replay`: replays a logged interaction step by step, with any version of any model."""

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
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="Id of a stored image.")],
    server: Server = LOCAL,
    interaction: Annotated[
        str, typer.Option(metavar="ID", help="Interaction to replay.  [default: the image's newest]")
    ] = "",
    user: Annotated[
        str, typer.Option(metavar="NAME", help="Replay this user's interaction; reviewers only.  [default: your own]")
    ] = "",
    model: Annotated[str, typer.Option(metavar="MODEL", help="Model to use.  [default: the interaction's]")] = "",
    version: Annotated[
        str, typer.Option(metavar="VERSION", help="Version of the model.  [default: the one in production]")
    ] = "",
    reference: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Reference label map.  [default: the image's final label]")
    ] = None,
    token: Token = None,
) -> None:
    """Replay logged prompts one after another, and print the Dice score against a reference after each."""
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    from rayapp.client import Client
    from rayapp.training.metrics import dice

    with Client(server, token=token) as client:
        states = [state for state in client.interactions(image, user=user) if interaction in ("", state["id"])]
        if not states:
            which = f"interaction {interaction!r}" if interaction else "interactions"
            raise NotFound(f"image {image!r} has no {which} of this user: name another with --user or --interaction")
        state = next((state for state in reversed(states) if state["events"]), states[-1])
        names = _structures(client, model or state["model"])
        truth = _reference(client, image, reference)
        logged = client.interaction(state["id"])
        table = Table("step", "prompt", *names, "mean")
        status = Console(stderr=True).status("replaying…")
        with status:
            for step, prompt in _steps(state):
                status.update(f"step {step}: {prompt}")
                try:
                    mask = logged.mask(step=step, model=model, version=version)
                except BadRequest as error:
                    table.add_row(str(step), prompt, error.detail)
                    continue
                scores = np.array(dice(mask, truth, max(names.values())))[[value - 1 for value in names.values()]]
                mean = np.nan if np.isnan(scores).all() else np.nanmean(scores)
                table.add_row(str(step), prompt, *map(_score_text, scores), _score_text(mean))
    console = Console()
    if not console.is_terminal:
        console.width = 200  # prompts are not wrapped in a file or a pipe
    console.print(table)


def _structures(client: Client, model: str) -> dict[str, int]:
    """The model's structures, value by name; the reference has the same values."""
    models = client.info()["models"]
    if model not in models:
        raise NotFound(f"the server has no model {model!r}; there are: {', '.join(models) or 'none'}")
    labels = models[model]["labels"]
    return {name: value for name, value in labels.items() if value} or {"foreground": 1}


def _steps(state: InteractionState) -> list[tuple[int, str]]:
    """The events of the click log, the opening first: number, and prompt in words."""
    steps = [(int(state["id"].partition("-")[0]), "none")]
    return steps + [(event["step"], _prompt_text(event)) for event in state["events"]]


def _prompt_text(event: InteractionEvent) -> str:
    prompt = event["prompt"]
    clicks = prompt.get("clicks", {})
    words = [f"{name} {','.join(map(str, point))}" for name, points in clicks.items() for point in points]
    words += [name for name in ("reset", "label", "roi", "slice", "size", "curves") if prompt.get(name) is not None]
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


def _score_text(score: float) -> str:
    return "" if score != score else f"{score:.3f}"
