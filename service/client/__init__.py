"""What users call: `Folio`, `AsyncFolio`, ``folio-generate``. Needs httpx and httpx-sse, nothing else of the service."""

from service.client.asynchronous import AsyncFolio
from service.client.command import main
from service.client.stream_state import FolioError, Stream
from service.client.sync import Folio

__all__ = ["AsyncFolio", "Folio", "FolioError", "Stream", "main"]
