"""Small inputs of the kinds that users of training tools stumbled over; what is in an image tells its class.

Class k is a 16×16 grey image with a bright bar at height 5k.
"""

import base64
import io
import os

import numpy as np
import pandas as pd
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage

NAMES = ("ant", "bee", "cow")


def bar(number):
    """Return the picture of class `number`."""
    pixels = np.random.default_rng(number).integers(0, 30, (16, 16)).astype(np.uint8)
    pixels[5 * number : 5 * number + 4] += 200
    return PILImage.fromarray(pixels)


def class_of(picture):
    """Return k of a picture of class k."""
    return int(np.asarray(picture.convert("L"), dtype=int).sum(1).argmax()) // 5


def put(folder, number, count, start=0):
    """Write `count` pictures of class `number` into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for place in range(start, start + count):
        bar(number).save(folder / f"{place}.png")


def classes(folder, counts, names=NAMES):
    """A folder for each class, with so many pictures."""
    for number, (name, count) in enumerate(zip(names, counts, strict=True)):
        put(folder / name, number, count)


def table(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(columns).to_csv(path, index=False)


# ---- Folders ----


def flat(folder):
    classes(folder, (20, 20, 20))


def trusted(folder):
    """A training folder, and beside it trusted examples of two of its three classes."""
    classes(folder / "train", (20, 20, 20))
    put(folder / "trusted" / "bee", 1, 5, start=100)
    put(folder / "trusted" / "cow", 2, 5, start=100)


def strange_trusted(folder):
    trusted(folder)
    put(folder / "trusted" / "dog", 0, 5)


def years(folder):
    """Folders below the classes, of the same names in each."""
    for number, name in enumerate(NAMES):
        for year in ("2021", "2022"):
            put(folder / name / year, number, 10)


def superclasses(folder):
    """Folders above the classes, each with other ones in it."""
    put(folder / "insects" / "ant", 0, 20)
    put(folder / "insects" / "bee", 1, 20)
    put(folder / "mammals" / "cow", 2, 20)


def mixed_depths(folder):
    flat(folder)
    put(folder / "cow" / "old", 2, 3)


def loose(folder):
    flat(folder)
    bar(0).save(folder / "cover.png")


def linked(folder):
    """A class folder that is a link, and one that leads to a folder around it."""
    classes(folder / "here", (20, 20), NAMES[:2])
    put(folder / "elsewhere" / "cow", 2, 20)
    (folder / "here" / "cow").symlink_to(folder / "elsewhere" / "cow")
    (folder / "here" / "ant" / "around").symlink_to(folder / "here")


def underscores(folder):
    classes(folder, (20, 20, 20), ("__ant__", "_bee", "__MACOSX"))


def hidden(folder):
    flat(folder)
    put(folder / ".ipynb_checkpoints", 0, 2)
    bar(0).save(folder / "ant" / "._0.png")
    (folder / "dog").mkdir()


def part_of_name(folder):
    """Splits that are called so in part, each in a folder of its own name, as an archive leaves them."""
    classes(folder / "seg_train" / "seg_train", (20, 20, 20))
    classes(folder / "seg_test" / "seg_test", (5, 5, 5))


def beside_splits(folder):
    part_of_name(folder)
    put(folder / "seg_pred", 0, 4)


def like_splits(folder):
    classes(folder / "photos_trn", (20, 20, 20))
    classes(folder / "photos_tst", (5, 5, 5))


def called_train(folder):
    classes(folder, (20, 20, 20), ("bus", "car", "train"))


def flat_splits(folder):
    put(folder / "train", 0, 10)
    put(folder / "test", 0, 5)


def only_test(folder):
    classes(folder / "test", (5, 5, 5))


# ---- Metadata, tables ----


def root_metadata(folder, drop=0, extra=()):
    """Labels in metadata.csv at the root, other than the folders say; `drop` rows are missing, `extra` have no file."""
    files = []
    for split, count in (("train", 20), ("test", 5)):
        classes(folder / split, (count, count, count), ("x", "y", "z"))
        files += [(f"{split}/{kind}/{i}.png", name)
                  for kind, name in zip("xyz", NAMES, strict=True) for i in range(count)]  # fmt: skip
    files = [*files[drop:], *((name, "ant") for name in extra)]
    table(folder / "metadata.csv", file_name=[name for name, _ in files], label=[label for _, label in files])


def metadata_without_labels(folder):
    flat(folder)
    names = [f"{name}/{i}.png" for name in NAMES for i in range(20)]
    table(folder / "metadata.csv", file_name=names, camera=["left", "right"] * 30)


def stray_table(folder):
    flat(folder)
    table(folder / "classes.csv", id=[0, 1, 2], name=NAMES)


def table_of_paths(folder):
    """A table that names the images, whose folders are no classes."""
    classes(folder / "pictures", (20, 20, 20), ("a", "b", "c"))
    names = [f"pictures/{kind}/{i}.png" for kind in "abc" for i in range(20)]
    table(folder / "list.csv", image=names, label=[name for name in NAMES for _ in range(20)])


def base64_table(folder, head=""):
    def encoded(number):
        file = io.BytesIO()
        bar(number).save(file, "PNG")
        return head + base64.b64encode(file.getvalue()).decode()

    numbers = [row % 3 for row in range(60)]
    table(folder / "train.csv", image=[encoded(k) for k in numbers], label=[NAMES[k] for k in numbers])


def words(folder, labels, name="train.csv"):
    """A table of texts whose words are the labels that they have."""
    table(folder / name, text=[f"{label} {row}" for row, label in enumerate(labels * 20)], label=labels * 20)


# ---- Classes ----


def saved(folder, numbers, num_names=10):
    """A data set by save_to_disk, with classes c0, c1, …, of which only these occur."""
    features = Features({"image": Image(), "label": ClassLabel(names=[f"c{i}" for i in range(num_names)])})
    pictures = [bar(number % 3) for number in numbers]
    Dataset.from_dict({"image": pictures, "label": numbers}, features).save_to_disk(os.fspath(folder))


def absent(folder):
    saved(folder, [(2, 5, 7)[row % 3] for row in range(300)])


def rare(folder):
    saved(folder, [k for k in range(40) for _ in range(50 if k < 20 else 3)], 40)


def single(folder):
    classes(folder, (20, 20, 1))


def one_class(folder):
    put(folder / "ant", 0, 20)


def one_each(folder):
    classes(folder, (1, 1, 1))


# ---- Files ----


def broken(folder):
    flat(folder)
    (folder / "bee" / "7.png").write_bytes(b"")
