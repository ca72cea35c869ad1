"""Files of data sets on the Hugging Face hub, which stay in its cache on this machine."""

from pathlib import Path


def hub_file(dataset: str, filename: str) -> Path:
    """Return a file of a data set, from the cache or from the hub. Raises ValueError where neither
    has it."""
    # Imported here: the library reads its environment on import, and few callers need it.
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]

    try:
        return Path(hf_hub_download(dataset, filename, repo_type="dataset"))
    except (HfHubHTTPError, HTTPError, OSError, ValueError) as error:
        reason = " ".join(str(error).split("\n", 1)[0].split())[:300].rstrip(".")
        raise ValueError(
            f"the hub did not give {filename} of {dataset} ({reason}), name a file of it instead"
        ) from None
