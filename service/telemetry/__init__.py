"""What is told about the service: metrics, traces, logs."""
