"""``batchnorm study --compare``: two finished studies side by side, on the terminal and as a page."""

from __future__ import annotations

from pathlib import Path

from .table import show_rows

__all__ = ["show_comparison"]

_PAGE = "compare.html"


def show_comparison(first: Path, second: Path, folder: Path) -> None:
    """Prints the comparison and writes its page.

    Raises:
        StudyError: If one of them is no study.
        OSError: If the page cannot be written.
    """
    from ..files import write_whole  # noqa: PLC0415 - `batchnorm --help` should not wait for them
    from ..study.results.compare import compare  # noqa: PLC0415
    from ..study.results.compare_page import apart, compare_page, overlap, verdicts  # noqa: PLC0415
    from ..study.results.kept import read  # noqa: PLC0415

    comparison = compare(read(first), read(second))
    page = folder / _PAGE
    write_whole(page, compare_page(comparison))
    rows = [("claim", "verdict", "effect in A", "effect in B", "B against A", "intervals")]
    for change in comparison.changes:
        one, two = change.first.short[0], change.second.short[0]
        between, common = "", ""
        for pair in change.pairs[:1]:
            one, two, between, common = str(pair.first), str(pair.second), apart(pair), overlap(pair)
        rows.append((change.first.id, verdicts(change), one, two, between, common))
    print(f"A: {comparison.first.path}\nB: {comparison.second.path}\n")
    if comparison.changes:
        show_rows(rows)
    else:
        print("no claim is in both")
    for name, claims in zip("AB", comparison.only, strict=True):
        if claims:
            print(f"only in {name}: {', '.join(claim.id for claim in claims)}")
    if comparison.circumstances:
        print("\nnot the same:")
        show_rows(comparison.circumstances)
    print(f"\npage: {page}", flush=True)
