"""`rayapp audit`: read and check who did what on a server."""

from __future__ import annotations

from typing import Annotated

import typer

from rayapp.commands import server

COLUMNS = ("time", "user", "action", "image", "revision", "outcome", "request")


def audit(
    verify: Annotated[
        bool, typer.Option("--verify", help="Check every record's digest instead of listing them.")
    ] = False,
    head: Annotated[
        str | None,
        typer.Option(metavar="DIGEST", help="With --verify: a digest printed earlier that must be there still."),
    ] = None,
    user: Annotated[str | None, typer.Option(help="Only what this user did.")] = None,
    image: Annotated[str | None, typer.Option(metavar="ID", help="Only what was done with this image.")] = None,
    action: Annotated[str | None, typer.Option(metavar="TEXT", help="Only actions with this text in them.")] = None,
    days: Annotated[float | None, typer.Option(min=0, help="Only the last so many days.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the records as lines of JSON.")] = False,
    studies: server.Studies = None,
    workspace: server.Workspace = None,
) -> None:
    """List who did what, also while the server runs; with --verify, exit with status 1 if a record was tampered with.

    Images are listed under digests, since their ids may name patients; --image finds those of one image.
    """
    from rayapp.audit_log import AuditLog, age_of

    if workspace is None:
        workspace = server.places({"studies": studies} if studies is not None else {}).workspace
    log = AuditLog.of(workspace)
    if verify:
        problems = list(log.problems(head))
        for problem in problems:
            print(problem)
        print(f"{len(problems) or 'no'} problem{'s' * (len(problems) != 1)}; the newest record is {log.head()}")
        raise typer.Exit(1 if problems else 0)
    digest = None if image is None else log.pseudonym(image)
    for record in log.records():
        if (
            (user is None or record.get("user") == user)
            and (digest is None or record.get("image") == digest)
            and (action is None or action in record.get("action", ""))
            and (days is None or age_of(record) <= days * 86_400)
        ):
            print(_json(record) if json else "  ".join(str(record.get(name, "-")) for name in COLUMNS))


def _json(record: dict[str, object]) -> str:
    from json import dumps

    return dumps(record, ensure_ascii=False)
