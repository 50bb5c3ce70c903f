"""Files of the model hub: from its cache on this machine, else over the network, with errors of one line."""

import socket
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)

from wsi_mil.encoders.presets import PACKAGED
from wsi_mil.errors import ConfigError

_PATIENCE = 5.0  # seconds for a connection; the hub's client alone tries for 23


def fetch(name: str, repo: str, files: Sequence[str], offline: bool = False) -> Path:
    """Return the first of ``files`` that a repository has: the cached copy, else a download into the cache.

    Raises:
        ConfigError: it is neither in the cache nor to be had: offline, no network, no such repository or
            file, or its authors have not granted access.
    """
    for file in files:
        cached = try_to_load_from_cache(repo, file)
        if isinstance(cached, str):
            return Path(cached)
    missing = f"--encoder {name}: its weights are not on this machine: {' or '.join(files)} of hf-hub:{repo}"
    advice = (
        "Pass a local file with --weights FILE, or fill a folder where there is a network with "
        f"`wsi-mil encoders --download {name} --weights-dir DIR` and pass --weights-dir, or use the packaged "
        f"encoder {PACKAGED}."
    )
    if offline or constants.HF_HUB_OFFLINE:
        where = f"is not in the cache ({constants.HF_HUB_CACHE}), and the network is not asked (--offline)"
        raise ConfigError(f"{missing} {where}. {advice}")
    reason = _unreachable()
    if reason:
        raise ConfigError(f"{missing}, and the model hub cannot be reached ({reason}). {advice}")
    for file in files:
        try:
            return Path(hf_hub_download(repo, file))
        except RemoteEntryNotFoundError:
            continue
        except GatedRepoError as error:
            raise ConfigError(
                f"{missing}. Its authors grant access one by one: ask at {constants.ENDPOINT}/{repo}, log in "
                "with `hf auth login`, and give the command again."
            ) from error
        except RepositoryNotFoundError as error:
            raise ConfigError(
                f"{missing}. The hub has no such repository, or hides it from you (`hf auth login`)."
            ) from error
        except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError, RuntimeError) as error:
            text = str(error).strip().splitlines()
            reason = f"{type(error).__name__}: {text[0] if text else 'no reason given'}"
            raise ConfigError(f"{missing}, and the model hub did not give it ({reason}). {advice}") from error
    raise ConfigError(f"{missing}. The repository has no such file. {advice}")


def _unreachable() -> str:
    """Return why the hub cannot be connected to, "" if it can (through the proxy, where one is set)."""
    hub = urlsplit(constants.ENDPOINT)
    proxy = urllib.request.getproxies().get(hub.scheme)
    if proxy and not urllib.request.proxy_bypass(hub.hostname or ""):
        hub = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    try:
        port = hub.port or (443 if hub.scheme == "https" else 80)
        with socket.create_connection((hub.hostname or "", port), timeout=_PATIENCE):
            return ""
    except OSError as error:
        return error.strerror or str(error) or type(error).__name__
