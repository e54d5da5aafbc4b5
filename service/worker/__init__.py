"""The process that holds the model: it knows nothing of HTTP."""
