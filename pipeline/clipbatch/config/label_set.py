"""A run's labels: groups of labels with their prompts and thresholds, and how `run.json` records them.

    labels       compete with one another; an image gets the best one
    multiple     an image gets every label whose score is at or above the label's threshold
    tags         each has two sides, yes and no, and a softmax of its own over the two; an image gets every tag
                 whose score is at or above its threshold

Knows no file and no model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from clipbatch.config.nesting import JsonObject

# Today's rules for scores: a column `margin`, and a run that saves embeddings scores them as they are saved, rounded to
# float16, so that a rescoring gives the same scores.
SCORING = 2
# Of a label in a group where an image may have several, if the label file says nothing else.
DEFAULT_THRESHOLD = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelGroup:
    """Labels that answer one question, in the order of the score columns, with their prompts."""

    # The prefix of its columns; empty if the label set has no groups.
    name: str
    # For each label, what is put into the templates.
    phrases: dict[str, list[str]]
    # Each with `{}` for the phrase.
    templates: list[str]
    # Default threshold of a label: the least score at which an image gets it. None: an image always gets its best
    # label, or, in a group with `multiple`, every label from `DEFAULT_THRESHOLD` on.
    threshold: float | None = None
    # The labels that have a threshold of their own.
    thresholds: dict[str, float] = field(default_factory=dict)
    # Whether an image may have any number of labels.
    multiple: bool = False
    # Tags only: for each tag the phrases of its other side.
    opposites: dict[str, list[str]] | None = None

    @property
    def names(self) -> list[str]:
        return list(self.phrases)

    @property
    def prompts(self) -> list[list[str]]:
        """For each label, the texts whose unit-length features are averaged."""
        return [self._filled(phrases) for phrases in self.phrases.values()]

    @property
    def opposing_prompts(self) -> list[list[str]]:
        """For each tag, the texts of its other side; empty for labels."""
        return [self._filled(phrases) for phrases in (self.opposites or {}).values()]

    @property
    def cutoffs(self) -> list[float | None]:
        """For each label, its threshold; None where it needs none."""
        default = self.threshold
        if default is None and self.multiple:
            default = DEFAULT_THRESHOLD
        return [self.thresholds.get(name, default) for name in self.phrases]

    def _filled(self, phrases: list[str]) -> list[str]:
        return [template.replace("{}", phrase) for phrase in phrases for template in self.templates]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelSet:
    """All labels of a run: one group without a name, or several with one."""

    groups: tuple[LabelGroup, ...]
    # The rules for scores and their columns. None: those of runs that were planned before the rules had a number.
    scoring: int | None = None

    @property
    def names(self) -> list[str]:
        """Of all groups in turn; several groups may have a label of the same name."""
        return [name for group in self.groups for name in group.names]

    @property
    def prompts(self) -> list[list[str]]:
        """The prompts of each row of `text.npy`: of each group in turn its labels, then the other sides of its tags."""
        return [texts for group in self.groups for texts in (*group.prompts, *group.opposing_prompts)]

    @property
    def sizes(self) -> list[int]:
        """Labels in each group."""
        return [len(group.phrases) for group in self.groups]

    @property
    def are_tags(self) -> list[bool]:
        """For each group, whether its labels are tags."""
        return [group.opposites is not None for group in self.groups]

    def by_group(self, values: Sequence[Any]) -> Any:
        """One value for each group -> a dict by group name, or the value itself if there are no groups."""
        named = {group.name: value for group, value in zip(self.groups, values, strict=True)}
        return named.get("", named)

    def by_rules(self, scoring: int | None) -> LabelSet:
        """The same labels under other rules for scores."""
        return dataclasses.replace(self, scoring=scoring)

    def identity(self) -> JsonObject:
        """What makes it the same label set again, as JSON: lists, since the order decides the columns.

        Fields that came after format 3 are None where no group uses them.
        """
        groups = self.groups
        labels = [{"group": g.name, "names": g.names, "phrases": list(g.phrases.values())} for g in groups]
        thresholds = [{name: g.thresholds[name] for name in g.names if name in g.thresholds} for g in groups]
        multiple = [g.multiple for g in groups]
        opposites = [None if g.opposites is None else list(g.opposites.values()) for g in groups]
        return {
            "labels": labels,
            "templates": [g.templates for g in groups],
            "threshold": [g.threshold for g in groups],
            "thresholds": thresholds if any(thresholds) else None,
            "multiple": multiple if any(multiple) else None,
            "opposites": opposites if any(self.are_tags) else None,
            "scoring": self.scoring,
        }

    @staticmethod
    def from_identity(identity: Mapping[str, Any]) -> LabelSet:
        """The label set whose `identity` this is. Raises: ValueError if the fields do not fit together."""
        labels = identity["labels"]
        columns = [
            labels,
            identity["templates"],
            identity["threshold"],
            identity.get("thresholds") or [{}] * len(labels),
            identity.get("multiple") or [False] * len(labels),
            identity.get("opposites") or [None] * len(labels),
        ]
        groups = []
        for entry, templates, threshold, thresholds, multiple, opposites in zip(*columns, strict=True):
            names = entry["names"]
            groups.append(
                LabelGroup(
                    name=entry["group"],
                    phrases=dict(zip(names, entry["phrases"], strict=True)),
                    templates=templates,
                    threshold=threshold,
                    thresholds=dict(thresholds),
                    multiple=multiple,
                    opposites=None if opposites is None else dict(zip(names, opposites, strict=True)),
                )
            )
        return LabelSet(groups=tuple(groups), scoring=identity.get("scoring"))
