"""How far the doctor can be trusted: what it finds of planted mistakes, and what it says of clean models.

``measure()`` looks at everything, with torch-audit beside, and ``write()`` puts the tables into ``docs/trust.md``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from batchnorm.doctor import Diagnosis, Finding
from batchnorm.doctor.registry import registered
from doctor import trust_ranks
from doctor.clean import CLEAN, Clean
from doctor.plant import Case, Plant, plants
from doctor.torch_audit import Remark, audit, names
from doctor.trust_ranks import looked
from population.processes import found_by_ranks
from surgery.models import BENCHMARKS, script

tables = script("result_tables")

PAGE = BENCHMARKS.parent / "docs" / "trust.md"
TIMES = BENCHMARKS / "doctor.csv"
TABLES = ("summary", "rules", "clean", "true", "planted", "time")

Row = dict[str, Any]


@dataclass(frozen=True)
class Truth:
    """Why what a rule says of a clean model is so, and how that is seen without the rule.

    Attributes:
        reason: In a sentence.
        verify: Gives what was measured, as text; None where it is not so. It may change the model.
    """

    reason: str
    verify: Callable[[Case, Sequence[Finding]], str | None]


def forgets(case: Case, findings: Sequence[Finding]) -> str | None:
    """How much of what the running means held is left after one batch in training mode."""
    model = case.model
    layers = [model.get_submodule(finding.layer) for finding in findings]
    with torch.no_grad():
        for layer in layers:
            layer.running_mean.fill_(1e6)
        model.train()(next(iter(case.batches))[0])
    left = max(float(layer.running_mean.abs().max()) / 1e6 for layer in layers)
    return f"one batch leaves {100 * left:.1f}% of the means before it" if left < 0.5 else None


def padding_moves(case: Case, findings: Sequence[Finding]) -> str | None:
    """How far the mean of what reaches the norms is from that of the frames that the model itself calls valid."""
    model, batch = case.model.eval(), next(iter(case.batches))
    shifts = []

    def measure(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        frames = inputs[0].transpose(1, 2)  # (N, T, C)
        valid = frames[model.wav2vec2_conformer._get_feature_vector_attention_mask(frames.shape[1], mask)]
        shifts.append(float(((frames.mean((0, 1)) - valid.mean(0)).abs() / valid.std(0)).max()))

    mask = batch["attention_mask"]
    handles = [model.get_submodule(finding.layer).register_forward_pre_hook(measure) for finding in findings]
    with torch.no_grad():
        model(**batch)
    for handle in handles:
        handle.remove()
    return f"padding moves means by up to {max(shifts):.2f} standard deviations" if min(shifts) > 0.1 else None


#: What is wrong with the clean models as their libraries make them.
TRUE: dict[tuple[str, str], Truth] = {
    ("MobileNetV2 (transformers)", "BN011"): Truth(
        "the decay of the TensorFlow original, 0.997, is given to torch as momentum", forgets
    ),
    ("EfficientNet-B0 (transformers)", "BN011"): Truth(
        "the momentum of the Keras original, 0.99, is the default of the configuration", forgets
    ),
    ("Wav2Vec2-Conformer (transformers), padded", "BN009"): Truth(
        "its convolution module takes no mask: the frames behind a sample's end enter the statistics", padding_moves
    ),
}


@dataclass(frozen=True)
class Result:
    """A planted mistake, or what only looks like one.

    Attributes:
        plant: Which.
        layers: Where its rule, alone, finds something.
        severity: Of the first finding; empty where there is none.
        remarks: What torch-audit says.
    """

    plant: Plant
    layers: frozenset[str]
    severity: str
    remarks: list[Remark]

    @property
    def right(self) -> bool:
        """Whether the rule found something at just the layers that it should; at none of a healthy model."""
        return self.layers == set(self.plant.layers)

    @property
    def named(self) -> list[str]:
        """Those of torch-audit's rules by which it names the mistake."""
        return names(self.plant.rule, self.remarks)


def tried(folder: Path) -> list[Result]:
    """Both tools on every plant; of those for several processes, what the first of these saw."""
    every = plants(ranks=None)
    seen = {str(plant): looked(plant) for plant in every if plant.ranks == 1}
    for ranks in {plant.ranks for plant in every} - {1}:
        seen |= found_by_ranks(trust_ranks, ranks, folder)[0]
    results = []
    for plant in every:
        findings, remarks = seen[str(plant)]["findings"], seen[str(plant)]["remarks"]
        layers = frozenset(layer for layer, _ in findings)
        severity = findings[0][1] if findings else ""
        results.append(Result(plant, layers, severity, [Remark(*each) for each in remarks]))
    return results


@dataclass(frozen=True)
class Judged:
    """A clean model.

    Attributes:
        name: Which.
        diagnosis: Of all rules, while it trains.
        deployed: Of all rules, in evaluation mode and without loss and optimizer.
        verified: By rule, what shows that its errors and warnings are true.
        false: Errors and warnings that nothing shows to be true.
        remarks: What torch-audit says, of a model that was built anew.
    """

    name: str
    diagnosis: Diagnosis
    deployed: Diagnosis
    verified: dict[str, str]
    false: list[Finding]
    remarks: list[Remark]

    @property
    def findings(self) -> list[Finding]:
        """Of both, each layer and rule once."""
        return list(
            {(each.rule, each.layer): each for each in (*self.deployed.findings, *self.diagnosis.findings)}.values()
        )

    @property
    def loud(self) -> list[Finding]:
        """Errors and warnings."""
        return [each for each in self.findings if each.severity != "info"]


def judged(name: str, clean: Clean) -> Judged:
    """Every error and warning is true, or false."""
    case = clean.case()
    diagnosis = case.diagnose()
    deployed = Case(case.model.eval(), case.batches).diagnose(max_batches=2)
    case.model.train()
    found = Judged(name, diagnosis, deployed, {}, [], audit(clean.case()))
    for code in sorted({finding.rule for finding in found.loud}):
        findings = [finding for finding in found.loud if finding.rule == code]
        truth = TRUE.get((name, code))
        shown = truth.verify(case, findings) if truth else None
        if shown is None:
            found.false.extend(findings)
        else:
            found.verified[code] = shown
    return found


@dataclass(frozen=True)
class Trust:
    """Everything that was measured."""

    plants: list[Result]
    clean: list[Judged]

    @property
    def missed(self) -> list[str]:
        """Planted mistakes that were not found, or not where they are, and look-alikes where something was."""
        return [str(result.plant) for result in self.plants if not result.right]

    @property
    def false(self) -> list[str]:
        """False findings on clean models."""
        return [f"{each.name}: {finding}" for each in self.clean for finding in each.false]

    def rows(self) -> list[Row]:
        """As the page has them."""
        return [*self._summary(), *self._rules(), *self._clean(), *self._true(), *self._planted()]

    def _summary(self) -> Iterable[Row]:
        sick = [each for each in self.plants if not each.plant.healthy]
        well = [each for each in self.plants if each.plant.healthy]
        found, named = (sum(map(bool, each)) for each in ([e.right for e in sick], [e.named for e in sick]))
        yield _row("summary", "planted mistakes found", "doctor", f"{found} of {len(sick)}")
        yield _row("summary", "planted mistakes found", "torch-audit", f"{named} of {len(sick)}")
        rules = {each.plant.rule for each in sick}
        for tool, attribute in (("doctor", "right"), ("torch-audit", "named")):
            every = sum(all(getattr(e, attribute) for e in sick if e.plant.rule == code) for code in rules)
            yield _row("summary", "kinds of mistakes of which all were found", tool, f"{every} of {len(rules)}")
        wrong = sum(bool(each.layers) for each in well)
        case = "look-alikes in which that mistake is found"
        yield _row("summary", case, "doctor", f"{wrong} of {len(well)}")
        yield _row("summary", case, "torch-audit", f"{sum(bool(each.named) for each in well)} of {len(well)}")
        said = sum(len(each.loud) for each in self.clean)
        case = "errors and warnings on clean models"
        yield _row("summary", case, "doctor", str(said))
        yield _row("summary", case, "torch-audit", str(sum(len(_loud(each.remarks)) for each in self.clean)))
        case = "of these, about a batch norm"
        yield _row("summary", case, "doctor", str(said))
        about = [(each, remark) for each in self.clean for remark in _loud(each.remarks) if remark.of_norm]
        yield _row("summary", case, "torch-audit", str(len(about)))
        case = "of these, false"
        yield _row("summary", case, "doctor", str(len(self.false)))
        # Layers that are never called, and were. What else it says (few samples, decay, a bias before a norm) is so.
        false = sum(remark.rule == "TA500" and _in_use(each, remark.module) for each, remark in about)
        yield _row("summary", case, "torch-audit", str(false))

    def _rules(self) -> Iterable[Row]:
        for code, rule in registered().items():
            own = [each for each in self.plants if each.plant.rule == code]
            sick = [each for each in own if not each.plant.healthy]
            case = f"{code} {rule.name}"
            by = sorted({name for each in sick for name in each.named})
            yield _row("rules", case, "planted", str(len(sick)))
            yield _row("rules", case, "found", str(sum(each.right for each in sick)))
            yield _row("rules", case, "torch-audit found", str(sum(bool(each.named) for each in sick)))
            yield _row("rules", case, "by its rules", ", ".join(by))
            healthy = [each for each in own if each.plant.healthy]
            yield _row("rules", case, "look-alikes", str(len(healthy)))
            yield _row("rules", case, "found in these", str(sum(bool(each.layers) for each in healthy)))
            yield _row("rules", case, "torch-audit in these", str(sum(bool(each.named) for each in healthy)))

    def _clean(self) -> Iterable[Row]:
        for each in self.clean:
            yield _row("clean", each.name, "norms", str(len(each.diagnosis.evidence.layers)))
            yield _row("clean", each.name, "errors and warnings", _counted(finding.rule for finding in each.loud))
            yield _row("clean", each.name, "false", str(len(each.false)))
            infos = sorted({finding.rule for finding in each.findings if finding.severity == "info"})
            yield _row("clean", each.name, "infos", ", ".join(infos))
            remarks = _counted(remark.rule for remark in _loud(each.remarks))
            yield _row("clean", each.name, "torch-audit", remarks)

    def _true(self) -> Iterable[Row]:
        for each in self.clean:
            for code, shown in each.verified.items():
                findings = [finding for finding in each.loud if finding.rule == code]
                case = f"{each.name}, {len(findings)} of {len(each.diagnosis.evidence.layers)} norms"
                yield _row("true", f"{case}, {code}", "what it says of the first", findings[0].message)
                yield _row("true", f"{case}, {code}", "why", TRUE[each.name, code].reason)
                yield _row("true", f"{case}, {code}", "seen without the rule", shown)

    def _planted(self) -> Iterable[Row]:
        for each in self.plants:
            if not each.plant.healthy:
                case = f"{each.plant.rule}: {each.plant.name.replace('_', ' ')}"
                severity = each.severity or "nothing"
                yield _row("planted", case, "doctor", severity if each.right else f"{severity}: missed")
                yield _row("planted", case, "torch-audit", ", ".join(each.named) or "–")
                others = {remark.rule for remark in _loud(each.remarks)} - set(each.named)
                yield _row("planted", case, "what else it says", ", ".join(sorted(others)))


def _row(table: str, case: str, tool: str, text: str) -> Row:
    return {"table": table, "case": case, "tool": tool, "text": text}


def _loud(remarks: Iterable[Remark]) -> list[Remark]:
    return [each for each in remarks if each.severity != "INFO"]


def _in_use(each: Judged, path: str) -> bool:
    layer = each.diagnosis.evidence.layer(path)
    return layer is not None and layer.in_training is not None


def _counted(codes: Iterable[str]) -> str:
    return ", ".join(f"{code} × {count}" for code, count in sorted(Counter(codes).items())) or "–"


def measure(folder: Path) -> Trust:
    """All of it, which takes minutes; what processes leave goes into a folder."""
    return Trust(tried(folder), [judged(name, clean) for name, clean in CLEAN.items()])


def page(trust: Trust, text: str) -> str:
    """The page with these tables, and that of run times as it is on disk."""
    return tables.page(text, [*trust.rows(), *tables.read(TIMES)], TABLES)


def agree(one: str, other: str) -> bool:
    """Whether two pages are the same, but for run times, and for decimals as another processor may round them."""
    first, second = (re.split(r"(\d+\.\d+(?:e[-+]?\d+)?)", _timeless(text)) for text in (one, other))
    # Every second part is a decimal.
    return first[::2] == second[::2] and all(
        abs(float(a) - float(b)) <= 0.3 * abs(float(b)) for a, b in zip(first[1::2], second[1::2], strict=True)
    )


def _timeless(text: str) -> str:
    return re.sub(r"(<!-- table time -->).*?(<!-- end -->)", r"\1\2", text, flags=re.DOTALL)


def write(trust: Trust, path: Path = PAGE) -> bool:
    """Whether the page on disk was right; now it is. Decimals that agree are left as they are."""
    before = path.read_text(encoding="utf-8")
    after = page(trust, before)
    same = agree(before, after)
    if not same:
        path.write_text(after, encoding="utf-8")
    return same
