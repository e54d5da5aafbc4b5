"""Text to token ids and back: one token per character, per byte, or per piece of byte-pair encoding."""
