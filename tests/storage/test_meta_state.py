"""The meta state of somebody else's checkpoint: refused in one sentence before training goes on."""

import copy
import pickle
import zipfile

import pytest
import torch
from hypothesis import given
from safetensors.torch import load_file, save_file

from famus_hf.storage import checkpoints
from famus_hf.storage.meta_state import read_meta_state
from famus_hf.storage.run_folder import META_STATE
from famus_hf.trainer.checkpointing import take_checked
from tests.helpers.hostile import Canary, damaged, fuzz, peak_growth, refused
from tests.helpers.pseudo_clean_runs import make_trainer as make_pseudo_clean_trainer
from tests.helpers.trainers import make_trainer

NAN = torch.tensor(float("nan"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Of a run with Adam, so that all kinds of optimizer state are there."""
    folder = tmp_path_factory.mktemp("run")
    make_trainer(folder, max_steps=2, save_strategy="steps", save_steps=2, meta_optim="adam").train()
    return folder / "checkpoint-2"


def resume(tmp_path, checkpoint):
    make_trainer(tmp_path, meta_optim="adam").train(resume_from_checkpoint=str(checkpoint))


def learner(state, key):
    return state["learner_optimizer"]["state"][0][key]


STATES = {
    "an unknown key": (lambda s: s.update(version=2), "has the unknown key 'version'"),
    "a key missing": (lambda s: s.pop("spent"), "lacks the key 'spent'"),
    "steps": (lambda s: s.update(steps=-1), "steps that are no whole number"),
    "steps as a float": (lambda s: s.update(steps=2.0), "steps that are no whole number"),
    "times of fewer layers": (lambda s: s["times_on"].pop(), "times_on that are no 17 whole numbers of at most 2"),
    "times above steps": (lambda s: s["times_on"].__setitem__(0, 3), "times_on that are no"),
    "a slope that is NaN": (lambda s: s.update(slope_size=NAN), "slope_size that is no number"),
    "a slope of another shape": (lambda s: s.update(slope_size=torch.ones(2)), "slope_size that is no number"),
    "an endless number": (lambda s: s.update(spent=10**400), "spent that is no number"),
    "times without seconds": (lambda s: s.update(times={"forward": 1}), "no measurements of the same parts"),
    "no optimizer": (lambda s: s.update(learner_optimizer=None), "learner_optimizer that belongs to another"),
    "a list for an optimizer": (lambda s: s.update(learner_optimizer=[]), "learner_optimizer that is none of torch"),
    "another shape": (
        lambda s: s["learner_optimizer"]["state"][0].update(exp_avg=torch.ones(3)),
        r"exp_avg that is no finite tensor of shape \(100, 1\)",
    ),
    "a shape of 10^15 on four bytes": (
        lambda s: s["learner_optimizer"]["state"][0].update(exp_avg=torch.ones(1).expand(10**15)),
        "exp_avg that is no finite tensor",
    ),
    "NaN": (lambda s: learner(s, "exp_avg").fill_(NAN), "exp_avg that is no finite tensor"),
    "a negative square": (lambda s: learner(s, "exp_avg_sq").fill_(-1), "a negative exp_avg_sq"),
    "a parameter too many": (
        lambda s: s["learner_optimizer"]["state"].update({9: s["learner_optimizer"]["state"][0]}),
        "state of a parameter that is not there",
    ),
    "ascent": (
        lambda s: s["learner_optimizer"]["param_groups"][0].update(maximize=True),
        "learner_optimizer that has other settings",
    ),
    "a learning rate that is NaN": (
        lambda s: s["learner_optimizer"]["param_groups"][0].update(lr=float("nan")),
        "learner_optimizer that has other settings",
    ),
    "a group too many": (lambda s: s["sampler_optimizer"]["param_groups"].append({}), "other settings"),
    "costs of other layers": (
        lambda s: s.update(costs={"alone": [1.0], "beside": {}, "ways": [], "always": False}),
        "costs that are not those of 17 layers",
    ),
}


@pytest.mark.parametrize("kind", STATES)
def test_a_meta_state_that_no_run_writes_is_refused_and_changes_nothing(tmp_path, checkpoint, kind):
    damage, words = STATES[kind]
    trainer = make_trainer(tmp_path, meta_optim="adam")
    state = torch.load(checkpoint / META_STATE, weights_only=True)
    take_checked(trainer.meta, copy.deepcopy(state))
    before = str(trainer.meta.state_dict())
    damage(state)
    refused(words, take_checked, trainer.meta, state)
    assert str(trainer.meta.state_dict()) == before


def test_a_resume_refuses_a_damaged_checkpoint_in_one_sentence(tmp_path, checkpoint):
    """Every file in turn, with a record of sizes that agrees; transformers reads some of them."""
    weights = load_file(checkpoint / "model.safetensors")
    name = "classifier.bias"
    save_file({**weights, name: weights[name] * NAN}, tmp_path / "nan.safetensors", metadata={"format": "pt"})
    save_file({n: t for n, t in weights.items() if n != name}, tmp_path / "less.safetensors", metadata={"format": "pt"})
    pickled = pickle.dumps(Canary(tmp_path / "ran"))
    for file, content, words in (
        (META_STATE, pickled, "meta_state.pt of checkpoint .* does not fit: the file can't be read"),
        ("optimizer.pt", pickled, r"optimizer\.pt or scheduler\.pt of checkpoint .* does not fit"),
        ("scheduler.pt", b"", r"optimizer\.pt or scheduler\.pt of checkpoint .* does not fit"),
        ("model.safetensors", (tmp_path / "nan.safetensors").read_bytes(), "not finite in"),
        ("model.safetensors", (tmp_path / "less.safetensors").read_bytes(), "its weights lack"),
        ("model.safetensors", pickled, "can't be loaded"),
        ("meta_net/model.safetensors", pickled, "does not fit"),
        ("meta_net/config.json", b"[" * 10**5, "does not fit"),
        ("rng_state.pth", pickled, "the random state of checkpoint .* does not fit"),
        ("trainer_state.json", b'{"epoch": 1', r"trainer_state\.json of checkpoint .* does not fit"),
        ("trainer_state.json", b'{"global_step": 1}', r"trainer_state\.json of checkpoint .* does not fit"),
        ("trained_on.json", b"{", r"can't be compared with this run: trained_on\.json can't be read as JSON"),
        ("trained_on.json", b"{}", r"can't be compared with this run: trained_on\.json lacks the key 'data'"),
        ("trained_on.json", b'{"data": {"train": {}}, "settings": {}}', "has data that are no fingerprints"),
    ):
        sound = (checkpoint / file).read_bytes()
        (checkpoint / file).write_bytes(content)
        checkpoints.write_manifest(checkpoint, "run")
        refused(words, resume, tmp_path, checkpoint)
        (checkpoint / file).write_bytes(sound)
    for file in ("optimizer.pt", "scheduler.pt"):
        (checkpoint / file).rename(tmp_path / file)
        checkpoints.write_manifest(checkpoint, "run")
        refused(f"has no {file}: it was saved without optimizers", resume, tmp_path, checkpoint)
        (tmp_path / file).rename(checkpoint / file)
    checkpoints.write_manifest(checkpoint, "run")
    assert not (tmp_path / "ran").exists()
    resume(tmp_path, checkpoint)


class Flood:
    """What torch.load(weights_only=True) allows: a few bytes that unpickle to a gigabyte."""

    def __reduce__(self):
        return bytearray, (2**30,)


def test_a_meta_state_runs_nothing_and_takes_no_memory(tmp_path):
    path = tmp_path / META_STATE
    torch.save({"steps": Flood()}, path)
    assert (
        peak_growth(lambda: refused("names 'builtins bytearray'|names '__builtin__ bytearray'", read_meta_state, path))
        < 64
    )
    torch.save({"steps": Canary(tmp_path / "ran")}, path)
    refused("neither a tensor nor a plain value", read_meta_state, path)
    torch.save([1], path)
    refused("holds a list", read_meta_state, path)
    torch.save({"zeros": torch.zeros(2**26)}, path)
    with zipfile.ZipFile(path) as sound, zipfile.ZipFile(tmp_path / "small.pt", "w", zipfile.ZIP_DEFLATED) as small:
        for file in sound.infolist():
            small.writestr(file.filename, sound.read(file))
    assert (tmp_path / "small.pt").stat().st_size < 2**20
    assert peak_growth(lambda: refused("is compressed", read_meta_state, tmp_path / "small.pt")) < 64
    assert not (tmp_path / "ran").exists()


def test_no_damage_to_a_meta_state_does_more_than_being_refused(tmp_path, checkpoint):
    trainer, path = make_trainer(tmp_path, meta_optim="adam"), tmp_path / META_STATE
    content = (checkpoint / META_STATE).read_bytes()

    @fuzz(100)
    @given(damaged(content))
    def check(hostile):
        path.write_bytes(hostile)
        try:
            take_checked(trainer.meta, read_meta_state(path))
        except ValueError as error:
            assert "\n" not in str(error)

    check()


@pytest.mark.parametrize(
    "change",
    [
        {"rows": torch.tensor([0, 10**6])}, {"rows": torch.tensor([-1, 2])}, {"rows": torch.tensor([1, 1])},
        {"rows": torch.tensor([1.0])}, {"rows": [1, 2]}, {"rows": torch.zeros(0).long()}, {"epoch": 0.5},
        {"purity": float("nan")}, {"more": 1},
    ],
    ids=str,
)  # fmt: skip
def test_a_pseudo_clean_set_of_other_rows_is_refused(tmp_path, change):
    chosen = make_pseudo_clean_trainer(tmp_path)[0].meta_dataset
    state = {**chosen.state_dict(), "epoch": 1}
    chosen.load_state_dict(state)
    refused("the pseudo-clean set has", chosen.load_state_dict, {**state, **change})
