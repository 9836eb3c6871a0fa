"""Folders of IDX files: their images and classes, and files that are cut short or missing."""

import gzip

import numpy as np
import pytest

from famus_hf import load_noisy_dataset
from famus_hf.data.sources.idx import FASHION_MNIST_CLASSES
from famus_hf.data.sources.load_source import load_source


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    content = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def idx_folder(tmp_path):
    folder = tmp_path / "my-fashion"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for split, size, ending in (("train", 60, ".gz"), ("t10k", 20, "")):
        images = generator.integers(256, size=(size, 5, 4))
        write_idx(folder / f"{split}-images-idx3-ubyte{ending}", images)
        write_idx(folder / f"{split}-labels-idx1-ubyte{ending}", np.arange(size) % 10)
    return folder


def test_idx_folders_load(idx_folder):
    data = load_noisy_dataset(str(idx_folder), noise=0.4, num_meta=10)
    assert (len(data["train"]), len(data["meta"]), len(data["test"])) == (50, 10, 20)
    assert data["train"].features["label"].names == FASHION_MNIST_CLASSES
    assert data["train"][0]["image"].size == (4, 5)


def test_incomplete_idx_folders_are_refused(idx_folder):
    path = idx_folder / "t10k-labels-idx1-ubyte"
    content = path.read_bytes()
    path.write_bytes(content[:-3])
    with pytest.raises(ValueError, match="cut short"):
        load_source(str(idx_folder))
    path.write_bytes(content[:6])  # shorter than its own header
    with pytest.raises(ValueError, match="cut short"):
        load_source(str(idx_folder))
    path.write_bytes(content)
    packed = idx_folder / "train-images-idx3-ubyte.gz"
    whole = packed.read_bytes()
    packed.write_bytes(whole[:-20])
    with pytest.raises(ValueError, match=r"train-images.*cut short"):
        load_source(str(idx_folder))
    packed.write_bytes(whole)
    write_idx(path, np.zeros(3))
    with pytest.raises(ValueError, match=r"20 images.*3 labels"):
        load_source(str(idx_folder))
    path.unlink()
    with pytest.raises(ValueError, match="has no t10k-labels-idx1-ubyte"):
        load_source(str(idx_folder))
