"""A protocol that is ready to run: its parts and the rules of its figures."""

from dataclasses import dataclass, field

from pipeline.evaluation.scoring import Part


@dataclass(frozen=True)
class Plan:
    """A protocol, ready to run."""

    parts: tuple[Part, ...]
    kind: str
    """How counts become figures: `classes`, `few-shot` or `held-out`."""
    mean_over: str = "target"
    """Classes of the mean IoU: those that the labels show, or `all`, absent ones counting 0."""
    equal_classes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """By part: a number for each class; equal numbers are classes that cannot be told apart."""
    unscored: frozenset[str] = frozenset()
    """Classes that do not enter the mean: the answer "other" of a zero-shot question."""
    notes: tuple[str, ...] = ()
    """What keeps the figures from being the published protocol's."""
