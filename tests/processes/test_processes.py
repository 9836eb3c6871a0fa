"""Two processes of half the batch learn what one process of the whole batch learns, and hold the same state."""

from functools import partial

import pytest

from tests.helpers import bilateral_runs, pair_runs, two_network_runs
from tests.helpers.equal_runs import CASES, OF_SHARES, OTHERS, RESUMED, diagnosed, reported, run, run_other, work
from tests.helpers.spawned import run_in_two_processes


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What each of two processes found in all cases."""
    folder = tmp_path_factory.mktemp("two")
    return run_in_two_processes(partial(work, folder=folder), folder, timeout=300)


def largest_difference(found, expected):
    assert found.keys() == expected.keys()
    return max((found[name].double() - expected[name].double()).abs().max().item() for name in expected)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_learn_what_one_learns(both, tmp_path, name):
    expected = run(tmp_path, name, CASES[name], 1)
    assert largest_difference(both[0]["runs"][name], expected) < (1e-4 if name == "finite" else 1e-9)
    assert expected.get("theta.is_counted", 1) == expected.get("theta.has_turned", 1) == 1


@pytest.mark.parametrize("name", OTHERS)
def test_two_processes_learn_of_texts_and_recordings_what_one_learns(both, tmp_path, name):
    expected = run_other(tmp_path, name, 1)
    for found in both:
        assert largest_difference(found["others"][name], expected) < 1e-9


@pytest.mark.parametrize("name", [*CASES, *OF_SHARES])
def test_both_processes_hold_the_same_state(both, name):
    first, second = (found["runs"][name] for found in both)
    assert largest_difference(second, first) == 0
    assert all(tensor.isfinite().all() for tensor in first.values())


@pytest.mark.parametrize("name", RESUMED)
def test_two_processes_resume_bit_for_bit(both, name):
    for found in both:
        whole, again = found["resumed"][name]
        assert largest_difference(again, whole) == 0


def test_one_process_writes_each_file(both):
    files = both[0]["files"]
    assert {"model.safetensors", "meta_state.pt", "rng_state_0.pth", "rng_state_1.pth"} <= set(files)
    assert [name for name in files if "meta_state" in name] == ["meta_state.pt"]


def test_two_processes_report_what_one_reports_of_an_odd_number_of_examples(both, tmp_path):
    expected = reported(tmp_path, 1)
    assert len(expected["index"]) == 41 and expected["weight"].isfinite().all()
    for found in both:
        assert largest_difference(found["report"], expected) < 1e-6


def test_two_processes_record_the_diagnostics_of_one(both, tmp_path):
    expected = diagnosed(tmp_path, 1)
    assert largest_difference(both[0]["diagnosed"], expected) < 1e-5  # weights are of losses in float32
    assert expected["meta_gradient.norm"].min() > 0 and both[1]["diagnosed"] == {}


@pytest.mark.parametrize("name", two_network_runs.RUNS)
def test_two_networks_learn_in_two_processes_what_they_learn_in_one_crops_and_partners_included(both, tmp_path, name):
    expected = two_network_runs.run(tmp_path, name, 1)
    two_network_runs.assert_equal(both[0]["networks"][name], expected, 1e-9)
    two_network_runs.assert_equal(both[1]["networks"][name], both[0]["networks"][name])


@pytest.mark.parametrize("name", pair_runs.RUNS)
def test_a_pair_learns_and_estimates_in_two_processes_what_it_does_in_one(both, tmp_path, name):
    expected = pair_runs.run(tmp_path, name, 1)
    assert largest_difference(both[0]["pairs"][name], expected) < 1e-9
    assert largest_difference(both[1]["pairs"][name], both[0]["pairs"][name]) == 0


@pytest.mark.parametrize("name", bilateral_runs.RUNS)
def test_two_branches_learn_in_two_processes_what_they_learn_in_one_partners_included(both, tmp_path, name):
    expected = bilateral_runs.run(tmp_path, name, 1)
    assert largest_difference(both[0]["branches"][name], expected) < 1e-9
    assert largest_difference(both[1]["branches"][name], both[0]["branches"][name]) == 0
