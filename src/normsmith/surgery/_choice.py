"""Which layers of a model a conversion is about, and what each is to become."""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from normsmith.errors import ModelError, OptionError
from normsmith.surgery._models import places
from normsmith.surgery._recognise import recognise
from normsmith.surgery._source import NotUnderstoodError, Source
from normsmith.surgery._successor import Target, check_target
from normsmith.surgery.adapted import Adapted

Where = Callable[[nn.Module, str], bool]
Targets = Target | Mapping[str | re.Pattern[str] | type[nn.Module], Target | None]


@dataclass(frozen=True, eq=False)
class Candidate:
    """A layer that is, or seems to be, a normalizer: all its names, and what it computes or why that is not known."""

    layer: nn.Module
    names: list[str]
    source: Source | None
    reason: str = ""

    @property
    def name(self) -> str:
        return self.names[0]


def candidates(model: nn.Module) -> list[Candidate]:
    """Every normalizer of a model, in the order of its modules; one that several parents share comes once."""
    found = []
    inside: set[nn.Module] = set()
    for module, names in places(model).items():
        if module in inside:
            continue
        try:
            source = recognise(module)
        except NotUnderstoodError as error:
            found.append(Candidate(module, names, None, str(error)))
            continue
        if source is not None:
            found.append(Candidate(module, names, source))
            inside.update(child for child in module.modules() if child is not module)
    return found


class Choice:
    """`to` and `where` of a conversion, checked against the names of the model."""

    def __init__(self, model: nn.Module, to: Targets, where: Where | None) -> None:
        self.where = where
        rules = to if isinstance(to, Mapping) else {nn.Module: to}
        self.names: dict[str, Target | None] = {}
        self.patterns: list[tuple[re.Pattern[str], Target | None]] = []
        self.types: dict[type[nn.Module], Target | None] = {}
        known = [name for names in places(model).values() for name in names]
        for key, target in rules.items():
            check_target(target)
            if isinstance(key, type):
                self.types[key] = target
            elif isinstance(key, re.Pattern) or key.startswith("re:"):
                self.patterns.append((_pattern(key, known), target))
            elif key in known:
                self.names[key] = target
            else:
                near = difflib.get_close_matches(key, known, n=2, cutoff=0.4)
                advice = f"did you mean {' or '.join(map(repr, near))}?" if near else "write a regular expression as 're:...'"
                raise OptionError(f"convert expects names of the model's modules: got {key!r}; {advice}")

    def target(self, candidate: Candidate) -> Target | None:
        """What a layer is to become, None to leave it: by its name or that of a part it is in, a pattern, its type, in this order."""
        if self.where is not None and not any(self.where(candidate.layer, name) for name in candidate.names):
            return None
        for name in _upwards(candidate.names):
            if name in self.names:
                return self.names[name]
        for pattern, target in self.patterns:
            if any(pattern.fullmatch(name) for name in candidate.names):
                return target
        for base in type(candidate.layer).__mro__:
            if base in self.types:
                return self.types[base]
        return None

    def names_it(self, candidate: Candidate) -> bool:
        """Whether a layer was asked for by its full name: then leaving it is an error."""
        return any(self.names.get(name) is not None for name in candidate.names)


def _pattern(key: str | re.Pattern[str], known: Iterable[str]) -> re.Pattern[str]:
    try:
        pattern = re.compile(key.removeprefix("re:")) if isinstance(key, str) else key
    except re.error as error:
        raise OptionError(f"convert expects a regular expression after 're:': got {key!r}, {error}; correct it") from None
    if not any(pattern.fullmatch(name) for name in known):
        raise OptionError(
            f"convert expects a pattern that matches the whole name of a module: got {pattern.pattern!r}, which matches none; "
            "try '.*' around it"
        )
    return pattern


def _upwards(names: Iterable[str]) -> Iterable[str]:
    """Names, then those of the parts they are in, the nearest first."""
    for name in names:
        parts = name.split(".")
        yield from (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    yield ""


def nothing_to_do(model: nn.Module, found: list[Candidate], left: Mapping[str, str]) -> ModelError:
    """Why a conversion has no layer to convert."""
    readable = [c for c in found if c.source is not None]
    if left:
        name, reason = next(iter(left.items()))
        return ModelError(
            f"convert expects a layer that it can convert: got {len(left)} that it cannot, such as {name!r}: {reason}"
        )
    if readable:
        c = readable[0]
        return ModelError(
            f"convert expects `to` and `where` to choose a layer: got none of {len(readable)}, the first of which is {c.name!r}, "
            f"a {type(c.layer).__name__}; widen them"
        )
    kinds: dict[str, int] = {}
    for module in model.modules():
        if not module._modules and not isinstance(module, Adapted):
            kinds[type(module).__name__] = kinds.get(type(module).__name__, 0) + 1
    near = sorted(kinds, key=lambda kind: ("norm" not in kind.lower(), -kinds[kind]))[:4]
    holds = ", ".join(f"{kinds[kind]} {kind}" for kind in near)
    return ModelError(
        f"convert expects a model with normalization layers: got none in {type(model).__name__}, which holds {holds or 'no layers'}; "
        "a norm written as a function in a forward cannot be found, make it a module"
    )
