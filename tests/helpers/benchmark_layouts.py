"""One tiny tree of each benchmark in its official layout; an image is told from others by its grey."""

from PIL import Image as PILImage

from famus_hf.data.sources.benchmarks import build


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def draw(path, grey):
    """A 4×4 image that is told from others by its grey; PNG, as that keeps it exactly."""
    path.parent.mkdir(parents=True, exist_ok=True)
    PILImage.new("L", (4, 4), grey).save(path, format="PNG")


def seen(split):
    """Grey and label of each row."""
    return [(example["image"].getpixel((0, 0)), example["label"]) for example in split]


def no_hub(name):
    raise AssertionError("only CIFAR-N needs the Hub")


def lay_cnwl(folder):
    write(folder / "split/red_noise_nl_0.4", "b.jpg 99", "a.jpg 0")
    write(folder / "split/red_noise_nl_0.6", "a.jpg 1")
    write(folder / "split/clean_validation", "v.jpg 5", "w.jpg 3")
    draw(folder / "training_s32/red_noise_nl_0.4/99/b.jpg", 1)
    draw(folder / "training_s32/red_noise_nl_0.4/0/a.jpg", 2)
    draw(folder / "validation_s32/5/v.jpg", 3)
    draw(folder / "validation_s32/w.jpg", 4)


def lay_webvision(folder):
    write(folder / "info/synsets.txt", *(f"n{label:08} name {label}, other name" for label in range(60)))
    google = (f"google/{own}" for own in ("q0002/b.jpg 49", "q0001/a.jpg 0", "q0003/of_another_class.jpg 50"))
    write(folder / "info/train_filelist_google.txt", *google)
    write(folder / "info/val_filelist.txt", "val1.jpg 50", "val2.jpg 7")
    draw(folder / "google/q0002/b.jpg", 1)
    draw(folder / "google/q0001/a.jpg", 2)
    draw(folder / "val_images_256/val2.jpg", 3)


def lay_clothing1m(folder):
    noisy, clean = (f"images/{kind}/{{}}.jpg".format for kind in ("noisy", "clean"))
    write(folder / "noisy_train_key_list.txt", noisy(2), noisy(1), clean(0))
    write(folder / "noisy_label_kv.txt", f"{noisy(1)} 13", f"{noisy(2)} 0", f"{clean(0)} 4")
    write(folder / "clean_label_kv.txt", *(f"{clean(row)} {row + 1}" for row in range(3)))
    for row, split in enumerate(("train", "val", "test")):
        write(folder / f"clean_{split}_key_list.txt", clean(row))
        draw(folder / clean(row), 10 + row)
    for row in (1, 2):
        draw(folder / noisy(row), row)


def lay_food101n(folder):
    meta = folder / "Food-101N_release/meta"
    write(meta / "classes.txt", "class_name", "waffles", "apple_pie")
    write(meta / "imagelist.tsv", "class_name/key", "apple_pie/c.jpg", "waffles/a.jpg", "waffles/b.jpg")
    write(meta / "verified_val.tsv", "class_name/key\tverification_label", "waffles/a.jpg\t0", "waffles/b.jpg\t1")
    write(folder / "food-101/meta/test.txt", "waffles/1011328", "apple_pie/7")
    for grey, name in enumerate(("apple_pie/c.jpg", "waffles/a.jpg", "waffles/b.jpg"), start=1):
        draw(folder / "Food-101N_release/images" / name, grey)
    draw(folder / "food-101/images/waffles/1011328.jpg", 4)
    draw(folder / "food-101/images/apple_pie/7.jpg", 5)


def lay_animal10n(folder):
    draw(folder / "training/9_17.jpg", 1)
    draw(folder / "training/0_2.jpg", 2)
    draw(folder / "testing/4_1.jpg", 3)


LAYOUTS = {
    "cnwl": (lay_cnwl, "0.4"),
    "mini-webvision": (lay_webvision, None),
    "clothing1m": (lay_clothing1m, None),
    "food101n": (lay_food101n, None),
    "animal10n": (lay_animal10n, None),
}


def built(name, folder):
    return build(name, folder, LAYOUTS[name][1], no_hub)
