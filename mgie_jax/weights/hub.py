"""Sources by name: a path, or a repository of the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from mgie_jax.paths import AnyPath, is_remote, to_path
from mgie_jax.weights.tensor import ModelDirError

_REPO = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def fetch(source: str | AnyPath, revision: str | None = None, patterns: Sequence[str] | None = None) -> AnyPath:
    """A folder or file with what `source` names.

    Args:
      source: a path, which is given back as it is; else a repository id, "owner/name". What the hub's cache
        (`HF_HOME`) already has is not fetched again; `HF_ENDPOINT` names another server, `HF_TOKEN` opens private
        repositories, and with `HF_HUB_OFFLINE=1` the cache alone is used.
      revision: a branch, tag or commit of the repository; a commit's hash pins the very files.
      patterns: which of its files, such as "unet/*.safetensors"; all where not given.

    Raises:
      ModelDirError: neither a path nor a repository; no such revision; no access, network or cache.
    """
    path = to_path(source) if is_remote(source) else Path(source).expanduser()
    if str(source) and path.exists():
        if revision is not None:
            raise ModelDirError(f"{source} is a path, which has no revision {revision!r}; leave the revision out")
        return path
    if is_remote(path):
        raise ModelDirError(f"{source}: there is no such folder or file")
    if not _REPO.fullmatch(str(source)):
        raise ModelDirError(f"{str(source)!r} is missing; give a path, or a repository of the hub as owner/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name = f"{source}@{revision}" if revision else str(source)
    try:
        return Path(snapshot_download(str(source), revision=revision, allow_patterns=patterns and list(patterns)))
    except GatedRepoError as error:
        raise ModelDirError(f"{name} asks for consent: accept its terms on its page, then set HF_TOKEN") from error
    except RevisionNotFoundError as error:
        raise ModelDirError(f"{source} has no revision {revision!r}; give a branch, tag or commit it has") from error
    except RepositoryNotFoundError as error:
        raise ModelDirError(
            f"{source} is neither a path nor a repository of the hub that you may read; check the name, or set HF_TOKEN"
        ) from error
    except LocalEntryNotFoundError as error:
        raise ModelDirError(
            f"{name} is not in the cache, and the hub cannot be reached (or HF_HUB_OFFLINE is set); "
            "fetch it where there is a network, or give a local folder"
        ) from error
    except Exception as error:  # the HTTP library's own errors: which library it is differs between versions
        raise ModelDirError(f"{name} cannot be fetched: {type(error).__name__}: {str(error)[:300]}") from error
