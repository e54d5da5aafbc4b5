"""What every route works with: the settings, the engine, the metrics, and whether the server still takes requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.requests import Request

from service.engine.interface import (
    CheckpointGone,
    Engine,
    EngineError,
    EngineFailed,
    EngineLoading,
    EngineStopping,
    GenerationRequest,
    ServedCheckpoint,
    TextStream,
)
from service.settings import Settings
from service.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from service.telemetry.tracing import Tracing

MAX_AGE_S = 2.0
"""A worker that was not heard of for this long, or has not stepped for this long while work waits, is not ready."""


@dataclass(slots=True)
class Service:
    """One service; the application holds exactly one."""

    settings: Settings
    engine: Engine
    metrics: Metrics
    tracing: Tracing | None = None
    draining: bool = False

    def checkpoint(self, checkpoint_id: str | None = None) -> ServedCheckpoint:
        """A loaded checkpoint, the current one if none is named. Raises EngineError."""
        if checkpoint_id is not None:
            for checkpoint in self.engine.loaded:
                if checkpoint.id == checkpoint_id:
                    return checkpoint
            if self.engine.current is not None:
                raise CheckpointGone("the checkpoint that the request names is not loaded")
        return self.engine.current or self._why_not()

    def _why_not(self) -> ServedCheckpoint:
        status = self.engine.status
        if self.draining or status.state == "stopping":
            raise EngineStopping("the server is shutting down")
        if status.state == "failed":
            raise EngineFailed(status.message or "the engine has failed")
        raise EngineLoading("the model is being loaded")

    def admit(self, *requests: GenerationRequest) -> list[TextStream]:
        """Admit all of several requests or none. Raises EngineError."""
        if self.draining:
            raise EngineStopping("the server is shutting down")
        streams: list[TextStream] = []
        try:
            for request in requests:
                streams.append(self.engine.submit(request))
        except EngineError:
            for stream in streams:
                stream.cancel("queued")
            raise
        return streams

    @property
    def not_ready(self) -> str:
        """Why the service is not ready; nothing if it is."""
        status = self.engine.status
        if self.draining or status.state == "stopping":
            return "shutting_down"
        if status.state != "running" or self.engine.current is None:
            return "engine_failed" if status.state == "failed" else "loading"
        return "engine_stalled" if max(status.heartbeat_age_s, status.step_age_s) > MAX_AGE_S else ""


def service_of(request: Request) -> Service:
    """The service that a request came to."""
    service: Service = request.app.state.service
    return service
