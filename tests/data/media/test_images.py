"""Images of every mode in RGB, and those that can't be read by name."""

import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
from datasets import Dataset, Features, Image
from hypothesis import given, settings
from hypothesis import strategies as st

from famus_hf.data.media.examples import named
from famus_hf.data.media.images import (
    BROKEN,
    ONE_COLOUR,
    SCALED,
    TRANSPARENT,
    as_rgb,
    check_image_formats,
    pixel_features,
    remarks_on,
    rgb_and_remarks,
)
from tests.helpers.hostile import refused

GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)
BLACK, WHITE = np.zeros_like(GREY), np.full_like(GREY, 255)
HOLED = np.where(GREY == 3, 255, GREY)


def of(*channels):
    """An image of these channels of 8 bits."""
    images = [PIL.Image.fromarray(channel) for channel in channels]
    return PIL.Image.merge(("", "L", "LA", "RGB", "RGBA")[len(images)], images)


def stored(image, form="PNG", **options):
    """The image as it is read from a file."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return Image().decode_example({"bytes": file.getvalue(), "path": None})


def numbers(values, kind):
    return PIL.Image.fromarray(values.astype(kind))


AS_GREY = {  # what an image of each mode is → what it looks like, and what is said of it
    "8 bits": (of(GREY), GREY, []),
    "16 bits": (stored(numbers(GREY.astype(int) * 257, np.uint16)), GREY, []),
    "16 bits that are rounded": (numbers((GREY.astype(int) * 257 - 100).clip(0), np.uint16), GREY, []),
    "16 bits from above": (
        PIL.Image.frombytes("I;16B", (16, 16), (GREY.astype(">u2") * 257).tobytes()), GREY, []),
    "16 bits of which one value is transparent": (
        stored(numbers(GREY.astype(int) * 257, np.uint16), transparency=3 * 257), HOLED, [TRANSPARENT]),
    "32 bits of which 16 are used": (stored(numbers(GREY.astype(int) * 257, np.int32), "TIFF"), GREY, []),
    "32 bits of which 8 are used": (numbers(GREY, np.int32), GREY, []),
    "32 bits": (numbers(GREY.astype(int) * 10**6 - 5000, np.int32), GREY, [SCALED]),
    "floats to 1": (stored(numbers(GREY / 255, np.float32), "TIFF"), GREY, []),
    "floats that are rounded": (numbers(GREY * 0.999 / 255, np.float32), GREY, []),
    "floats to 255": (numbers(GREY, np.float32), GREY, []),
    "floats": (stored(numbers(GREY * 3.0 - 100, np.float32), "TIFF"), GREY, [SCALED]),
    "a drawing in alpha": (stored(of(BLACK, BLACK, BLACK, 255 - GREY)), GREY, [TRANSPARENT]),
    "grey and alpha": (stored(of(BLACK, 255 - GREY)), GREY, [TRANSPARENT]),
    "premultiplied alpha": (of(BLACK, BLACK, BLACK, 255 - GREY).convert("RGBa"), GREY, [TRANSPARENT]),
    "premultiplied grey": (of(BLACK, 255 - GREY).convert("La"), GREY, [TRANSPARENT]),
    "a palette with alpha": (
        stored(of(GREY).convert("P"), transparency=bytes(255 * (i != 3) for i in range(256))), HOLED, [TRANSPARENT]),
    "one transparent grey": (stored(of(GREY), transparency=3), HOLED, [TRANSPARENT]),
    "one transparent colour": (stored(of(GREY, GREY, GREY), transparency=(3, 3, 3)), HOLED, [TRANSPARENT]),
    "alpha that hides nothing": (stored(of(GREY, GREY, GREY, WHITE)), GREY, []),
    "a palette": (stored(of(GREY).convert("P")), GREY, []),
    "1 bit": (stored(of(GREY).point(lambda v: 255 * (v > 99), "1")), 255 * (GREY > 99), []),
    "all black": (of(BLACK), BLACK, [ONE_COLOUR]),
    "all transparent": (of(BLACK, BLACK), WHITE, [TRANSPARENT, ONE_COLOUR]),
    "the same number everywhere": (numbers(WHITE.astype(int) * -1, np.int32), BLACK, [SCALED, ONE_COLOUR]),
}  # fmt: skip


@pytest.mark.parametrize("case", AS_GREY)
def test_an_image_of_every_mode_looks_in_rgb_as_it_was_drawn(case):
    image, expected, remarks = AS_GREY[case]
    rgb, found = rgb_and_remarks(image)
    assert rgb.mode == "RGB" and found == remarks
    assert all((np.asarray(channel) == expected).all() for channel in rgb.split())


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV"])
def test_other_colours_are_as_pil_converts_them(mode):
    image = of(GREY, GREY[::-1], GREY.T).convert(mode)
    assert as_rgb(image).tobytes() == image.convert("RGB").tobytes()


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height):
    """The file of a grey image of such a size, as far as it claims."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def file_of(image, form):
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


LARGE = PIL.Image.fromarray(np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8))
BROKEN_FILES = {
    "empty.png": b"",
    "text.png": b"no image at all",
    "half.jpg": file_of(LARGE, "JPEG")[:3000],
    "half.png": file_of(LARGE, "PNG")[:3000],
    "flat.png": png(0, 5),
    "bomb.png": png(200_000, 200_000),
    "nan.tif": file_of(numbers(GREY * np.nan, np.float32), "TIFF"),
    "inf.tif": file_of(numbers(np.where(GREY == 3, np.inf, GREY), np.float32), "TIFF"),
}


@pytest.fixture
def broken(tmp_path):
    """A whole image, each of `BROKEN_FILES`, a missing file, a folder, and no image at all."""
    (tmp_path / "ant" / "folder.png").mkdir(parents=True)
    for name, content in {"whole.png": file_of(LARGE, "PNG"), **BROKEN_FILES}.items():
        (tmp_path / "ant" / name).write_bytes(content)
    names = ["whole.png", *BROKEN_FILES, "missing.png", "folder.png"]
    paths = [str(tmp_path / "ant" / name) for name in names]
    return Dataset.from_dict({"image": [*paths, None]}, features=Features({"image": Image()}))


def test_broken_images_of_every_kind_are_found_counted_and_named(broken):
    assert remarks_on(broken) == {BROKEN: list(range(1, len(broken)))}
    words = "ant/empty.png, ant/text.png, ant/half.jpg, ant/half.png, ant/flat.png, …"
    refused(
        rf"{len(broken) - 1} of {len(broken)} images of the training set can't be read \({words}\): remove or repair",
        pixel_features, broken,
    )  # fmt: skip


def test_examples_are_named_by_their_files_else_by_their_numbers(broken):
    assert named(broken.select([9, 11]), "image", [0, 1]) == "ant/missing.png, row 1"
    assert named(broken.select([9, 11]), "image", [0, 1], [70, 80]) == "ant/missing.png, index 80"
    assert named(Dataset.from_dict({"text": ["a"] * 9}), "text", range(2, 9)) == "row 2, 3, 4, 5, 6, …"


@pytest.mark.parametrize("ending, remedy", [("heic", "pip install pillow-heif"), ("AVIF", "pip install -U pillow")])
def test_formats_that_need_another_library_are_said_with_its_name(monkeypatch, ending, remedy):
    known = {name: kind for name, kind in PIL.Image.registered_extensions().items() if name not in (".heic", ".avif")}
    monkeypatch.setattr(PIL.Image, "EXTENSION", known)
    words = rf"1 images are of a format that can't be read here \(cat/a.{ending}\): {remedy}, or convert them"
    refused(words, check_image_formats, [f"/data/cat/a.{ending}", "/data/cat/b.png"])
    known[f".{ending.lower()}"] = "KNOWN"
    check_image_formats([f"/data/cat/a.{ending}"])


@pytest.mark.parametrize("form", ["AVIF", "HEIF"])
def test_images_of_phones_and_browsers_are_read(form):
    if form not in {kind for ending, kind in PIL.Image.registered_extensions().items() if ending in (".avif", ".heic")}:
        pytest.skip("what reads them is not installed")
    image = of(GREY, GREY, GREY).resize((64, 64))
    difference = np.asarray(as_rgb(stored(image, form, quality=100)), float) - np.asarray(image)
    assert np.abs(difference).mean() < 5


def drawn(kind, values):
    """The file of an image that shows these greys, floats from 0 to 1 of shape (height, width), and its ending."""
    if kind == "16 bits":
        return stored_file(numbers(np.rint(values * 65535), np.uint16), "PNG")
    if kind == "32 bits":
        return stored_file(numbers(np.rint(values * 65535), np.int32), "TIFF")
    if kind == "floats":
        return stored_file(numbers(values, np.float32), "TIFF")
    grey = np.rint(values * 255).astype(np.uint8)
    black, full = np.zeros_like(grey), np.full_like(grey, 255)
    channels = {
        "grey": (grey,),
        "RGB": (grey,) * 3,
        "whole alpha": (grey, full),
        "drawn in alpha": (black, black, black, 255 - grey),
        "drawn in alpha of a colour": (full, full, full, grey),
    }[kind]
    return stored_file(of(*channels), "PNG")


def stored_file(image, form):
    return file_of(image, form), {"PNG": ".png", "TIFF": ".tif"}[form]


KINDS = ["16 bits", "32 bits", "floats", "grey", "RGB", "whole alpha", "drawn in alpha", "drawn in alpha of a colour"]


@pytest.mark.parametrize("count", [30, pytest.param(300, marks=pytest.mark.slow)])
def test_generated_images_of_every_kind_are_read_as_they_were_drawn(tmp_path, count):
    @settings(max_examples=count, deadline=None)
    @given(st.sampled_from(KINDS), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
    def check(kind, height, width, seed):
        values = np.random.default_rng(seed).random((height, width))
        values.flat[0] = 1.0  # so that 32 bits are known from 8 by their largest value
        content, ending = drawn(kind, values)
        (tmp_path / f"image{ending}").write_bytes(content)
        data = Dataset.from_dict({"image": [str(tmp_path / f"image{ending}")]}, features=Features({"image": Image()}))
        expected = np.full_like(values, 255) if kind == "drawn in alpha of a colour" else values * 255
        assert np.abs(np.asarray(as_rgb(data[0]["image"])) - expected[..., None]).max() <= 0.5 + 1e-3

    check()
