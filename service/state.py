"""What every route works with: the settings, the engine, the metrics, and whether the server still takes requests."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from starlette.requests import Request

from service.engine.errors import EngineError, EngineStopping
from service.engine.interface import Engine, GenerationRequest, ServedCheckpoint, TextStream
from service.key_limits import KeyLimits
from service.request_state import RequestState
from service.settings import Settings
from service.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

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
    key_limits: KeyLimits = field(init=False)
    receipt_key: Ed25519PrivateKey | None = field(init=False)
    held_logprobs: int = 0
    """Log-probabilities that running answers may come to."""

    def __post_init__(self) -> None:
        self.key_limits = KeyLimits(self.settings)
        self.receipt_key = self.settings.receipt_signing_key()

    def checkpoint(self, checkpoint_id: str | None = None) -> ServedCheckpoint:
        """A loaded checkpoint, the current one if none is named. Raises EngineError."""
        return self.engine.find(checkpoint_id)

    def admit(self, state: RequestState, *requests: GenerationRequest) -> list[TextStream]:
        """Admit all texts that a request asks for, or none. Raises EngineError, ApiError beyond its key's limits."""
        if self.draining:
            raise EngineStopping("the server is shutting down")
        tokens = sum(len(request.prompt) + request.params.max_new_tokens - request.skip_tokens for request in requests)
        self.key_limits.admit(state, len(requests), tokens)
        streams: list[TextStream] = []
        try:
            for request in requests:
                streams.append(self.engine.submit(replace(request, key=state.key or "")))
        except EngineError:
            for stream in streams:
                stream.cancel()
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
