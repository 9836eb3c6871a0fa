"""Of which split and of which class a file is, by the folders that it lies in.

Folders are told apart by their names and by how deep files lie, so that all of this is about names and touches no file.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from transformers.utils import logging

from famus_hf.errors import DataError, first_few

logger = logging.get_logger(__name__)

Parts = tuple[str, ...]  # the folders below the data's folder that lead to a file, and its name

SPLITS = (
    dict.fromkeys(("train", "training"), "train")
    | dict.fromkeys(("test", "testing", "eval", "evaluation"), "test")
    | dict.fromkeys(("validation", "valid", "val", "dev"), "validation")
)  # as files and folders call them, in lower case
SPLIT_WORD = re.compile(rf"(?:^|[^a-z])({'|'.join(SPLITS)})(?:set|data|images|imgs)?(?=[^a-z]|$)")
SPLIT_LIKE = re.compile(r"tr(ai)?n|te?st|val|holdout|hold.out|dev")  # in names that may mean a split
ADVICE = "name the folders to read with --train_dir and --validation_dir"


def split_of_name(name: str) -> str | None:
    """Return the split that the last split word in the name of a file or folder means, if there is one."""
    words = SPLIT_WORD.findall(name.lower())
    return SPLITS[words[-1]] if words else None


@dataclass
class FilesOfSplit:
    """Files of one split.

    Attributes:
        files: Of each the folders and the name.
        start: How many folders at the beginning are those of the split, and the same for all of a folder.
    """

    files: list[Parts]
    start: list[int]

    @property
    def folders(self) -> list[Parts]:
        """The folders below that of the split, for each file."""
        return [file[start:-1] for file, start in zip(self.files, self.start, strict=True)]


def files_of_splits(
    files: Sequence[Parts], where: str, things: str = "images", is_described: bool = False
) -> dict[str, FilesOfSplit]:
    """Return the files of each split, by folders called train/, seg_test/ and the like; `train` where none is.

    Args:
        files: All of them.
        where: The folder, for messages.
        things: What they are called.
        is_described: Whether a metadata file says of which class they are, so that no folder needs to.

    Raises:
        DataError: Some lie beside the folders of the splits, or folders of splits have no folders of classes.
    """
    start = 0
    while True:
        tops = sorted({file[start] for file in files if len(file) > start + 1})
        flat = {file[start] for file in files if len(file) == start + 2}
        roles = _roles(tops, flat, where, things, is_described)
        if roles is not None:
            return _divided(files, start, roles, where, things)
        loose = any(len(file) == start + 1 for file in files)
        if len(tops) != 1 or flat or loose:
            return {"train": FilesOfSplit(list(files), [start] * len(files))}
        start += 1


def _divided(
    files: Sequence[Parts], start: int, roles: Mapping[str, str], where: str, things: str
) -> dict[str, FilesOfSplit]:
    loose = ["/".join(file) for file in files if len(file) == start + 1]
    if loose:
        raise DataError(
            f"{len(loose)} {things} in {where!r} lie beside the folders of the splits ({first_few(loose)}): "
            "move them into one"
        )
    splits: dict[str, FilesOfSplit] = {}
    for file in files:
        split = splits.setdefault(roles[file[start]], FilesOfSplit([], []))
        split.files.append(file)
        split.start.append(start + 1)
    return splits


def _roles(tops: list[str], flat: set[str], where: str, things: str, is_described: bool) -> dict[str, str] | None:
    """Return folder → split, or None where the folders are none of splits. Raise DataError where some are not."""
    named = {top: split for top in tops if (split := split_of_name(top)) is not None}
    roles = {top: split for top, split in named.items() if is_described or top not in flat}
    called_so = [top for top in tops if top.lower() in SPLITS]
    others = [top for top in tops if top not in roles]
    kinds = set(roles.values())
    if roles and not others:
        return roles
    if "train" in kinds and (len(kinds) > 1 or set(roles) & set(called_so)):
        raise DataError(
            f"{len(others)} folders in {where!r} lie beside those of the splits ({first_few(others)}): move them, give "
            f"each split a folder for each class, or {ADVICE}"
        )
    if len({named[top] for top in called_so if top in flat}) > 1:
        raise DataError(
            f"the {things} in the folders {first_few(called_so)} of {where!r} lie in no folder of a class: sort them "
            f"into a folder for each class or, if these are classes, name {where!r} with --train_dir"
        )
    if len(tops) > 1:
        _report_names(tops, flat, called_so, where)
    return None


def _report_names(tops: list[str], flat: set[str], called_so: list[str], where: str) -> None:
    """Say which folders that are taken for classes may be none."""
    if called_so:
        logger.warning(f"the folder {called_so[0]!r} of {where!r} is taken for a class, as those beside it are")
    alike = [top for top in tops if top not in flat and SPLIT_LIKE.search(top.lower())]
    if len(alike) > 1:
        logger.warning(
            f"{len(alike)} folders of {where!r} are called like splits and taken for classes ({first_few(alike)}): if "
            f"they are splits, {ADVICE}"
        )


def classes_of_files(
    splits: Mapping[str, FilesOfSplit], where: str, things: str = "images"
) -> dict[str, list[str]] | None:
    """Return the class of each file of each split: the name of a folder; None where files lie in no folder.

    That is the folder that they lie in. Where folders lie in folders, and some of the same name are in several (years,
    cameras, sessions), it is the one above these. Folders around all others don't count.

    Args:
        splits: Of `files_of_splits`.
        where: The folder, for messages.
        things: What the files are called.

    Raises:
        DataError: Files of a split lie at different depths.
    """
    folders = {name: split.folders for name, split in splits.items()}
    first = {name: {parts[0] for parts in of_split if parts} for name, of_split in folders.items()}
    for name, of_split in folders.items():
        elsewhere = {top for other, tops in first.items() if other != name and len(tops) > 1 for top in tops}
        folders[name] = _without_wrappers(of_split, elsewhere)
        _check_depths(splits[name].files, folders[name], where, things)
    if not all(parts for of_split in folders.values() for parts in of_split):
        return None
    level = _level_of_classes([*chain.from_iterable(folders.values())])
    classes = {
        name: [parts[-1 if level is None else min(level, len(parts) - 1)] for parts in of_split]
        for name, of_split in folders.items()
    }
    _report_levels(folders, classes, where)
    return classes


def _without_wrappers(folders: list[Parts], classes: set[str]) -> list[Parts]:
    """Leave out folders that hold nothing but a single folder (or several, but no file) and are no known class."""
    while folders and len({parts[:1] for parts in folders}) == 1 and min(map(len, folders)) > 1:
        if folders[0][0] in classes:
            break
        folders = [parts[1:] for parts in folders]
    return folders


def _check_depths(files: list[Parts], folders: list[Parts], where: str, things: str) -> None:
    """Raise DataError on files at different depths, which leave open what folder is the class."""
    example: dict[int, str] = {}
    for file, parts in zip(files, folders, strict=True):
        example.setdefault(len(parts), "/".join(file))
    if len(example) < 2:
        return
    shallow, deep = min(example), max(example)
    counts = {depth: sum(len(parts) == depth for parts in folders) for depth in (shallow, deep)}
    raise DataError(
        f"{things} in {where!r} lie at different depths ({counts[shallow]} as {example[shallow]!r}, {counts[deep]} as "
        f"{example[deep]!r}), so that it is open which folder is the class: have all at one depth, or {ADVICE}"
    )


def _level_of_classes(folders: list[Parts]) -> int | None:
    """Return the first level below which folders of the same name lie in several folders; None where none do."""
    for level in range(max(map(len, folders), default=0) - 1):
        above: dict[str, set[Parts]] = {}
        for parts in folders:
            if len(parts) > level + 1:
                above.setdefault(parts[level + 1], set()).add(parts[: level + 1])
        if any(len(places) > 1 for places in above.values()):
            return level
    return None


def _report_levels(folders: Mapping[str, list[Parts]], classes: Mapping[str, list[str]], where: str) -> None:
    """Say which folders are the classes where folders lie in folders."""
    below: set[str] = set()
    is_innermost = True
    for name, of_split in folders.items():
        for parts, label in zip(of_split, classes[name], strict=True):
            if len(parts) > 1:
                is_innermost = is_innermost and label == parts[-1]
                below.update((parts[-1],) if parts[-1] != label else parts[:-1])
    if not below:
        return
    names = sorted({label for labels in classes.values() for label in labels})
    rest = f"those {'above' if is_innermost else 'below'} them ({first_few(sorted(below))})"
    logger.warning(f"the {len(names)} classes of {where!r} are its folders {first_few(names)}; {rest} are none")
