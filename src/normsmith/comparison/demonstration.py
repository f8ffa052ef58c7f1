"""`demonstrate`: the main job on the embedded recipe: a comparison, and an examination of its best and its worst model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normsmith.comparison.comparison import Comparison
from normsmith.comparison.running import compare
from normsmith.doctor.examination import Examination
from normsmith.doctor.examine import examine
from normsmith.trials.trained import load_trained

_BATCHES = 64  # of the test set that an examination looks at


@dataclass(frozen=True, eq=False)
class Demonstration:
    """What came of it: the comparison, and the examinations by what they are of."""

    comparison: Comparison
    examinations: dict[str, Examination]
    paths: tuple[Path, ...]  # the pages: the comparison first

    def __str__(self) -> str:
        lines = [str(self.comparison)]
        for what, exam in self.examinations.items():
            found = [f"{finding.severity} {finding.code} {finding.title}" for finding in exam.at_least("warning")]
            lines.append(f"{what}: {'; '.join(found) or 'nothing that needs a cure'}")
        return "\n".join([*lines, "", *(f"page: {path}" for path in self.paths)])


def demonstrate(recipe: dict[str, Any], out: Path, *, quiet: bool = False) -> Demonstration:
    """Compare, examine the best and the worst model, and write a page of each; what is done already is not done again."""
    recipe = {**recipe, "training": {**recipe.get("training", {}), "keep_weights": True}}
    result = compare(recipe, out, quiet=quiet)
    ordered = sorted((t for t in result.trials if t["accuracy"] is not None), key=lambda t: (t["accuracy"], t["identity"]))
    examinations, links, paths = {}, {}, []
    for place, trial in (("best", ordered[-1]), ("worst", ordered[0])):
        what = f"{place} model ({trial['normalizer']} at batch {trial['batch']}, {trial['accuracy']:.1%})"
        model, batches = load_trained(out, trial["identity"])
        examinations[what] = examine(model, batches, batches=min(_BATCHES, len(batches)))
        paths.append(examinations[what].save(out / f"examine-{place}.html"))
        links[f"examination of the {what}"] = paths[-1].name
    for suffix in (".json", ".md", ".csv"):
        result.save(out / f"report{suffix}")
    return Demonstration(result, examinations, (result.save(out / "report.html", links=links), *paths))


def quick(recipe: dict[str, Any]) -> dict[str, Any]:
    """The same in seconds: fewer normalizers, one epoch, one seed."""
    return {**recipe, "name": f"{recipe['name']}-quick", "normalizers": ["batch", "layer"], "epochs": 1, "seeds": 1}
