"""``batchnorm explain``: the page of a rule or a claim, or what serves this machine."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Annotated

import typer

from .tools import missing_tools

if TYPE_CHECKING:
    from ..study import Claim

__all__ = ["explain"]

_BACKENDS = "backends"


def explain(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="A rule of the doctor (BN001 or stale-statistics), a claim of the study, or the word backends.",
            show_default="a list of all",
        ),
    ] = None,
) -> None:
    """Print what a rule looks for and why, what a claim says, or which kernels serve this machine."""
    # Imported here: `batchnorm --help` should not wait for them.
    from .. import backends  # noqa: PLC0415
    from ..doctor.registry import registered  # noqa: PLC0415
    from .table import show_rows  # noqa: PLC0415

    rules = registered()
    if name is None:
        rows = [(rule.code, rule.name, rule.summary) for rule in rules.values()]
        rows += [("claim", claim.id, claim.about.title) for claim in _claims().values()]
        show_rows([*rows, (_BACKENDS, "", "What serves this machine, and why.")])
        return
    wanted = name.casefold()
    if wanted == _BACKENDS:
        print(*backends(), sep="\n")
        return
    rule = next((rule for rule in rules.values() if wanted in (rule.code.casefold(), rule.name)), None)
    if rule is not None:
        _print(rule.page)
        return
    claims = _claims()
    if wanted in claims:
        _print(_page(claims[wanted]))
        return
    names = [*(rule.name for rule in rules.values()), *claims, _BACKENDS]
    near = difflib.get_close_matches(wanted.upper(), rules, n=3) + difflib.get_close_matches(wanted, names, n=3)
    mend = f"did you mean {', '.join(near)}?" if near else "batchnorm explain lists all."
    missing = missing_tools("scipy")
    if missing:
        mend += " The study's claims are not among them, for scipy is not installed: pip install 'batchnorm[tools]'"
    typer.echo(f"batchnorm explain: {name!r} is neither a rule nor a claim. Mend: {mend}", err=True)
    raise typer.Exit(2)


def _claims() -> dict[str, Claim]:
    """By id; none where the study's packages are missing."""
    if missing_tools("scipy"):
        return {}
    from ..study import registered  # noqa: PLC0415

    return registered()


def _page(claim: Claim) -> str:
    about = claim.about
    parts = [
        ("Formula", f"    {about.formula}\n\n{about.symbols}".rstrip()),
        ("Source", about.source if about.paper is None else f"{about.source}\n\n{about.paper}"),
        ("What is run", about.setup),
        ("What is measured", about.metric),
        ("Which way it must go", about.direction),
        ("When it is reproduced", about.pass_rule),
        ("Control", about.control),
        ("Run it", f"    batchnorm study {about.id}\n\nAbout {about.budget:.0f} core-seconds for five seeds."),
    ]
    sections = "\n".join(f"\n## {title}\n\n{text}" for title, text in parts)
    return f"# {about.id}: {about.title}\n\n{about.statement}\n{sections}\n"


def _print(page: str) -> None:
    """As Markdown, laid out on a terminal."""
    from rich.console import Console  # noqa: PLC0415
    from rich.markdown import Markdown  # noqa: PLC0415

    console = Console()
    if console.is_terminal:
        console.print(Markdown(page))
    else:
        print(page, end="", flush=True)
