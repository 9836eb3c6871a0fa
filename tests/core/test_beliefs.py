"""Running predictions: averages by hand, what is kept of them, and processes that share the examples."""

from types import SimpleNamespace

import torch

from famus_hf.core.beliefs import DECAY, RunningBeliefs


def sure(labels, how_sure, count=3):
    """Predictions of these classes, as sure as that."""
    rest = (1 - how_sure) / (count - 1)
    return torch.full((len(labels), count), rest).scatter(1, torch.tensor(labels)[:, None], how_sure)


def test_running_predictions_are_averages_with_decaying_weights():
    beliefs, rng = RunningBeliefs(3, 2, 3), torch.Generator().manual_seed(0)
    visits = {0: [], 1: [], 2: []}
    for rows, right in (([0, 1], [0, 0, 1]), ([1], [0, 1, 0]), ([0, 1], [0, 0, 0])):
        predictions = torch.rand(len(rows), 2, generator=rng).softmax(1)
        losses = torch.tensor([10.0 * len(visits[row]) + row for row in rows])
        beliefs.update(torch.tensor(rows), predictions, torch.tensor([row % 2 for row in rows]), losses)
        for row, prediction in zip(rows, predictions, strict=True):
            visits[row].append(prediction)
        beliefs.observe(sure(right, 0.9999, 2), torch.tensor([0, 0, 0]))
    assert beliefs.honest.epoch == 3 and beliefs.visits.tolist() == [2, 3, 0] and beliefs.labels.tolist() == [0, 1, -1]
    assert beliefs.losses.tolist() == [10.0, 21.0, 0.0], "the last ones, not their mean"
    for row, own in visits.items():
        weights = [DECAY ** (len(own) - 1 - place) for place in range(len(own))]
        mean = sum(w * p for w, p in zip(weights, own, strict=True)) / sum(weights) if own else torch.zeros(2)
        torch.testing.assert_close(beliefs.honest.probabilities[row], mean)


def test_without_decay_the_last_prediction_alone_is_believed():
    beliefs = RunningBeliefs(3, 2, 1, decay=0.0)
    for how_sure in (0.9, 0.6):
        beliefs.update(torch.tensor([0, 1]), sure([0, 1], how_sure, 2), torch.tensor([0, 1]), torch.zeros(2))
        beliefs.observe(sure([0], how_sure, 2), torch.tensor([0]))
    torch.testing.assert_close(beliefs.of(slice(None)), torch.tensor([[0.6, 0.4], [0.4, 0.6], [0.0, 0.0]]))
    torch.testing.assert_close(beliefs.trusted_sums, torch.tensor([[0.6, 0.4]]))


def test_beliefs_are_kept_of_the_last_epoch_before_labels_were_learned_by_heart():
    classes = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    beliefs, trusted = RunningBeliefs(4, 3, 10), torch.tensor(classes)

    def epoch(of_training, of_trusted, mistakes):
        predicted = [(k + 1) % 3 if place < mistakes else k for place, k in enumerate(classes)]
        beliefs.update(torch.arange(4), sure([0, 0, 1, 2], of_training), torch.tensor([0, 1, 1, 2]), torch.zeros(4))
        beliefs.observe(sure(predicted, of_trusted), trusted)
        return None if beliefs.honest is None else beliefs.honest.epoch

    assert epoch(0.4, 0.6, mistakes=3) is None, "it is wrong on three of ten"
    assert epoch(0.6, 0.9, mistakes=2) == 2 and epoch(0.8, 0.95, mistakes=1) == 3
    kept = beliefs.honest.probabilities.clone()
    assert epoch(0.8, 0.99, mistakes=2) == 3, "it is right about fewer of the trusted ones"
    assert epoch(0.999, 0.8, mistakes=0) == 3, "it is surer of the training examples"
    assert torch.equal(beliefs.honest.probabilities, kept)


def test_trusted_examples_count_in_the_shares_of_the_training_labels():
    """It is sure of class 0 alone, which nearly all training examples have: that is no learning by heart."""
    beliefs = RunningBeliefs(10, 2, 2)
    predictions = torch.cat([sure([0] * 9, 0.9, 2), sure([1], 0.6, 2)])
    beliefs.update(torch.arange(10), predictions, torch.tensor([0] * 9 + [1]), torch.zeros(10))
    beliefs.observe(torch.cat([sure([0], 0.92, 2), sure([1], 0.62, 2)]), torch.tensor([0, 1]))
    assert beliefs.honest is not None


def test_weights_of_trusted_examples_whose_sum_is_rounded_up_are_borne():
    beliefs = RunningBeliefs(1, 2, 3)
    beliefs._weights_of_trusted = lambda labels: torch.full((3,), 0.33333337)
    beliefs.update(torch.tensor([0]), sure([0], 0.8, 2), torch.tensor([0]), torch.zeros(1))
    beliefs.observe(sure([0, 0, 0], 0.9, 2), torch.tensor([0, 0, 0]))
    assert beliefs.best == 1 and beliefs.honest.epoch == 1


def test_predictions_that_are_not_finite_change_nothing():
    beliefs = RunningBeliefs(2, 2, 1)
    predictions, losses = torch.tensor([[0.9, 0.1], [torch.nan, 0.5]]), torch.tensor([0.25, torch.nan])
    beliefs.update(torch.tensor([0, 1]), predictions, torch.tensor([0, 1]), losses)
    assert beliefs.visits.tolist() == [1, 0] and beliefs.sums.isfinite().all()
    assert beliefs.losses.tolist() == [0.25, 0.0]


def test_a_state_comes_back_whole():
    beliefs = RunningBeliefs(4, 3, 3, num_trained=2)
    for how_sure in (0.6, 0.999):
        beliefs.update(torch.arange(3), sure([0, 1, 2], how_sure), torch.tensor([0, 1, 2]), torch.full((3,), how_sure))
        beliefs.observe(sure([0, 1, 2], 0.8), torch.tensor([0, 1, 2]))
    beliefs.update(torch.tensor([0, 1, 5]), sure([0, 1, 2], 0.7), torch.tensor([0, 1, 2]), torch.tensor([0.5, 1, 2]))
    state = {name: value.clone() for name, value in beliefs.state_dict().items()}
    assert state["trained_visits"].tolist() == [0, 1] and state["visits"].tolist() == [3, 3, 2, 0]
    other = RunningBeliefs(4, 3, 3, num_trained=2)
    other.load_state_dict(state)
    assert other.is_pending and other.honest.epoch == 1
    assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())


def test_processes_learn_what_came_by_in_each_other():
    parts = [RunningBeliefs(4, 3, 1, num_trained=2), RunningBeliefs(4, 3, 1, num_trained=2)]
    sent = [[], []]  # of the training set, of the trusted examples that are trained on
    for rank, beliefs in enumerate(parts):
        rows, labels = torch.tensor([rank, rank + 2, rank + 4]), torch.tensor([rank, 2, 1])
        beliefs.update(rows, sure([rank, 2, rank], 0.8), labels, torch.tensor([0.5, 1.5, 3]) + rank)
        calls = iter(sent)
        beliefs.gather(SimpleNamespace(count=2, objects=lambda value, calls=calls: next(calls).append(value) or []))
    for beliefs in parts:
        beliefs._own.zero_()
        calls = iter(sent)
        beliefs.gather(SimpleNamespace(count=2, objects=lambda value, calls=calls: next(calls)))
        believed, labels = beliefs.trained.known()
        torch.testing.assert_close(believed, sure([0, 1], 0.8))
        assert labels.tolist() == [1, 1] and beliefs.trained.losses.tolist() == [3, 4]
        torch.testing.assert_close(beliefs.sums, sure([0, 1, 2, 2], 0.8) * (1 - DECAY))
        assert beliefs.visits.tolist() == [1] * 4 and beliefs.labels.tolist() == [0, 1, 2, 2]
        assert beliefs.losses.tolist() == [0.5, 1.5, 1.5, 2.5]


def test_what_was_believed_in_the_first_part_stays_as_it_was():
    """Rows that came by later only are as they are now; a state brings all of it back."""
    beliefs = RunningBeliefs(3, 2, 0, num_trained=1, keeps_early=True)
    rows, labels, losses = torch.tensor([0, 1, 3]), torch.tensor([0, 1, 1]), torch.ones(3)
    early = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]])
    beliefs.update(rows, early, labels, losses)
    beliefs.is_early = False
    beliefs.update(torch.arange(4), torch.full((4, 2), 0.5), torch.tensor([0, 1, 0, 1]), torch.ones(4))
    again = RunningBeliefs(3, 2, 0, num_trained=1, keeps_early=True)
    again.load_state_dict({name: value.clone() for name, value in beliefs.state_dict().items()})
    for memory in (beliefs, again):
        known = memory.of_first_part
        torch.testing.assert_close(known.probabilities, torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]]))
        torch.testing.assert_close(known.trusted, early[2:])
        assert known.trusted_labels.tolist() == [1] and known.is_of_first_part
    beliefs.early.sums[3] = torch.tensor([0.07, 0.03])  # wrong about the trusted example: too little was learned
    torch.testing.assert_close(beliefs.of_first_part.trusted, beliefs.trained.of(slice(None)))
    beliefs.trained.sums[0] = beliefs.trained.sums[0].flip(0)
    assert beliefs.of_first_part is None and RunningBeliefs(3, 2, 0).of_first_part is None
