"""Flags from dataclasses, as transformers' HfArgumentParser reads them, with a help page by topic."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, cast

from transformers import HfArgumentParser

from famus_hf.cli.help_page import OneLinePerFlag
from famus_hf.cli.program import fail

FIRST = "Recipes, files, processes"


def whole_number(text: str) -> int:
    """Return a whole number that may be written as 100, 100.0 or 1e2. argparse makes a sentence of a ValueError."""
    if text.strip().lstrip("-").isdecimal():
        return int(text)
    if not float(text).is_integer():
        raise ValueError(text)
    return int(float(text))


class TopicParser(HfArgumentParser):
    """A parser of the fields of dataclasses.

    Args:
        dataclass_types: Whose fields are flags.
        topics: Topic → fields, in the order in which the help has them; before them come flags that are no fields.
        others: What the rest is about, at the end.
        keywords: Of argparse.ArgumentParser.
    """

    def __init__(
        self, dataclass_types: Sequence[type], *, topics: Mapping[str, Sequence[str]], others: str, **keywords: Any
    ):
        super().__init__(cast(Any, dataclass_types), formatter_class=OneLinePerFlag, **keywords)
        self.topics, self.others = topics, others
        self.fields = {action.dest for action in self._actions} - {"help"}
        for action in self._actions:
            action.type = whole_number if action.type is int else action.type

    @property
    def flags(self) -> set[str]:
        """All spellings of all flags."""
        return {option for action in self._actions for option in action.option_strings}

    def help_of(self, field: str, text: str) -> None:
        """Put another text in the place of a field's help."""
        for action in self._actions:
            if action.dest == field:
                action.help = text

    def error(self, message: str) -> None:  # type: ignore[override]
        fail(message)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse a word in the sentence that FaMUSTrainingArguments has for it."""
        if action.choices is not None and value not in action.choices:
            fail(f"{action.dest}={value!r} is unknown: choose one of {', '.join(map(str, action.choices))}")

    def format_help(self) -> str:
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        for title, actions in self._sections().items():
            formatter.start_section(title)
            formatter.add_arguments(actions)
            formatter.end_section()
        return formatter.format_help()

    def _sections(self) -> dict[str, list[argparse.Action]]:
        """Return the flags of each topic."""
        topic_of = {field: topic for topic, fields in self.topics.items() for field in fields}
        sections: dict[str, list[argparse.Action]] = {FIRST: [], **{topic: [] for topic in self.topics}}
        for action in self._actions:
            is_field = action.dest in self.fields
            if is_field and action.nargs == 0:  # --no_X, which is --X false
                continue
            topic = topic_of.get(action.dest, self.others) if is_field else FIRST
            sections.setdefault(topic, []).append(action)
        for topic, fields in self.topics.items():
            sections[topic].sort(key=lambda action: fields.index(action.dest))
        return sections
