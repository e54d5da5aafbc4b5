"""Why the engine does not serve a request: one tree, one code for each."""

from __future__ import annotations


class EngineError(Exception):
    """Why the engine does not serve a request. ``code`` is API.md's; one code for the body, the event and the metric.

    EngineError
      ├─ QueueFull        429, before a stream opens; retry_after_s says when a place should be free
      ├─ EngineLoading    503, before
      ├─ EngineStopping   503, before or within a stream
      ├─ EngineFailed     503, before or within: the supervisor has given up
      ├─ QueueTimeout     504, within: waited too long for a row
      ├─ CheckpointGone   410, before: the checkpoint that was asked for is not loaded
      └─ PromotionError
           ├─ PromotionInProgress  409: another promotion runs, or two checkpoints are still in use
           ├─ CheckpointNotFound   404: no such checkpoint in the catalogue, or none to roll back to
           └─ CheckpointRefused    422: it cannot be read, or its self-test failed; nothing has changed
    """

    code = "engine_failed"
    retryable = True

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueueFull(EngineError):
    """Every row is taken and the queue is full."""

    code = "queue_full"


class EngineLoading(EngineError):
    """No checkpoint is ready yet."""

    code = "loading"


class EngineStopping(EngineError):
    """The server is shutting down."""

    code = "shutting_down"


class EngineFailed(EngineError):
    """The worker died too often in a row, or its self-test failed."""

    code = "engine_failed"


class QueueTimeout(EngineError):
    """No row became free in time."""

    code = "queue_timeout"


class CheckpointGone(EngineError):
    """The checkpoint that a request names is not loaded (any more)."""

    code = "checkpoint_gone"
    retryable = False


class PromotionError(EngineError):
    """Another checkpoint was to be served, and is not; the one before goes on serving."""

    retryable = False


class PromotionInProgress(PromotionError):
    """Another promotion runs, or two checkpoints are still in use."""

    code = "promotion_in_progress"
    retryable = True


class CheckpointNotFound(PromotionError):
    """No checkpoint of this id is in the catalogue, or there is none to roll back to."""

    code = "checkpoint_not_found"


class CheckpointRefused(PromotionError):
    """The checkpoint cannot be read or trusted, or its self-test failed; nothing has changed."""

    code = "checkpoint_refused"
