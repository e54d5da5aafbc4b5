"""The engines: the same step on each kind of hardware."""
