"""From a name or a folder to noisy training, meta and test sets that a network takes."""

from famus_hf.data.load import load_noisy_dataset

__all__ = ["load_noisy_dataset"]
