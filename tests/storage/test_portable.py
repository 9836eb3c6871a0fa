"""A checkpoint as safetensors and JSON: everything comes through, and what others put there does no harm."""

import json
import shutil
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from famus_hf.storage.checkpoints import fault_of, run_of, write_manifest
from famus_hf.storage.json_tree import from_json_tree, to_json_tree
from famus_hf.storage.portable import pack, unpack
from famus_hf.storage.run_folder import NETWORKS_APART
from tests.helpers.hostile import PICKLES, as_json, fuzz, mutated, refused
from tests.helpers.trainers import make_trainer


def packed(folder, checkpoint):
    """The checkpoint as it is pushed."""
    folder.mkdir(parents=True)
    pack(checkpoint, folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("local")
    make_trainer(folder, max_steps=2, save_strategy="steps", save_steps=2, meta_optim="adam").train()
    return folder / "checkpoint-2"


def test_everything_that_a_resume_reads_comes_through_packing(tmp_path, checkpoint):
    again = unpack(packed(tmp_path / "packed", checkpoint), tmp_path, processes=1)
    assert again == tmp_path / "checkpoint-2" and fault_of(again) is None and run_of(again) == run_of(checkpoint)
    pickled = {path.name for path in checkpoint.iterdir() if path.name.endswith(PICKLES)} - {"training_args.bin"}
    assert pickled == {"optimizer.pt", "scheduler.pt", "rng_state.pth", "meta_state.pt"}
    for name in pickled:
        one, other = (torch.load(folder / name, weights_only=False) for folder in (checkpoint, again))
        assert repr(one) == repr(other) and type(one) is type(other), name
    for name in ("model.safetensors", "meta_net/model.safetensors", "meta_net/layer_sampler.safetensors"):
        assert (checkpoint / name).read_bytes() == (again / name).read_bytes()
    assert not (again / "training_args.bin").exists()


def test_a_checkpoint_of_two_networks_comes_through_packing(tmp_path, checkpoint):
    """The ensemble at its root, each network's meta-net, and optimizers of both in one file of nested dicts."""
    local = shutil.copytree(checkpoint, tmp_path / "checkpoint-2")
    for network in NETWORKS_APART:
        shutil.copytree(checkpoint / "meta_net", local / network / "meta_net")
        (local / network / "meta_net" / "optimizer.pt").write_bytes(b"\x80\x04.")
        (local / network / "more.json").write_text("{}")
    shutil.rmtree(local / "meta_net")
    one = torch.load(checkpoint / "meta_state.pt")
    division = {"c": torch.arange(3.0), "history": torch.zeros(0, 3, dtype=torch.float64), "epoch": 2}
    both = {network: {**one, "pseudo_clean": division} for network in NETWORKS_APART}
    torch.save(both, local / "meta_state.pt")
    write_manifest(local, run_of(checkpoint))
    folder = packed(tmp_path / "packed", local)
    assert not [path for path in folder.rglob("*") if path.name.endswith(PICKLES)]
    again = unpack(folder, tmp_path / "again", processes=1)
    assert repr(torch.load(again / "meta_state.pt")) == repr(both)
    for name in ("config.json", "model.safetensors", "layer_sampler.safetensors"):
        for network in NETWORKS_APART:
            path = f"{network}/meta_net/{name}"
            assert (again / path).read_bytes() == (local / path).read_bytes()
    assert {path.name for path in (again / "model_a").iterdir()} == {"meta_net"}
    assert not (again / "meta_net").exists() and not (again / "model_b" / "meta_net" / "optimizer.pt").exists()


def test_plain_values_come_back_as_they_were():
    value = {
        "a": [1, (2.5, None), True, 10**30, float("inf"), "x"], 3: torch.arange(6.0).view(2, 3).t(), None: {},
        "b": OrderedDict(z=torch.tensor(1, dtype=torch.bfloat16), y=()), "c": np.arange(3, dtype=np.uint32), True: -0.0,
        "d": torch.zeros(0, 2, dtype=torch.bool),
    }  # fmt: skip
    tensors = {}
    tree = json.loads(json.dumps(to_json_tree(value, tensors, "file")))
    found = from_json_tree(tree, tensors.__getitem__)
    assert repr(found) == repr(value) and list(found) == list(value)
    assert found["b"]["z"].dtype == torch.bfloat16 and found["c"].dtype == np.uint32
    nan = from_json_tree(json.loads(json.dumps(to_json_tree(float("nan"), {}, "file"))), tensors.__getitem__)
    assert nan != nan
    for strange in ({1, 2}, object(), {(1, 2): 3}, np.array(["a"]), torch.nn.Linear(1, 1), b"x"):
        with pytest.raises(ValueError, match="it h"):
            to_json_tree({"a": [strange]}, {}, "file")
    deep = 1
    for _ in range(5000):
        deep = {"list": [deep]}
    refused("nested too deeply", from_json_tree, deep, tensors.__getitem__)


def edit(file, *path, to):
    """A change of one value in a file of JSON."""

    def change(folder):
        content = json.loads((folder / file).read_text())
        parent = content
        for key in path[:-1]:
            parent = parent[key]
        parent[path[-1]] = to
        (folder / file).write_text(json.dumps(content))

    return change


def place_of_numpy(folder):
    content = json.loads((folder / "state.json").read_text())
    random_states = dict(content["files"]["rng_state.pth"]["dict"])
    random_states["numpy"]["tuple"][2] = 10**6
    content["files"]["rng_state.pth"] = {"dict": [list(item) for item in random_states.items()]}
    (folder / "state.json").write_text(json.dumps(content))


def too_deep(folder):
    edit("state.json", "files", "optimizer.pt", to="HERE")(folder)
    text = (folder / "state.json").read_text()
    (folder / "state.json").write_text(text.replace('"HERE"', '{"list": [' * 10**4 + "]}" * 10**4))


HOSTILE = {
    "a file outside of the folder": (edit("state.json", "files", "../x.pt", to=1), "none that a push writes"),
    "a file of another kind": (edit("state.json", "files", "x.py", to=1), "none that a push writes"),
    "a list for files": (edit("state.json", "files", to=[]), "none that a push writes"),
    "an unknown kind": (edit("state.json", "files", "optimizer.pt", to={"eval": "1"}), "unknown kind 'eval'"),
    "a bare list": (edit("state.json", "files", "optimizer.pt", to=[1]), "a list where a value should be"),
    "a list for a key": (edit("state.json", "files", "optimizer.pt", to={"dict": [[[1], 2]]}), "unknown kind 'dict'"),
    "a tensor that is not there": (edit("state.json", "files", "optimizer.pt", to={"tensor": "x"}), "not there"),
    "a place beside numpy's state": (place_of_numpy, "random state of numpy does not fit"),
    "no random state": (edit("state.json", "files", "rng_state.pth", to={}), "rng_state.pth in state.json is none"),
    "random states that are none": (edit("state.json", "files", "rng_state.pth", to={"dict": []}), "does not fit"),
    "more processes": (edit("state.json", "files", "rng_state_7.pth", to=1), "saved by 2 processes"),
    "too deep": (too_deep, "nested too deeply"),
    "a step that is text": (edit("trainer_state.json", "global_step", to="../../x"), "has a str for global_step"),
    "a step below 0": (edit("trainer_state.json", "global_step", to=-1), "no whole number"),
    "an unknown key": (edit("trainer_state.json", "code", to=1), "has the unknown key 'code'"),
    "logs of numbers": (edit("trainer_state.json", "log_history", to=[1]), "logs that are none"),
    "callbacks of numbers": (edit("trainer_state.json", "stateful_callbacks", to={"A": 1}), "callbacks or logs"),
    "no JSON": (lambda folder: (folder / "trainer_state.json").write_text("{"), "can't be read as JSON"),
    "a pickle for tensors": (lambda folder: (folder / "state.safetensors").write_bytes(b"\x80\x04."), "as safetensors"),
    "a pickle for weights": (lambda folder: (folder / "model.safetensors").write_bytes(b"\x80\x04."), "as safetensors"),
    "no state": (lambda folder: (folder / "state.json").unlink(), "there is no file state.json"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_checkpoint_is_refused_in_one_sentence_and_leaves_nothing(tmp_path, checkpoint, kind):
    damage, words = HOSTILE[kind]
    folder = packed(tmp_path / "packed", checkpoint)
    damage(folder)
    refused(words, unpack, folder, tmp_path / "run", 1)
    left = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert not left and not (tmp_path / "x.pt").exists()


def test_no_damage_to_a_pushed_state_does_more_than_being_refused(tmp_path, checkpoint):
    folder = packed(tmp_path / "packed", checkpoint)
    files = {name: json.loads((folder / name).read_text()) for name in ("state.json", "trainer_state.json")}

    @fuzz(60)
    @given(st.sampled_from(sorted(files)).flatmap(lambda name: st.tuples(st.just(name), mutated(files[name]))))
    def check(change):
        name, tree = change
        for file, content in {**files, name: tree}.items():
            (folder / file).write_bytes(as_json(content))
        try:
            unpack(folder, tmp_path / "run", 1)
        except ValueError as error:
            assert "\n" not in str(error)

    check()
