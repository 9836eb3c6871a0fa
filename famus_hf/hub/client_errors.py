"""What huggingface_hub's client raises, in words.

Its errors have no common class: HfHubHTTPError is an answer of the Hub, a request that fails raises httpx's, an upload
of a large file RuntimeError around either, a download that finds nothing in the cache either LocalEntryNotFoundError.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled  # HTTPError is httpx's

from famus_hf.errors import HubError, reason_of

ANSWERS = {
    401: "the Hub refuses the token, or wants one (401): log in with `hf auth login`, set HF_TOKEN, check the name",
    403: "the token may not do that (403): take one with more rights, or a repository of your own",
    404: "there is no such repository or branch (404), or it is private and the token does not reach it: check both",
    409: "something else is changing the repository (409): try again later",
    412: "something else has changed the repository meanwhile (412): try again later",
    429: "the Hub takes no more requests for now (429): try again later",
}


def root_of(error: BaseException) -> BaseException:
    """Return the Hub's answer or the failed request that an error of the client is about; else the error itself."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, HTTPError | OfflineModeIsEnabled):
            return cause
        cause = cause.__cause__
    return error


def status_of(error: BaseException) -> int | None:
    """Return the number of the Hub's answer; None where there was none."""
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def hub_reason(error: BaseException) -> str:
    """Return why the Hub did not do what was asked, and what to do, as a part of a sentence."""
    error = root_of(error)
    status = status_of(error)
    if status is not None:
        if status >= 500:
            return f"the Hub has an error of its own ({status}): try again later"
        return ANSWERS.get(status) or f"the Hub answers {status}: {reason_of(error)}"
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE forbids it: unset it"
    if isinstance(error, HTTPError):
        return f"the Hub can't be reached ({type(error).__name__}): check the network and HF_ENDPOINT"
    if isinstance(error, json.JSONDecodeError):
        return "the Hub's answer can't be read as JSON: try again later"
    return reason_of(error)


def downloaded(
    repo_id: str, revision: str | None, token: str | None, allow: Sequence[str], ignore: Sequence[str] = ()
) -> Path:
    """Return the folder on disk with files of a repository. Raise HubError where the Hub does not give them."""
    try:
        folder = snapshot_download(
            repo_id, revision=revision, token=token, allow_patterns=list(allow), ignore_patterns=list(ignore)
        )
    except Exception as error:  # the client's errors have no common class
        raise HubError(f"{repo_id!r} is no folder, and can't be loaded from the Hub: {hub_reason(error)}") from error
    return Path(folder)
