"""What goes to a run's repository on the Hub and comes back: single commits, tried a few times.

huggingface_hub 2.4 tries again by itself what it asks before a commit and uploads of large files, but neither the
commit nor what creates or lists a repository. Its own upload_folder makes several commits where hf_xet is installed, so
that a backbone could be there without its meta-net.
"""

import logging
import re
import shutil
import time
from collections.abc import Callable, Mapping
from json import JSONDecodeError
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HTTPError

from famus_hf.errors import HubError, PushError
from famus_hf.hub.client_errors import hub_reason, root_of, status_of
from famus_hf.models import OWN_CODE
from famus_hf.storage import checkpoints
from famus_hf.storage.portable import unpack
from famus_hf.storage.run_folder import (
    LAST_CHECKPOINT,
    META_NET,
    NETWORKS_APART,
    OF_A_RUN,
    OF_NETWORKS_APART,
    UNFINISHED,
    is_among,
)
from famus_hf.storage.untrusted import MAX_JSON_BYTES

TRIES = 4
FIRST_PAUSE = 2.0  # seconds before the second try; each next one is twice as long
TRIED_BY_CLIENT = ("/preupload/", "/info/lfs/")  # five times, with pauses of its own
# What would be taken for the new run's, where it has no such file itself: a run's files, its code, what transformers'
# own pushes leave. Whatever else is there is the user's.
REPLACED = (
    *OF_A_RUN, *OWN_CODE, "training_args.bin", "pytorch_model.bin", f"{META_NET}/*", *OF_NETWORKS_APART,
    *(f"{network}/{name}" for network in NETWORKS_APART for name in (*OWN_CODE, f"{META_NET}/*")),
)  # fmt: skip

logger = logging.getLogger("famus_hf")
Result = TypeVar("Result")


def tried(action: Callable[[], Result]) -> Result:
    """Return what the action returns, after another try where the Hub fails or somebody else commits meanwhile."""
    for failures in range(TRIES - 1):
        try:
            return action()
        except Exception as error:  # the client's errors have no common class
            if not _is_temporary(error):
                raise
            logger.debug("try %s of %s failed: %s", failures + 1, TRIES, hub_reason(error))
            time.sleep(FIRST_PAUSE * 2**failures)
    return action()


def _is_temporary(error: Exception) -> bool:
    """Return whether another try may succeed."""
    root = root_of(error)
    status = status_of(root)
    if not isinstance(root, HTTPError):
        return isinstance(root, JSONDecodeError)  # an answer that is cut, or a proxy's page
    request = root.response.request if isinstance(root, HfHubHTTPError) else root.request
    if any(path in str(request.url) for path in TRIED_BY_CLIENT):
        return False
    return status is None or status in (409, 412, 429) or status >= 500


def prepare_repository(name: str, *, token: str | None, private: bool | None, revision: str | None) -> str:
    """Create the repository where there is none, check that it can be pushed to, and return its full name.

    Raises:
        HubError: It can't be pushed to.
    """
    api = HfApi(token=token)
    try:
        repo_id = tried(lambda: api.create_repo(name, private=private, exist_ok=True)).repo_id
        tried(lambda: api.auth_check(repo_id, write=True))  # a repository that is there counts as created to anyone
        if revision is not None:
            tried(lambda: api.repo_info(repo_id, revision=revision))
    except Exception as error:  # the client's errors have no common class
        at = "" if revision is None else f" at {revision!r}"
        raise HubError(f"{name!r}{at} on the Hub can't be pushed to: {hub_reason(error)}") from error
    return repo_id


def push_files(
    files: Mapping[str, Path], repo_id: str, *, message: str, token: str | None = None, revision: str | None = None
) -> CommitInfo:
    """Make a repository hold these files and none of an earlier run, in one commit; files that are no run's stay.

    Args:
        files: Name in the repository → file.
        repo_id: A repository that is there.

    Raises:
        PushError: It failed, and the repository is as it was. Large files that had arrived are not sent again.
    """
    api = HfApi(token=token)

    def commit() -> CommitInfo:
        head = api.repo_info(repo_id, revision=revision).sha
        present = api.list_repo_files(repo_id, revision=head)
        stale = [name for name in present if name not in files and _is_replaced(name)]
        additions = [CommitOperationAdd(name, path) for name, path in files.items()]
        return api.create_commit(
            repo_id,
            [*(CommitOperationDelete(name, is_folder=False) for name in stale), *additions],
            commit_message=message,
            revision=revision,
            parent_commit=head,  # which files are stale depends on it: the Hub refuses if it has moved on (412)
        )

    try:
        return tried(commit)
    except Exception as error:  # the client's errors have no common class
        raise PushError(f"the push to {repo_id!r} failed: {hub_reason(error)}") from error


def _is_replaced(name: str) -> bool:
    return is_among(name, REPLACED) or name.startswith(f"{LAST_CHECKPOINT}/")


def fetch_checkpoint(
    repo_id: str, output_dir: Path, *, token: str | None, revision: str | None, max_bytes: int, processes: int
) -> Path:
    """Make a local checkpoint of the one that a run pushed with `hub_strategy="checkpoint"`, and return its folder.

    Args:
        max_bytes: The largest size that is downloaded.
        processes: Of the run that goes on from it.

    Raises:
        HubError: There is none, or it is not what a push writes.
    """
    beside = output_dir / UNFINISHED / "download"
    try:
        sha = _check_sizes(HfApi(token=token), repo_id, revision, max_bytes)
        snapshot_download(
            repo_id,
            revision=sha,
            token=token,
            local_dir=beside,
            allow_patterns=[f"{LAST_CHECKPOINT}/*.json", f"{LAST_CHECKPOINT}/*.safetensors"],
        )
        return unpack(beside / LAST_CHECKPOINT, output_dir, processes)
    except Exception as error:  # the client's errors have no common class
        raise HubError(f"no run can go on from {repo_id!r} on the Hub: {hub_reason(error)}") from error
    finally:
        shutil.rmtree(beside.parent, ignore_errors=True)


def _check_sizes(api: HfApi, repo_id: str, revision: str | None, max_bytes: int) -> str:
    """Return the newest commit. Raise HubError where its list of files shows no checkpoint, or too large a one."""
    sha = str(tried(lambda: api.repo_info(repo_id, revision=revision)).sha)
    entries: list[Any] = tried(lambda: list(api.list_repo_tree(repo_id, recursive=True, revision=sha)))
    sizes = {e.path: e.size for e in entries if hasattr(e, "size") and e.path.startswith(f"{LAST_CHECKPOINT}/")}
    if not sizes:
        raise HubError(f"it has no {LAST_CHECKPOINT}/, which a run with hub_strategy='checkpoint' pushes")
    large = [name for name, size in sizes.items() if name.endswith(".json") and size > MAX_JSON_BYTES]
    if large:
        raise HubError(f"{large[0]} has {sizes[large[0]]} bytes, and at most {MAX_JSON_BYTES} are read")
    if sum(sizes.values()) > max_bytes:
        raise HubError(
            f"{LAST_CHECKPOINT}/ has {sum(sizes.values())} bytes, and at most {max_bytes} go with this network"
        )
    return sha


HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def is_hub_id(resume_from_checkpoint: str | Path | bool | None) -> bool:
    """Return whether a checkpoint to resume from looks like a repository, and like nothing on this disk."""
    if not isinstance(resume_from_checkpoint, str) or not HUB_ID.fullmatch(resume_from_checkpoint):
        return False
    path = Path(resume_from_checkpoint)
    return not path.exists() and not path.parent.is_dir() and not checkpoints.NAME.fullmatch(path.name)
