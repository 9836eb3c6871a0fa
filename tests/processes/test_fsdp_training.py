"""FaMUSTrainer under FSDP2 in two CPU processes: it learns what one process learns, resumes, and says what it can't."""

from functools import partial

import pytest
import torch

from tests.helpers.fsdp_runs import BLOCKS, CASES, REFUSED, run, work
from tests.helpers.spawned import run_in_two_processes

WORDS = {
    "version 1": "FSDP version 1 flattens parameters",
    "sharded files": "FSDP with SHARDED_STATE_DICT would leave no model.safetensors",
    "offload": "CPU offload does not go with",
    "checkpointing": "activation checkpointing does not go with",
    "forward": "derivative='forward' does not go with",
    "reverse": "derivative='reverse' does not go with",
    "reused": "reuse_virtual_gradient does not go with",
    "scaled": "scale_example_gradients does not go with",
    "scope": "virtual_scope='candidates' does not go with",
    "budget": "meta_budget does not go with",
    "bf16": "mixed precision (bf16) does not go with",
    "half": "half precision does not go with",
    "compile": "torch.compile does not go with",
    "transformers' checkpointing": "activation checkpointing does not go with",
    "two ways of sharding": "a parallelism_config does not go with",
    "LoRA": "PEFT does not go with",
    "beliefs of mixed images": "mixup_alpha and PosteriorTargets under FSDP would need",
    "no embeddings": "accelerate 1.15 can't shard a WideResNetForImageClassification",
}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fsdp")
    return run_in_two_processes(partial(work, folder=folder), folder)


def part(state, name):
    return torch.cat([tensor.double().flatten() for key, tensor in state.items() if key.startswith(f"{name}.")])


def different(found, expected):
    assert found.keys() == expected.keys()
    return [name for name in expected if not torch.equal(found[name], expected[name])]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_with_shards_learn_what_one_learns_on_the_whole_batch(both, tmp_path, name):
    expected = run(tmp_path, name, CASES[name], 1)
    found, other = (outcome["cases"][name] for outcome in both)
    assert different(other["end"], found["end"]) == [], "both processes hold the same"
    assert different(found["counts"], expected["counts"]) == []
    assert expected["counts"]["times_on"].sum() > 0
    assert (expected["counts"]["left_out"] > 0) == name.startswith("bad")
    limits = {"w": 1e-4, "theta": 1e-2, "eta": 1e-3} if "float32" in name else {"w": 1e-6, "theta": 1e-6, "eta": 1e-6}
    for what in {key.partition(".")[0] for key in expected["end"]}:
        one, two = part(expected["end"], what), part(found["end"], what)
        moved = (one - part(expected["start"], what)).norm()
        assert moved > 0 and (two - one).norm() < limits[what] * moved


@pytest.mark.parametrize("kind", ["vit", "batch norm", "called group norm"])
def test_a_sharded_run_resumes_bit_for_bit_and_saves_what_loads_whole(both, kind):
    first, second = (outcome["resumed"][kind] for outcome in both)
    for outcome in (first, second):
        assert different(outcome["again"], outcome["whole"]) == []
        assert torch.equal(outcome["accuracy"], first["accuracy"])
    if kind in BLOCKS:
        assert different(first["loaded"], first["whole"]) == []
        blocks = {"vit": "vit.layers.1", "batch norm": "blocks.2"}[kind]
        assert {"", blocks} < set(first["sharded"])
    of_each_process = ["rng_state_0.pth", "rng_state_1.pth"]
    assert [name for name in first["files"] if "_1." in name or "_0." in name] == of_each_process
    shared = {"model.safetensors", "optimizer.bin", "meta_state.pt", "meta_net", "checkpoint_files.json"}
    assert shared <= set(first["files"]) and not [name for name in first["files"] if "fsdp_" in name]


def test_a_sharded_network_trains_on_after_an_evaluation(both):
    """Which leaves parameters gathered, under which accelerate doesn't find them again."""
    first, second = (outcome["resumed"]["batch norm"] for outcome in both)
    weights = [name for name in first["again"] if name.startswith("w.") and name.endswith("weight")]
    assert set(weights) <= set(different(first["twice"], first["again"]))
    assert not set(weights) & set(different(second["twice"], first["twice"]))


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_go_with_fsdp_is_refused_in_one_sentence(both, name):
    for outcome in both:
        assert outcome["refused"][name].startswith(WORDS[name])
        assert outcome["refused"][name].count(". ") == 0
