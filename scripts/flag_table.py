"""`python scripts/flag_table.py` writes the table of our flags into docs/command_line.md.

It comes from the dataclasses that parse them, by the topics of `famus-hf train --help`.
"""

from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from famus_hf import FaMUSTrainingArguments
from famus_hf.cli.arguments import CHANGED, TOPICS, DataArguments, ModelArguments

PAGE = Path(__file__).parents[1] / "docs" / "command_line.md"
BEGIN, END = "<!-- flags: written by scripts/flag_table.py -->\n", "<!-- flags: end -->"


def default_of(setting: Field[Any]) -> Any:
    """Return the value that a field has where nobody names one."""
    return setting.default if setting.default_factory is MISSING else setting.default_factory()


def flags_by_topic() -> dict[str, list[Field[Any]]]:
    """Return our flags, and transformers' with a default of ours, of which a training has some more of its own."""
    theirs = {setting.name: default_of(setting) for setting in fields(TrainingArguments)}
    every = [setting for kind in (DataArguments, ModelArguments, FaMUSTrainingArguments) for setting in fields(kind)]
    ours = {setting.name: setting for setting in every}
    topics = {topic: [ours[name] for name in names] for topic, names in TOPICS.items() if topic != CHANGED}
    changed = [setting for setting in every if default_of(setting) != theirs.get(setting.name, default_of(setting))]
    return {**topics, CHANGED: changed}


def row_of(setting: Field[Any]) -> str:
    """Return a flag's row in Markdown."""
    value = default_of(setting)
    words = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    shown = "–" if value is None else f"`{words.lower() if isinstance(value, bool) else words}`"
    return f"| `--{setting.name}` | {shown} | {setting.metadata['help'].replace('|', chr(92) + '|')} |"


def rewritten(page: str) -> str:
    """Return the page with the present flags between its two comments."""
    before, _, rest = page.partition(BEGIN)
    head = "| flag | default | what it does |\n|---|---|---|\n"
    tables = [f"### {topic}\n\n{head}" + "\n".join(map(row_of, flags)) for topic, flags in flags_by_topic().items()]
    return f"{before}{BEGIN}\n" + "\n\n".join(tables) + f"\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
