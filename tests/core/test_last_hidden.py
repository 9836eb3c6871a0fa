"""Features of the last hidden layer: what the classifier makes logits of."""

import pytest
import torch
from torch import nn

from famus_hf.core.autodiff.forward_pass import in_mode, split_inputs
from famus_hf.core.last_hidden import last_hidden
from tests.helpers.models import build_batch, build_model


@pytest.mark.parametrize("kind", ["batch norm", "called group norm", "vit", "bert"])
def test_logits_are_those_that_the_classifier_makes_of_the_features(kind):
    model, (inputs, _, _) = build_model(kind), split_inputs(build_batch(kind))
    with in_mode(model, training=False), last_hidden(model) as features:
        logits = model(**inputs).logits
        found = features()
    classifier = model.fc if hasattr(model, "fc") else model.classifier
    assert found.dim() == 2 and not found.requires_grad
    torch.testing.assert_close(classifier(found), logits)
    assert not any(module._forward_pre_hooks for module in model.modules())


class PerToken(nn.Module):
    """A classifier of each token, or of each place, of which the last one or the mean gives the logits."""

    def __init__(self, head):
        super().__init__()
        self.first, self.head = nn.Linear(5, 4), head

    def forward(self, hidden):
        return self.head(input=hidden)


def test_features_of_tokens_and_of_places_are_averaged():
    tokens, images = torch.randn(3, 7, 5), torch.randn(3, 5, 2, 2)
    for head, given, expected in (
        (nn.Linear(5, 4), tokens, tokens.mean(1)), (nn.Conv2d(5, 4, 1), images, images.mean((2, 3)))
    ):  # fmt: skip
        model = PerToken(head)
        with last_hidden(model) as features:
            model(given)
            torch.testing.assert_close(features(), expected)
