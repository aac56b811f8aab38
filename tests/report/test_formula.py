from xml.etree import ElementTree

import pytest

from batchnorm.report.formula import mathml


def test_a_formula_is_mathml() -> None:
    markup = mathml(r"\hat{x} = \frac{x - \mu}{\sqrt{\sigma^2 + \varepsilon}}")
    root = ElementTree.fromstring(markup)
    assert [child.tag for child in root] == ["{http://www.w3.org/1998/Math/MathML}math"]
    assert {"σ", "μ", "ε"} <= {"".join(each.itertext()) for each in root.iter()} or "ϵ" in markup or "ε" in markup


@pytest.mark.parametrize(
    ("latex", "parts"),
    [
        (r"a", 1),
        (r"a \qquad b \qquad c", 3),
        (r"\text{one \qquad two}", 1),
        (r"\left( a \qquad b \right)", 1),
        (r"\begin{cases} a \qquad b \end{cases}", 1),
    ],
)
def test_statements_side_by_side_can_stand_below_each_other(latex: str, parts: int) -> None:
    assert mathml(latex).count("<math") == parts


@pytest.mark.parametrize(
    "latex",
    [
        r"\text{<script>alert(1)</script>}",
        r"\text{a < b}",
        r"\href{javascript:alert(1)}{x}",
        r"\style{position: fixed}{x}",
        r"\class{badge}{x}",
        r"\unknowncommand{x}",
        r"\frac{a",
        r"a}",
        r"a_",
        r"\left( a",
    ],
)
def test_what_is_no_formula_is_refused_with_its_text(latex: str) -> None:
    with pytest.raises(ValueError, match="formula") as refused:
        mathml(latex)
    assert repr(latex) in str(refused.value)
