"""One text from several replicas at once: whichever comes first is taken, event by event, since all of them say the same."""

from __future__ import annotations

from service.client.stream_state import FolioError


class Race:
    """What each replica has sent so far. Does no input or output.

    >>> race = Race(2)
    >>> race.add(0, "O, "), race.add(1, "O, spe"), race.add(0, "speak")
    ('O, ', 'spe', 'ak')
    """

    def __init__(self, replicas: int) -> None:
        self.lengths = [0] * replicas
        self.text = ""

    def add(self, replica: int, piece: str) -> str:
        """What is new in a piece that a replica has sent. Raises FolioError if another one said something else there."""
        begin = self.lengths[replica]
        self.lengths[replica] += len(piece)
        known = self.text[begin : begin + len(piece)]
        if not piece.startswith(known):
            raise FolioError("replicas_differ", "two replicas sent different texts: do they serve the same checkpoint (X-Fingerprint)?")
        new = piece[len(known) :]
        self.text += new
        return new
