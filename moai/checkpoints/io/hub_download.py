"""Fetching from the Hugging Face hub: only what is needed, continued after an interruption, and errors that help.

A name that a user gives is the permission to fetch it; ``HF_HUB_OFFLINE=1`` takes it back, and what the local cache
holds is used then. ``HF_ENDPOINT``, ``HF_TOKEN`` and ``HF_HOME`` count as everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = ["download_checkpoint", "download_files"]

#: What stands beside a checkpoint's weights: configurations, weight indices, tokenizers.
COMPANION_FILES = ("*.json", "*.txt", "*.model", "*.jinja")


def download_checkpoint(name: str, revision: str | None = None, *, is_safetensors_only: bool = False) -> Path:
    """Fetch a repository's checkpoint: its top folder's weights, configuration and tokenizer.

    Args:
        name: ``owner/name``.
        revision: Branch, tag or commit; None = the main branch.
        is_safetensors_only: Do without ``*.bin`` and ``*.pt``. Otherwise the former are fetched where there are no
            ``*.safetensors``, the latter where there are neither; whoever reads them must do so with ``weights_only``.

    Returns:
        The folder in the local cache; its name is the commit.

    Raises:
        ValueError: The hub or the cache does not give it; the message says why.
    """
    folder = download_files(name, (*COMPANION_FILES, "*.safetensors"), revision, is_top_folder_only=True)
    if any(folder.glob("*.safetensors")):
        return folder
    for suffix in () if is_safetensors_only else ("*.bin", "*.pt"):
        folder = download_files(name, (*COMPANION_FILES, suffix), revision, is_top_folder_only=True)
        if any(folder.glob(suffix)):
            return folder
    kinds = "*.safetensors" if is_safetensors_only else "*.safetensors, *.bin or *.pt"
    raise ValueError(f"expected weights ({kinds}) in {_describe(name, revision)}, got none. Check the name.")


def download_files(
    name: str, patterns: Sequence[str], revision: str | None = None, *, is_top_folder_only: bool = False
) -> Path:
    """Fetch the files of a repository that match; those in the cache already are not fetched again.

    A connection that breaks is taken up where it broke; after a kill the files that were complete remain.

    Args:
        name: ``owner/name``.
        patterns: Of files, for example ``*.json``.
        revision: Branch, tag or commit; None = the main branch.
        is_top_folder_only: Leave out what lies in folders.

    Returns:
        The folder in the local cache.

    Raises:
        ValueError: The hub or the cache does not give them; the message says why.
    """
    from huggingface_hub import errors, snapshot_download
    from huggingface_hub.utils import httpx

    ignored = ["*/*"] if is_top_folder_only else None
    where = _describe(name, revision)
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns), ignore_patterns=ignored))
    except errors.GatedRepoError as error:
        raise ValueError(
            f"expected access to {where}, got a gated repository. Accept its terms on the hub, then log in with "
            "`hf auth login` or set HF_TOKEN."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ValueError(
            f"expected a repository on the hub, got {name}, which is not there or is private. Check the name; for a "
            "private one log in with `hf auth login` or set HF_TOKEN."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(
            f"expected a branch, tag or commit of {name}, got {revision!r}. Leave it out for the main branch."
        ) from error
    except errors.LocalEntryNotFoundError as error:  # neither reached nor wholly in the cache
        raise ValueError(_describe_absence(where, error)) from error
    except (errors.HfHubHTTPError, httpx.HTTPError, OSError) as error:  # while a file was on its way
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"expected to download {where}, got: {reason[0]} Type the same again: what is here is not fetched twice."
        ) from error


def _describe(name: str, revision: str | None) -> str:
    return name if revision is None else f"{name} at {revision}"


def _describe_absence(where: str, error: Exception) -> str:
    from huggingface_hub import constants, errors

    if constants.is_offline_mode():
        return (
            f"expected {where} in the local cache, got HF_HUB_OFFLINE=1 and not all of it there. Unset HF_HUB_OFFLINE "
            "to download it, or name a local folder."
        )
    cause, answer = error.__cause__, "no answer"
    if isinstance(cause, errors.HfHubHTTPError):
        answer = f"status {cause.response.status_code}"
    return (
        f"expected {where}, got {answer} from {constants.ENDPOINT} and not all of it in the local cache. Check the "
        "network, or name a local folder."
    )
