"""The page on which labels are reviewed: one HTML document that fetches nothing from outside."""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from markupsafe import Markup

from famus_hf.data.labels.decisions import COLUMNS, Decisions
from famus_hf.data.media.images import as_stored
from famus_hf.data.media.modalities import TEXT, modality_of_source
from famus_hf.reporting.html import data_uri, rendered
from famus_hf.reporting.label_report import TEXT_COLUMNS
from famus_hf.reporting.shown import SHOW, TYPES
from famus_hf.review.suspects import Suspect

SIZES = {"image": 640, "audio": 30}  # of an image at most, in pixels of a side; of a recording, in seconds
SMALLER = {"image": 256, "audio": 5}  # in a file that holds them all
FILES = Path(__file__).parent


class Examples:
    """What a reviewer sees of the examples.

    Args:
        splits: Of `load_splits`.
    """

    def __init__(self, splits: DatasetDict):
        self.kind = modality_of_source(splits["train"].features).column
        self.splits: dict[str, Dataset] = {split: as_stored(dataset) for split, dataset in splits.items()}

    def content(self, suspect: Suspect, sizes: dict[str, int] = SIZES) -> tuple[bytes, str] | None:
        """Return an image or a recording and its type; None where it can't be read any more."""
        content = SHOW[self.kind](self.splits[suspect.split], suspect.index, sizes[self.kind])
        return None if content is None else (content, TYPES[self.kind])

    def texts(self, suspect: Suspect) -> list[str]:
        """Return the text of an example, or both of a pair; nothing of images and recordings."""
        if self.kind != TEXT.column:
            return []
        row = self.splits[suspect.split][suspect.index]
        return [row[name] or "" for name in TEXT_COLUMNS if name in row]


@dataclass(frozen=True)
class Review:
    """What is reviewed.

    Attributes:
        title: Of the page.
        classes: Their names, in the order of the keys 1, 2, ….
        suspects: In the order in which they are shown.
        examples: What is seen of them.
        data: Fingerprint of the data set.
        left_out: How many further suspects, less probably wrong, are not shown.
    """

    title: str
    classes: Sequence[str]
    suspects: Sequence[Suspect]
    examples: Examples
    data: str
    left_out: int = 0

    @property
    def note(self) -> str:
        """What to know of suspects that are not shown; empty where there are none."""
        return f"{self.left_out} more suspects are not shown: --most says how many are" if self.left_out else ""


def served_page(review: Review, decisions: Decisions, file: str, token: str) -> str:
    """Return the page of a server, which asks it for images and recordings and hands decisions to it.

    Args:
        review: What is shown.
        decisions: Those that were made before.
        file: Name of the file that they are kept in.
        token: That requests carry.
    """
    media = [None if review.examples.kind == TEXT.column else f"media/{n}" for n in range(len(review.suspects))]
    return _page(review, decisions, media, {"file": file, "token": token})


def static_page(review: Review, decisions: Decisions) -> str:
    """Return the page as one file that holds all it shows; decisions are kept by the browser."""
    media: list[str | None] = []
    for suspect in review.suspects:
        content = None if review.examples.kind == TEXT.column else review.examples.content(suspect, SMALLER)
        media.append(None if content is None else data_uri(*content))
    return _page(review, decisions, media, {"file": None, "token": None})


def _page(review: Review, decisions: Decisions, media: Sequence[str | None], server: dict[str, Any]) -> str:
    place_of = {suspect.key: place for place, suspect in enumerate(review.suspects)}
    content = {
        **server,
        "title": review.title,
        "classes": list(review.classes),
        "kind": review.examples.kind,
        "data": review.data,
        "columns": COLUMNS,
        "examples": [
            {**asdict(suspect), "texts": review.examples.texts(suspect), "media": uri}
            for suspect, uri in zip(review.suspects, media, strict=True)
        ],
        "decided": [[place_of[own.key], own.reviewed_label] for own in decisions if own.key in place_of],
    }
    script, style = ((FILES / name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
    return rendered(
        FILES / "page_template.html",
        title=review.title,
        note=review.note,
        policy=content_policy(),
        script=Markup(script),
        style=Markup(style),
        content=Markup(json.dumps(content).replace("<", "\\u003c")),  # so that nothing in it ends the element
    )


def content_policy() -> str:
    """Return the Content-Security-Policy: our own script and style, and nothing from another place."""
    hashes = {
        kind: base64.b64encode(hashlib.sha256((FILES / name).read_bytes()).digest()).decode()
        for kind, name in (("script", "page.js"), ("style", "page.css"))
    }
    return (
        f"default-src 'none'; script-src 'sha256-{hashes['script']}'; style-src 'sha256-{hashes['style']}'; "
        "img-src 'self' data:; media-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'"
    )
