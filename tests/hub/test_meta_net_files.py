"""Meta-nets of somebody else, read by storage/untrusted.py: refused in one sentence, nothing run, no memory taken."""

import json
import os
import pickle
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from famus_hf import (
    MLC,
    ClassBalancedResidual,
    ForwardCorrection,
    LayerSampler,
    LearnedSampler,
    MetaLearner,
    MWNet,
    SoftTargets,
    register_meta_learner,
)
from famus_hf.core.layers import Layer
from famus_hf.core.meta_learners.registry import META_LEARNERS
from famus_hf.hub.meta_net_files import load_into, load_meta_net, save_meta_net
from tests.helpers.hostile import (
    MEBIBYTE,
    Canary,
    as_json,
    damaged,
    fuzz,
    header_of,
    is_a_sentence,
    mutated,
    peak_growth,
    refused,
    with_header,
)

LAYERS = [Layer("stem", ("stem.weight",), 5), Layer("a.b", ("a.b.weight", "a.b.bias"), 8, 0.5, 1), Layer("", ("w",), 5)]


def write_run(folder, meta_learner=None):
    """A `meta_net/` as a run leaves it. Returns the folder `meta_net/`."""
    sampler = LearnedSampler(hidden_size=4)
    sampler.build(LAYERS)
    save_meta_net(folder, meta_learner or MWNet(hidden_size=6), sampler)
    return folder / "meta_net"


def change_config(folder, *path, to=None):
    """Sets one value of config.json, or removes it."""
    config = json.loads((folder / "config.json").read_text())
    place = config
    for key in path[:-1]:
        place = place[key]
    if to is None:
        del place[path[-1]]
    else:
        place[path[-1]] = to
    (folder / "config.json").write_text(json.dumps(config))


def change_tensors(folder, change, name="model.safetensors"):
    tensors = load_file(folder / name)
    change(tensors)
    save_file(tensors, folder / name)


def load_parts(folder):
    return MetaLearner.from_pretrained(folder), LayerSampler.from_pretrained(folder)


LAYER = ("layer_sampler", "layers", 1)
ABSURD = [
    (("meta_learner", "hidden_size"), -3, "hidden_size=-3 must be a whole number of at least 1"),
    (("meta_learner", "hidden_size"), 10**12, "more memory than the size of its tensor files warrants"),
    (("meta_learner", "hidden_size"), True, "hidden_size=True must be"),
    (("meta_learner", "hidden_size"), 6.0, r"hidden_size=6\.0 must be"),
    (("meta_learner", "hidden_size"), 7, r"holds hidden\.weight of shape \(6, 1\), not \(7, 1\)"),
    (("meta_learner", "hidden_size"), "6", "hidden_size='6' must be"),
    (("meta_learner", "initial_bias"), float("nan"), "initial_bias=nan must be a finite number"),
    (("meta_learner", "initial_scale"), float("inf"), "initial_scale=inf must be"),
    (("meta_learner", "initial_scale"), 10**400, "initial_scale"),
    (("meta_learner", "detach_losses"), 1, "detach_losses=1 must be True or False"),
    (("meta_learner", "weight_normalization"), {"a": ["b"] * 9999}, "weight_normalization"),
    (("meta_learner", "dropout"), 0.5, "has the key 'dropout', which this version does not know: update famus_hf"),
    (("version",), 2, "has the key 'version', which this version does not know: update famus_hf"),
    (("meta_learner", "type"), ["mw-net"], "is of the type"),
    (("meta_learner", "type"), "os.system", "is of the type 'os.system'"),
    (("meta_learner", "type"), None, "is of the type 'None'"),
    (("meta_learner",), [], "its meta_learner is a list"),
    (("meta_learner",), None, "lacks the key 'meta_learner'"),
    (("layer_sampler", "hidden_size"), 10**12, "more memory than"),
    (("layer_sampler", "temperature"), 0, "must be greater than 0"),
    (("layer_sampler", "layers"), {"name": "a"}, "has no list of layers"),
    (("layer_sampler", "layers"), None, "has no list of layers"),
    (("layer_sampler", "layers"), [], "has a tensor too many"),
    (LAYER, "a.b", "layer 1 of its layer_sampler is a str"),
    ((*LAYER, "name"), "stem", "has a name that is not that of the module"),
    ((*LAYER, "name"), ["a.b"], "has a name"),
    ((*LAYER, "parameters"), [], "has a name"),
    ((*LAYER, "parameters"), ["a.b.weight", "a.b.weight"], "names a parameter twice"),
    ((*LAYER, "parameters"), None, "lacks the key 'parameters'"),
    ((*LAYER, "width"), -1, "has a width"),
    ((*LAYER, "width"), 0, "width 0"),
    ((*LAYER, "width"), 9, "lacks the tensor|has a tensor too many"),
    ((*LAYER, "width"), 8.0, "has a width"),
    ((*LAYER, "share"), 1.5, "has a share outside of"),
    ((*LAYER, "share"), float("nan"), "has a share outside of"),
    ((*LAYER, "block"), 0, "has a block"),
    ((*LAYER, "frozen"), True, "has the key 'frozen'"),
    (
        ("layer_sampler", "layers", 2),
        {"name": "stem", "parameters": ["stem.weight"], "width": 5},
        "names a layer twice",
    ),
]


@pytest.mark.parametrize("path, value, words", ABSURD, ids=lambda value: str(value)[:40])
def test_absurd_settings_of_a_meta_net_are_refused_in_one_sentence(tmp_path, path, value, words):
    change_config(write_run(tmp_path), *path, to=value)
    refused(words, load_meta_net, tmp_path)
    refused(words, load_parts, tmp_path)


@pytest.mark.parametrize(
    "learner, name, value, words",
    [
        (SoftTargets("loss", [0, 1]), "class_groups", [0, 10**10], "more memory than"),
        (SoftTargets("loss", [0, 1]), "class_groups", [0, -1], "class_groups=-1 must be"),
        (SoftTargets("loss", [0, 1]), "features", [], "features=.* is unknown: choose one of loss, beliefs"),
        (ClassBalancedResidual([4, 2]), "class_counts", [4, "2"], "class_counts='2' must be a whole number"),
        (ClassBalancedResidual([4, 2]), "class_counts", {}, "all zero"),
        (ForwardCorrection(3), "source", "Hub", "source='Hub' is unknown"),
    ],
)
def test_absurd_settings_of_further_meta_learners_are_refused(tmp_path, learner, name, value, words):
    change_config(write_run(tmp_path, learner), "meta_learner", name, to=value)
    refused(words, load_meta_net, tmp_path)


def test_one_setting_that_is_not_absurd_still_loads(tmp_path):
    change_config(write_run(tmp_path), "layer_sampler", "temperature", to=5)
    assert load_meta_net(tmp_path)[1].temperature == 5


DAMAGE = {
    "NaN": (lambda tensors: tensors["output.bias"].fill_(float("nan")), "not finite in output.bias"),
    "infinity": (lambda tensors: tensors["hidden.weight"].fill_(float("inf")), "not finite in hidden.weight"),
    "out of float32": (
        lambda tensors: tensors.update({"output.bias": torch.full((1,), 1e300, dtype=torch.float64)}),
        "not finite",
    ),
    "a tensor too many": (lambda tensors: tensors.update(more=torch.ones(2)), "has a tensor too many: 'more'"),
    "a tensor missing": (lambda tensors: tensors.pop("output.bias"), "lacks the tensor: 'output.bias'"),
    "another shape": (lambda tensors: tensors.update({"output.bias": torch.ones(2)}), r"of shape \(2,\), not \(1,\)"),
    "whole numbers": (lambda tensors: tensors.update({"output.bias": torch.ones(1).long()}), "as torch.int64"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_tensors_that_do_not_fit_or_are_not_finite_are_refused(tmp_path, damage):
    change, words = DAMAGE[damage]
    folder = write_run(tmp_path)
    change_tensors(folder, change)
    refused(words, load_meta_net, tmp_path)
    refused(words, load_parts, tmp_path)
    meta_learner, sampler = MWNet(hidden_size=6), LearnedSampler(hidden_size=4)
    sampler.build(LAYERS)
    before = {name: tensor.clone() for name, tensor in meta_learner.state_dict().items()}
    refused("does not fit", load_into, tmp_path, meta_learner, sampler)
    assert all(torch.equal(tensor, before[name]) for name, tensor in meta_learner.state_dict().items())


FILES = {
    "JSON without end": (lambda f: (f / "config.json").write_text('{"meta_learner": '), "can't be read as JSON"),
    "no UTF-8": (lambda f: (f / "config.json").write_bytes(b'{"\xff": 1}'), "can't be read as JSON"),
    "nested deeply": (lambda f: (f / "config.json").write_text("[" * 10**6), "nested too deeply"),
    "a number of 5000 digits": (lambda f: (f / "config.json").write_text('{"a": ' + "9" * 5000 + "}"), "as JSON"),
    "a key twice": (lambda f: (f / "config.json").write_text('{"a": 1, "a": 2}'), "'a' is there twice"),
    "huge JSON": (
        lambda f: (f / "config.json").write_text(" " * 2**24 + (f / "config.json").read_text()),
        "and at most 16777216 are read",
    ),
    "truncated tensors": (lambda f: os.truncate(f / "model.safetensors", 90), "can't be read as safetensors"),
    "tensors without end": (lambda f: os.truncate(f / "model.safetensors", 10**9), "can't be read as safetensors"),
    "a header of 10^18": (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 7 + b"\x0f{}"), "as safetensors"),
    "pickle by its name": (lambda f: (f / "optimizer.pt").write_bytes(pickle.dumps(1)), "holds 'optimizer.pt'"),
    "a pipe": (lambda f: (f / "config.json").unlink() or os.mkfifo(f / "config.json"), "there is no file config.json"),
    "a device": (
        lambda f: (f / "config.json").unlink() or (f / "config.json").symlink_to("/dev/zero"),
        "there is no file config.json",
    ),
    "tensors nobody asked for": (
        lambda f: change_config(f, "layer_sampler"),
        "holds layer_sampler.safetensors and no settings",
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_files_that_no_run_writes_are_refused_in_one_sentence(tmp_path, kind):
    damage, words = FILES[kind]
    damage(write_run(tmp_path))
    refused(words, load_meta_net, tmp_path)
    refused(words, load_parts, tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", None])
def test_links_that_leave_the_folder_are_refused(tmp_path, name):
    inside, outside = tmp_path / "run" / "meta_net", write_run(tmp_path / "elsewhere")
    inside.parent.mkdir()
    if name is None:
        inside.symlink_to(outside)
    else:
        write_run(tmp_path / "run")
        (inside / name).unlink()
        (inside / name).symlink_to(outside / name)
    refused("is a link that leaves the folder", load_meta_net, tmp_path / "run")
    refused("is a link that leaves the folder", load_parts, tmp_path / "run")


def test_links_into_the_blobs_of_a_hub_cache_are_followed(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    folder = write_run(snapshot)
    blobs.mkdir()
    for path in list(folder.iterdir()):
        shutil.move(path, blobs / path.name)
        path.symlink_to(os.path.relpath(blobs / path.name, folder))
    assert isinstance(load_meta_net(snapshot)[0], MWNet) and isinstance(load_parts(snapshot)[0], MWNet)


def test_a_pickle_is_never_run(tmp_path):
    folder = write_run(tmp_path)
    for name in ("model.safetensors", "config.json"):
        (folder / name).write_bytes(pickle.dumps(Canary(tmp_path / "ran")))
        refused("can't be read as", load_meta_net, tmp_path)
        refused("can't be read as", load_parts, tmp_path)
    assert not (tmp_path / "ran").exists()
    pickle.loads((folder / "config.json").read_bytes())
    assert (tmp_path / "ran").exists(), "the canary must sing where a pickle is run"


@pytest.mark.parametrize(
    "path", [("meta_learner", "hidden_size"), ("layer_sampler", "hidden_size"), ("meta_learner", "num_labels")], ids=str
)
def test_a_claim_takes_no_memory(tmp_path, path):
    folder = write_run(tmp_path, MLC(3) if path[1] == "num_labels" else None)
    change_config(folder, *path, to=15_000 if path[1] == "num_labels" else 40_000_000)  # 0.5 GB and more
    assert peak_growth(lambda: refused("more memory than", load_meta_net, tmp_path)) < 64


def test_many_layers_of_many_widths_take_no_memory(tmp_path):
    folder = write_run(tmp_path)
    entries = [{"name": f"l{n}", "parameters": [f"l{n}.w"], "width": n % 4096 + 1} for n in range(20_000)]
    change_config(folder, "layer_sampler", "layers", to=entries)
    assert peak_growth(lambda: refused("more memory than", load_meta_net, tmp_path)) < 100


class Peculiar(MetaLearner):
    """All that a meta-learner of a user's own may do beside parameters."""

    def __init__(self, size, grid=(0.0, 1.0)):
        super().__init__()
        self.size, self.grid = size, tuple(grid)
        self.points = torch.linspace(*grid, 5).tolist()  # looks at the values of a tensor
        self.weight = torch.nn.Parameter(torch.rand(size, generator=torch.Generator().manual_seed(3)).double())
        self.register_buffer("mask", torch.full((size, size), float("-inf")).triu(1))
        self.register_buffer("table", torch.arange(size).float(), persistent=False)
        self.lazy = torch.nn.LazyLinear(2)

    def config(self):
        return {"size": self.size, "grid": self.grid}


@pytest.fixture
def registered():
    register_meta_learner(Peculiar)
    yield
    META_LEARNERS.pop("Peculiar")


def test_whatever_a_registered_meta_learner_is_made_of_still_loads(tmp_path, registered):
    made = Peculiar(4)
    made.lazy(torch.ones(1, 3))
    folder = write_run(tmp_path, made)
    loaded, _ = load_meta_net(tmp_path)
    assert loaded.state_dict().keys() == made.state_dict().keys()
    assert all(torch.equal(tensor, made.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    assert torch.equal(loaded.table, made.table) and loaded.points == made.points
    load_into(tmp_path, made, load_meta_net(tmp_path)[1])
    change_config(folder, "meta_learner", "size", to=30_000)
    assert peak_growth(lambda: refused("more memory than", load_meta_net, tmp_path)) < 64


COUNTS = [pytest.param(300, id="300"), pytest.param(5000, id="5000", marks=pytest.mark.slow)]


def loads_or_refuses(folder):
    """Either whole and finite, or ValueError with one sentence."""
    try:
        parts = load_meta_net(folder)
    except ValueError as error:
        assert is_a_sentence(str(error)), str(error)
    else:
        for part in parts:
            assert part is None or all(tensor.isfinite().all() for tensor in part.state_dict().values())


@pytest.mark.parametrize("count", COUNTS)
def test_no_mutation_of_a_config_does_more_than_being_refused(tmp_path, count):
    path = write_run(tmp_path) / "config.json"
    config, text = json.loads(path.read_text()), path.read_bytes()

    @fuzz(count)
    @given(st.one_of(mutated(config).map(as_json), damaged(text)))
    def check(content):
        path.write_bytes(content)
        loads_or_refuses(tmp_path)

    assert peak_growth(check) < 300


@pytest.mark.parametrize("count", COUNTS)
def test_no_mutation_of_a_safetensors_header_does_more_than_being_refused(tmp_path, count):
    folder = write_run(tmp_path)
    contents = {path: path.read_bytes() for path in folder.glob("*.safetensors")}
    assert sum(map(len, contents.values())) < MEBIBYTE

    @st.composite
    def hostile(draw):
        path = draw(st.sampled_from(sorted(contents)))
        header, tensors = header_of(contents[path])
        return path, draw(st.one_of(mutated(header).map(lambda h: with_header(h, tensors)), damaged(contents[path])))

    @fuzz(count)
    @given(hostile())
    def check(case):
        path, content = case
        path.write_bytes(content)
        loads_or_refuses(tmp_path)
        path.write_bytes(contents[path])

    assert peak_growth(check) < 300
