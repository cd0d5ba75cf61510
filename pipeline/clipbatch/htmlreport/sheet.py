"""Which examples a report shows: of the most frequent labels, as many as there is room for."""

from __future__ import annotations

from dataclasses import dataclass

from clipbatch.htmlreport.examples import Example
from clipbatch.htmlreport.gather import LabelFacts, SetFacts

MOST_EXAMPLES = 300
"""In a report: a thumbnail takes some 3 to 12 kB in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SheetLabel:
    """The examples of one label."""

    facts: LabelFacts
    anchor: str
    """Where in the page it is."""

    @property
    def examples(self) -> list[tuple[str, Example]]:
        """Each with why it is shown."""
        return [
            *(("confident", example) for example in self.facts.confident),
            *(("doubtful", example) for example in self.facts.doubtful),
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """The examples of one set of labels."""

    name: str
    labels: list[SheetLabel]
    left_out: int
    """Labels that have images, but no room."""


def sheets(sets: list[SetFacts]) -> list[Sheet]:
    """A sheet for each set, with the same room for all."""
    made = []
    for number, found in enumerate(sets):
        room, labels = MOST_EXAMPLES // len(sets), list[SheetLabel]()
        used = [facts for facts in found.labels if facts.images]
        for place, facts in enumerate(used):
            room -= len(facts.confident) + len(facts.doubtful)
            if room < 0:
                break
            labels.append(SheetLabel(facts=facts, anchor=f"label-{number}-{place}"))
        made.append(Sheet(name=found.name, labels=labels, left_out=len(used) - len(labels)))
    return made
