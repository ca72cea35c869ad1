"""A model whose weights SGLang or vLLM holds: token ids go out, token ids come back."""

from fulmen.llm.upstream.model import UpstreamModel, UpstreamStream
from fulmen.llm.upstream.probe import UpstreamKind

__all__ = ["UpstreamKind", "UpstreamModel", "UpstreamStream"]
