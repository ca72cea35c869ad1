"""Worker processes: code of others that may hang or crash, within limits."""

from fulmen.envs.workers.pool import WorkerError, Workers, shared_workers

__all__ = ["WorkerError", "Workers", "shared_workers"]
