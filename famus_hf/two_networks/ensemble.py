"""EnsembleTrainer: what any Trainer of two networks whose mean is the classifier does."""

from pathlib import Path
from typing import Any

from torch import nn

from famus_hf.models.two_networks import TwoNetworksForImageClassification
from famus_hf.reporting.model_card import source_of_network
from famus_hf.storage.model_folder import save_networks_apart
from famus_hf.storage.run_folder import NETWORKS_APART
from famus_hf.trainer.trainer import FaMUSTrainer


class EnsembleTrainer(FaMUSTrainer):
    """Trains two networks whose mean is the classifier; each is saved by itself, too."""

    @property
    def both_networks(self) -> list[nn.Module]:
        """The networks themselves."""
        return [self.model.get_submodule(name) for name in NETWORKS_APART]

    def _save_beside_model(self, folder: Path) -> None:
        if isinstance(self.model, TwoNetworksForImageClassification):
            save_networks_apart(folder, self.model, self.processing_class)

    def model_card_facts(self) -> dict[str, Any]:
        source = source_of_network(self.both_networks[0])
        return {**super().model_card_facts(), "base_model": source, "two_networks": True}
