"""Write a page for each of the doctor's rules, and their table, README.md, from the rules' files.

Run `python docs/rules/pages.py` after a change of a rule; a test compares the committed pages with this script.
"""

import re
from pathlib import Path

from batchnorm.doctor.registry import registered
from batchnorm.doctor.rule import Need, Rule

HERE = Path(__file__).parent

# What a user gives so that a rule can look, by what it needs; the last that is needed says it all.
GIVEN = {
    Need.MODEL: "the model",
    Need.OPTIMIZER: "the model, `optimizer=`",
    Need.BATCHES: "`batches=`",
    Need.BACKWARD: "`batches=`",
    Need.GRAPH: "`batches=`",
    Need.RANKS: "several ranks",
}


def needs(rule: Rule) -> str:
    """What must be given."""
    words = [words for need, words in GIVEN.items() if need in rule.needs]
    return words[-1] if words else "a checkpoint, or the model"


def fix(rule: Rule) -> str:
    """What its section on the fix begins with: the first sentence."""
    section = rule.page.partition("## Fix safety\n")[2].partition("\n## ")[0]
    return re.split(r"(?<=\.)\s", " ".join(section.split()))[0].rstrip(".")


def page(rule: Rule) -> str:
    """Its documentation, with what it needs below the title, and its examples fenced."""
    title, _, rest = rule.page.partition("\n")
    about = f"A rule of [`batchnorm doctor`](../doctor.md). Severity: {rule.severity}. Needs: {needs(rule)}."
    source = f"../../src/batchnorm/doctor/rules/{type(rule).__module__.rpartition('.')[2]}.py"
    foot = f"*Made from [the rule's file]({source}) by `python docs/rules/pages.py`.*"
    return f"{title}\n\n{about}\n{fenced(rest)}\n{foot}\n"


def fenced(text: str) -> str:
    """Indented examples as fenced blocks, which sites colour."""
    lines: list[str] = []
    inside = False
    for line in text.splitlines():
        example = line.startswith("    >>> ") or (inside and line.startswith("    "))
        if example and not inside:
            lines.append("```pycon")
        if inside and not example:
            lines.append("```")
        lines.append(line[4:] if example else line)
        inside = example
    return "\n".join([*lines, *(["```"] if inside else [])]) + "\n"


def table() -> str:
    """The rules in a row each."""
    rows = []
    for rule in registered().values():
        cells = (f"[{rule.code}]({rule.code}.md)", rule.name, rule.summary, rule.severity, needs(rule), fix(rule))
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return f"""# The doctor's rules

What [`batchnorm doctor`](../doctor.md) looks for. A severity is that of most findings; some say that theirs is another.

| | rule | the mistake | severity | needs | automatic mend |
|---|---|---|---|---|---|
{chr(10).join(rows)}

*Made from the rules' files by `python docs/rules/pages.py`.*
"""


def pages() -> dict[str, str]:
    """All pages by the names of their files."""
    return {"README.md": table(), **{f"{rule.code}.md": page(rule) for rule in registered().values()}}


if __name__ == "__main__":
    made = pages()
    for old in HERE.glob("*.md"):
        if old.name not in made:
            old.unlink()
    for name, text in made.items():
        (HERE / name).write_text(text, encoding="utf-8")
