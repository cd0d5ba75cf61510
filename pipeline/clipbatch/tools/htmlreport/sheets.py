"""The examples on the page: those of the most frequent labels, as many as there is room for."""

from __future__ import annotations

from dataclasses import dataclass

from clipbatch.tools.htmlreport.gather import LabelFacts, SetFacts
from clipbatch.tools.htmlreport.rankings import Example

# In a page, all labels together. A thumbnail takes about 3 to 12 kB in it.
MAX_EXAMPLES = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class SheetLabel:
    """The examples of one label."""

    facts: LabelFacts
    # The id of its place in the page.
    anchor: str

    @property
    def examples(self) -> list[tuple[str, Example]]:
        """The examples, each with the reason why it is shown."""
        return [
            *(("confident", example) for example in self.facts.confident),
            *(("doubtful", example) for example in self.facts.doubtful),
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """The examples of one set of labels."""

    name: str
    labels: list[SheetLabel]
    # How many labels have images, but no room in the page.
    left_out: int


def sheets(sets: list[SetFacts]) -> list[Sheet]:
    """A sheet for each set of labels. All sets get the same room."""
    result = []
    for number, label_set in enumerate(sets):
        room, labels = MAX_EXAMPLES // len(sets), list[SheetLabel]()
        used = [facts for facts in label_set.labels if facts.images]
        for position, facts in enumerate(used):
            room -= len(facts.confident) + len(facts.doubtful)
            if room < 0:
                break
            labels.append(SheetLabel(facts=facts, anchor=f"label-{number}-{position}"))
        result.append(Sheet(name=label_set.name, labels=labels, left_out=len(used) - len(labels)))
    return result
