"""What users call: `Folio`, `AsyncFolio` and ``folio-generate``. Needs httpx alone."""

from service.client.folio import AsyncFolio, Folio, FolioError, Stream, main

__all__ = ["AsyncFolio", "Folio", "FolioError", "Stream", "main"]
