"""Benchmark data sets without a Hub copy, read from their official layouts in a local folder.

Lists keep the order of their files, folders are sorted by name. Labels of `train` may be wrong; those of `test`,
`validation` (to choose a model with), `meta` (never in train) and `test_ilsvrc12` are clean.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import DatasetDict
from transformers.utils import logging

from famus_hf.data.sources.image_lists import LocalRelease, Rows, class_numbers
from famus_hf.errors import DataError

logger = logging.get_logger(__name__)

HubLoader = Callable[[str], DatasetDict]

SOURCES = {
    "cifar10n": "https://github.com/UCSC-REAL/cifar-10-100n (folder data)",
    "cifar100n": "https://github.com/UCSC-REAL/cifar-10-100n (folder data)",
    "cnwl": "https://google.github.io/controlled-noisy-web-labels (32×32: https://github.com/youjiangxu/FaMUS)",
    "mini-webvision": "https://data.vision.ee.ethz.ch/cvl/webvision/dataset2017.html",
    "clothing1m": "https://github.com/Cysu/noisy_label (by request)",
    "food101n": "https://kuanghuei.github.io/Food-101N and https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101",
    "animal10n": "https://dm.kaist.ac.kr/datasets/animal-10n",
}
# Name → Hub data set, file, label sets, of which the first is the default
CIFAR_N = {
    "cifar10n": (
        "cifar10",
        "CIFAR-10_human.pt",
        ("worse_label", "aggre_label", "random_label1", "random_label2", "random_label3"),
    ),
    "cifar100n": ("cifar100", "CIFAR-100_human.pt", ("noisy_label",)),
}
CNWL_TRAIN_SIZES = {  # all others 50 000
    "red_noise_nl_0.3": 49_985, "red_noise_nl_0.4": 50_010, "red_noise_nl_0.5": 49_962, "red_noise_nl_0.8": 50_008
}  # fmt: skip
CLOTHING_CLASSES = [
    "T-Shirt", "Shirt", "Knitwear", "Chiffon", "Sweater", "Hoodie", "Windbreaker", "Jacket", "Downcoat", "Suit",
    "Shawl", "Dress", "Vest", "Underwear",
]  # fmt: skip
ANIMAL_CLASSES = [
    "cat", "lynx", "wolf", "coyote", "cheetah", "jaguar", "chimpanzee", "orangutan", "hamster", "guinea pig"
]  # fmt: skip
WEBVISION_CLASSES = 50  # of mini WebVision: the first of synsets.txt


def build(name: str, data_dir: Path | None, config_name: str | None, load_hub: HubLoader) -> DatasetDict:
    """Read a benchmark data set from its folder.

    Args:
        name: One of `BUILDERS`.
        data_dir: The folder that the official files were unpacked into.
        config_name: Label set of CIFAR-N (default: worse_label, noisy_label), noise level of CNWL (needed); others
            have none.
        load_hub: From `cifar10` or `cifar100` to its splits with columns `image` and `label`; only CIFAR-N calls it.

    Returns:
        Splits `train`, `test` and, where the data have them, `validation`, `meta` and `test_ilsvrc12`, with columns
        `image`, `label` and, in train of CIFAR-N, `clean_label`, all ClassLabels with the same names.

    Raises:
        DataError: One sentence that says what is malformed and where the data come from.
    """
    if data_dir is None:
        raise DataError(f"{name} is read from a local folder: name it with --data_dir ({name} is at {SOURCES[name]})")
    if not data_dir.is_dir():
        raise DataError(f"--data_dir {str(data_dir)!r} is not a folder: unpack {name} there, from {SOURCES[name]}")
    if config_name is not None and name not in (*CIFAR_N, "cnwl"):
        raise DataError(f"{name} has no configurations: leave out {config_name!r}")
    return BUILDERS[name](LocalRelease(name, data_dir.resolve(), SOURCES[name]), config_name, load_hub)


def _cifar_n(release: LocalRelease, config_name: str | None, load_hub: HubLoader) -> DatasetDict:
    """Read CIFAR-10N or CIFAR-100N: human labels in `CIFAR-10_human.pt` or `CIFAR-100_human.pt`, images of the Hub.

    Raises:
        DataError: The rows of the file are not those of the Hub's training split, by their clean labels.
    """
    hub_name, file_name, label_sets = CIFAR_N[release.name]
    label_set = config_name or label_sets[0]
    if label_set not in label_sets:
        raise DataError(f"{release.name} has no label set {label_set!r}: choose one of {', '.join(label_sets)}")
    arrays = _read_arrays(release, file_name)
    splits = load_hub(hub_name)
    train = splits["train"]
    feature = train.features["label"]
    clean, human = (
        _labels(release, file_name, key, arrays.get(key), len(train), feature.num_classes)
        for key in ("clean_label", label_set)
    )
    wrong = int((clean != np.asarray(train["label"][:])).sum())
    if wrong:
        raise DataError(
            f"{wrong} of {len(train)} clean labels in {file_name!r} differ from the Hub's {hub_name}, so the order of "
            f"rows is another: fetch the file again from {release.source}"
        )
    train = train.rename_column("label", "clean_label").add_column("label", human.tolist(), feature=feature)
    return DatasetDict({"train": train, "test": splits["test"]})


def _read_arrays(release: LocalRelease, name: str) -> dict[str, np.ndarray]:
    """Read a torch file with a dict of integer arrays. What needs more than numpy's arrays and integers is not run."""
    reconstruct = np.empty(0).__reduce__()[0]
    aliases = [f"{module}.multiarray._reconstruct" for module in ("numpy.core", "numpy._core")]  # numpy 1 and 2
    integers = {type(np.dtype(code)) for code in np.typecodes["AllInteger"]}
    allowed: list[Any] = [np.ndarray, np.dtype, *integers, *((reconstruct, alias) for alias in aliases)]
    path = release.file(name)
    try:
        with torch.serialization.safe_globals(allowed):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen unrelated types for broken and for forbidden content
        raise DataError(
            f"{str(path)!r} is no torch file of integer arrays alone and was not loaded ({type(error).__name__}): "
            f"fetch it from {release.source}"
        ) from error
    return content if isinstance(content, dict) else {}


def _labels(
    release: LocalRelease, name: str, key: str, values: np.ndarray | None, length: int, num_labels: int
) -> np.ndarray:
    """Return one array of the file, shape (N,). Raise DataError if it is not N classes."""
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "iu" or values.size != length:
        seen = f"shape {values.shape} of {values.dtype}" if isinstance(values, np.ndarray) else type(values).__name__
        raise DataError(
            f"{key!r} in {name!r} must be {length} integers, one for each training image, but is {seen}: "
            f"fetch the file again from {release.source}"
        )
    wrong = values[(values < 0) | (values >= num_labels)]
    release.refuse(list(map(str, wrong)), f"labels of {key!r} in {name!r} are not in 0..{num_labels - 1}")
    return values.reshape(-1)


def _cnwl(release: LocalRelease, config_name: str | None, load_hub: HubLoader) -> DatasetDict:
    """Read CNWL, red noise of mini-ImageNet, 32×32: 100 classes that are called by their numbers.

    Lines "name class" in `split/red_noise_nl_{level}` and `split/clean_validation`; images at
    `training_s32/red_noise_nl_{level}/{class}/{name}` and `validation_s32/{class}/{name}` or `validation_s32/{name}`.
    """
    noisy_lists = release.listing("split", "red_noise_nl_*")
    noisy = f"red_noise_nl_{config_name}"
    if noisy not in noisy_lists:
        raise DataError(
            f"config_name {config_name!r} is no noise level of cnwl: choose one, such as 0.2, whose file is in "
            f"{str(release.folder / 'split')!r} ({', '.join(noisy_lists) or 'none is there'}; {release.source})"
        )
    label_of = class_numbers(100)
    train = [
        (f"training_s32/{noisy}/{label}/{name}", label) for name, label in release.pairs(f"split/{noisy}", label_of)
    ]
    listed = release.pairs("split/clean_validation", label_of)
    test = [(_cnwl_validation_image(release, name, label), label) for name, label in listed]
    sizes = {"train": CNWL_TRAIN_SIZES.get(noisy, 50_000), "test": 5_000}
    release.compare_sizes({"train": len(train), "test": len(test)}, sizes)
    return release.splits(list(label_of), {"train": train, "test": test})


def _cnwl_validation_image(release: LocalRelease, name: str, label: int) -> str:
    flat = f"validation_s32/{name}"
    return flat if (release.folder / flat).is_file() else f"validation_s32/{label}/{name}"


def _mini_webvision(release: LocalRelease, config_name: str | None, load_hub: HubLoader) -> DatasetDict:
    """Read WebVision 1.0, Google's first 50 classes; tested on WebVision's and ILSVRC12's validation images.

    Lines "google/q0001/xxx.jpg 0" in `info/train_filelist_google.txt`; lines "val000001.jpg 12" in
    `info/val_filelist.txt`, with images in `val_images_256/`; line i of `info/synsets.txt`, "n01440764 tench, Tinca
    tinca", is class i. Optional: `imagenet/val/{wnid}/*.JPEG`, for the split `test_ilsvrc12`.
    """
    name = "info/synsets.txt"
    synsets = [line.split(maxsplit=1) for line in release.lines(name)]
    malformed = [fields[0] for fields in synsets if len(fields) != 2]
    release.refuse(malformed, f"lines of {name!r} are not a wnid and a class name")
    if len(synsets) < WEBVISION_CLASSES:
        raise DataError(f"{name!r} has {len(synsets)} of {WEBVISION_CLASSES} classes: fetch it from {release.source}")
    wnids = release.checked_keys([fields[0] for fields in synsets], name)[:WEBVISION_CLASSES]
    label_of = class_numbers(len(synsets))
    val = release.pairs("info/val_filelist.txt", label_of)
    rows = {
        "train": release.pairs("info/train_filelist_google.txt", label_of),
        "test": [(f"val_images_256/{name}", label) for name, label in val],
    }
    rows = {split: [row for row in listed if row[1] < WEBVISION_CLASSES] for split, listed in rows.items()}
    sizes = {"train": 65_944, "test": 2_500}
    if (release.folder / "imagenet/val").is_dir():
        rows["test_ilsvrc12"] = [row for label, wnid in enumerate(wnids) for row in _ilsvrc12(release, wnid, label)]
        sizes["test_ilsvrc12"] = 2_500
    release.compare_sizes({split: len(listed) for split, listed in rows.items()}, sizes)
    return release.splits([class_name for _, class_name in synsets[:WEBVISION_CLASSES]], rows)


def _ilsvrc12(release: LocalRelease, wnid: str, label: int) -> Rows:
    folder = f"imagenet/val/{wnid}"
    return [(f"{folder}/{name}", label) for name in release.listing(folder, "*.JPEG")]


def _clothing1m(release: LocalRelease, config_name: str | None, load_hub: HubLoader) -> DatasetDict:
    """Read Clothing1M: 14 classes; train has noisy labels, meta, validation and test those that people checked.

    Paths such as images/0/12/xxx.jpg in `noisy_train_key_list.txt` and `clean_{train,val,test}_key_list.txt`; lines
    "path label" in `noisy_label_kv.txt` and `clean_label_kv.txt`. What is in a clean list too leaves train.
    """
    label_of = class_numbers(len(CLOTHING_CLASSES))
    clean_label_of = dict(release.pairs("clean_label_kv.txt", label_of))
    lists = {"meta": "clean_train", "validation": "clean_val", "test": "clean_test"}
    rows = {split: _labelled(release, f"{name}_key_list.txt", clean_label_of) for split, name in lists.items()}
    noisy = _labelled(release, "noisy_train_key_list.txt", dict(release.pairs("noisy_label_kv.txt", label_of)))
    release.compare_sizes(
        {"train": len(noisy)} | {split: len(listed) for split, listed in rows.items()},
        {"train": 1_000_000, "meta": 47_570, "validation": 14_313, "test": 10_526},
    )
    clean = [path for listed in rows.values() for path, _ in listed]
    return release.splits(CLOTHING_CLASSES, {"train": _without(release, noisy, clean)} | rows)


def _labelled(release: LocalRelease, name: str, label_of_key: dict[str, int]) -> Rows:
    keys = release.keys(name)
    release.refuse([key for key in keys if key not in label_of_key], f"paths in {name!r} have no label")
    return [(key, label_of_key[key]) for key in keys]


def _without(release: LocalRelease, train: Rows, clean: list[str]) -> Rows:
    """Return the training rows that are in no clean split."""
    taken = set(clean)
    kept = [row for row in train if row[0] not in taken]
    if len(kept) < len(train):
        logger.warning(
            f"{release.name}: {len(train) - len(kept)} of {len(train)} training images are in a clean split too and "
            "leave train"
        )
    return kept


def _food101n(release: LocalRelease, config_name: str | None, load_hub: HubLoader) -> DatasetDict:
    """Read Food-101N, tested on Food-101; the images of `verified_val.tsv` with a correct label are the meta set.

    `Food-101N_release/images/{class}/{key}.jpg`; in `Food-101N_release/meta/` lines "apple_pie/abc.jpg" of
    `imagelist.tsv`, "apple_pie/abc.jpg 0|1" of `verified_val.tsv` and `classes.txt`, with or without a header;
    `food-101/images/{class}/{id}.jpg` and lines "apple_pie/1011328" of `food-101/meta/test.txt`.
    """
    root, header = "Food-101N_release", "class_name"
    class_names = release.lines(f"{root}/meta/classes.txt", header)
    train = _named_by_class(release, f"{root}/meta/imagelist.tsv", class_names, f"{root}/images/{{}}")
    verified = dict(release.pairs(f"{root}/meta/verified_val.tsv", class_numbers(2), header))
    meta = [row for row in train if verified.get(row[0].removeprefix(f"{root}/images/"))]
    test = _named_by_class(release, "food-101/meta/test.txt", class_names, "food-101/images/{}.jpg")
    release.compare_sizes({"train": len(train), "test": len(test)}, {"train": 310_009, "test": 25_250})
    taken = {path for path, _ in meta}
    rows = {"train": [row for row in train if row[0] not in taken], "meta": meta, "test": test}
    return release.splits(class_names, rows)


def _named_by_class(release: LocalRelease, name: str, class_names: list[str], path: str) -> Rows:
    """Return the rows of a list of "class/image"; `path` has a place for that."""
    label_of = {class_name: label for label, class_name in enumerate(class_names)}
    keys = release.keys(name, header="class_name")
    wrong = [key for key in keys if key.count("/") != 1 or key.split("/")[0] not in label_of]
    release.refuse(wrong, f"of {len(keys)} lines in {name!r} are not one of the {len(class_names)} classes/an image")
    return [(path.format(key), label_of[key.split("/")[0]]) for key in keys]


def _animal10n(release: LocalRelease, config_name: str | None, load_hub: HubLoader) -> DatasetDict:
    """Read ANIMAL-10N: `training/{label}_{id}.jpg` and `testing/{label}_{id}.jpg`, 10 classes."""
    rows = {"train": _labelled_by_name(release, "training"), "test": _labelled_by_name(release, "testing")}
    release.compare_sizes({split: len(listed) for split, listed in rows.items()}, {"train": 50_000, "test": 5_000})
    return release.splits(ANIMAL_CLASSES, rows)


def _labelled_by_name(release: LocalRelease, folder: str) -> Rows:
    label_of = class_numbers(len(ANIMAL_CLASSES))
    names = release.listing(folder, "*.jpg")
    wrong = [name for name in names if name.split("_")[0] not in label_of or "_" not in name]
    release.refuse(wrong, f"of {len(names)} files in {folder!r} are not called label_id.jpg with a label from 0 to 9")
    return [(f"{folder}/{name}", label_of[name.split("_")[0]]) for name in names]


# Name → what reads it
BUILDERS: dict[str, Callable[[LocalRelease, str | None, HubLoader], DatasetDict]] = {
    "cifar10n": _cifar_n,
    "cifar100n": _cifar_n,
    "cnwl": _cnwl,
    "mini-webvision": _mini_webvision,
    "clothing1m": _clothing1m,
    "food101n": _food101n,
    "animal10n": _animal10n,
}
