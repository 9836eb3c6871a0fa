"""Decisions on labels as a small data set on the Hub: one CSV file, which its viewer shows and edits."""

from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download

from famus_hf.data.labels.decisions import Decisions, as_csv
from famus_hf.errors import HubError, PushError
from famus_hf.hub.client_errors import hub_reason
from famus_hf.hub.push import tried
from famus_hf.storage.run_folder import DECISIONS


def push_decisions(decisions: Decisions, repo_id: str, private: bool | None) -> None:
    """Push decisions as a data set, in one commit. Raise PushError where the Hub does not take it."""
    api = HfApi()
    try:
        tried(lambda: api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True))
        files = [CommitOperationAdd(DECISIONS, as_csv(decisions).encode())]
        tried(lambda: api.create_commit(repo_id, files, commit_message="Decisions on labels", repo_type="dataset"))
    except Exception as error:  # the client's errors have no common class
        raise PushError(f"the push of the decisions to {repo_id!r} failed: {hub_reason(error)}") from error


def fetch_decisions(repo_id: str) -> Path:
    """Return the file of decisions of a data set on the Hub. Raise HubError where it can't be had."""
    try:
        return Path(hf_hub_download(repo_id, DECISIONS, repo_type="dataset"))
    except Exception as error:  # the client's errors have no common class
        raise HubError(f"no {DECISIONS} can be had from {repo_id!r} on the Hub: {hub_reason(error)}") from error
