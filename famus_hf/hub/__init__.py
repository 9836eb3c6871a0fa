"""The folder or repository of a run: loaded with nothing in it executed, and pushed without pickles."""

from famus_hf.hub.load import files_to_push, load_famus

__all__ = ["files_to_push", "load_famus"]
