"""A model on disk: a directory of safetensors and JSON."""
