"""Images that list files name: the lists are read and checked, the images converted once to Arrow, undecoded.

List files are not trusted: a path that leads out of the folder, a line of another form or a name that is listed twice
is refused before any image is read.
"""

import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, NamedSplit
from transformers.utils import logging

from famus_hf.errors import DataError, first_few

logger = logging.get_logger(__name__)

Rows = list[tuple[str, int]]  # path in the folder, class


def class_numbers(num_labels: int) -> dict[str, int]:
    """Return class numbers as list files write them → as integers."""
    return {str(label): label for label in range(num_labels)}


@dataclass(frozen=True)
class LocalRelease:
    """A data set as it was published and unpacked here.

    Attributes:
        name: Of the data set.
        folder: Where it lies.
        source: Where it comes from, for messages.
    """

    name: str
    folder: Path
    source: str

    def file(self, name: str) -> Path:
        """Return a file of the release. Raise DataError if it is not there."""
        path = self.folder / name
        if not path.is_file():
            raise self.missing(f"file {name!r}")
        return path

    def missing(self, what: str) -> DataError:
        """Return the error that says what is not there and where it comes from."""
        return DataError(f"{what} is missing in folder {str(self.folder)!r}: {self.name} comes from {self.source}")

    def refuse(self, offenders: Sequence[str], sentence: str) -> None:
        """Raise DataError with the number of offenders, the sentence and the first three, if there are any."""
        if offenders:
            first = first_few(repr(offender[:100]) for offender in offenders)
            raise DataError(
                f"{len(offenders)} {sentence}: {first}; the folder is {str(self.folder)!r}, "
                f"{self.name} comes from {self.source}"
            )

    def lines(self, name: str, header: str | None = None) -> list[str]:
        """Return the lines of a text file without empty ones, and without the first one if it starts with `header`."""
        with self.file(name).open(encoding="utf-8", errors="replace") as file:
            lines = [line.strip() for line in file if line.strip()]
        return lines[1:] if header and lines and lines[0].startswith(header) else lines

    def keys(self, name: str, header: str | None = None) -> list[str]:
        """Read a list file with a path in each line.

        Raises:
            DataError: A path leads out of the folder or is listed twice, or the file is missing.
        """
        return self.checked_keys(self.lines(name, header), name)

    def pairs(self, name: str, label_of: Mapping[str, int], header: str | None = None) -> Rows:
        """Read a list file with "path label" in each line.

        Args:
            name: Of the file.
            label_of: Labels as the file writes them → as integers.
            header: How a first line begins that is to be left out.

        Raises:
            DataError: As `keys`, or a line has another form or a label that is none of `label_of`.
        """
        lines = [line.split() for line in self.lines(name, header)]
        self.refuse(
            [" ".join(fields) for fields in lines if len(fields) != 2 or fields[1] not in label_of],
            f"of {len(lines)} lines in {name!r} are not a path and a label from 0 to {len(label_of) - 1}",
        )
        keys = self.checked_keys([path for path, _ in lines], name)
        return [(key, label_of[label]) for key, (_, label) in zip(keys, lines, strict=True)]

    def checked_keys(self, keys: list[str], name: str) -> list[str]:
        """Return the keys of list file `name`. Raise DataError if one leads out of the folder or occurs twice."""
        leaving = [key for key in keys if key.startswith(("/", "\\")) or ".." in key.replace("\\", "/").split("/")]
        self.refuse(leaving, f"paths in {name!r} lead out of the folder")
        self.refuse([key for key, count in Counter(keys).items() if count > 1], f"names occur twice in {name!r}")
        return keys

    def listing(self, name: str, pattern: str) -> list[str]:
        """Return the sorted names of files in a folder of the release. Raise DataError if the folder is missing."""
        if not (self.folder / name).is_dir():
            raise self.missing(f"folder {name!r}")
        return sorted(path.name for path in (self.folder / name).glob(pattern))

    def compare_sizes(self, seen: Mapping[str, int], official: Mapping[str, int]) -> None:
        """Warn of splits of another size than the official one, which subsets may have."""
        for split, size in official.items():
            if seen[split] != size:
                logger.warning(f"{self.name}: {split} has {seen[split]} examples, officially {size}")

    def splits(self, class_names: list[str], rows: Mapping[str, Rows]) -> DatasetDict:
        """Return the images of all splits with columns `image` and `label`, converted in an earlier call or now.

        The cache of `datasets` is keyed by the paths, labels, sizes and times of change of the image files.

        Raises:
            DataError: Class names that occur twice, images that are not on disk, or a split without examples.
        """
        self.refuse([name for name, count in Counter(class_names).items() if count > 1], "class names occur twice")
        features = Features({"image": Image(), "label": ClassLabel(names=class_names)})
        stamps = {split: self._stamps(split, listed) for split, listed in rows.items()}
        return DatasetDict(
            {split: self._converted(split, listed, stamps[split], features) for split, listed in rows.items()}
        )

    def _stamps(self, split: str, rows: Rows) -> tuple[int, ...]:
        """Return size and time of change of each file, one after the other: flat, as each run hashes them."""
        stamps: list[int] = []
        missing = []
        for path, _ in rows:
            try:
                status = os.stat(os.path.join(self.folder, path))
            except (OSError, ValueError):  # ValueError: a NUL in the name
                status = None
            if status is not None and stat.S_ISREG(status.st_mode):
                stamps += (status.st_size, status.st_mtime_ns)
            else:
                missing.append(path)
        self.refuse(missing, f"of {len(rows)} listed images of split {split!r} are not on disk")
        if not rows:
            raise self.missing(f"every image of split {split!r}")
        return tuple(stamps)

    def _converted(self, split: str, rows: Rows, stamps: tuple[int, ...], features: Features) -> Dataset:
        paths, labels = tuple(path for path, _ in rows), tuple(label for _, label in rows)
        return Dataset.from_generator(  # of tuples, as `datasets` would shard lists
            _image_rows,
            gen_kwargs={"folder": str(self.folder), "paths": paths, "labels": labels, "stamps": stamps},
            features=features,
            split=NamedSplit(split),
        )


def _image_rows(
    folder: str, paths: tuple[str, ...], labels: tuple[int, ...], stamps: tuple[int, ...]
) -> Iterator[dict[str, Any]]:
    """Yield the rows of one split; `stamps` only makes the cache notice changed files."""
    for path, label in zip(paths, labels, strict=True):
        yield {"image": {"bytes": Path(folder, path).read_bytes(), "path": path}, "label": label}
