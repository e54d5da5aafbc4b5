"""The page that a browser shows, and ``python -m service.playground``, which makes one that needs no server."""
