"""The version of the exact arithmetic, which fingerprints, digests and receipts name. Apart, so that the API reads it without numpy."""

ARITHMETIC_VERSION = 1
"""Counted up with whatever can change a byte (docs/arithmetic.md)."""
