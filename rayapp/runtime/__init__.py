"""The process and its machine: logs, host, scheduling priority."""
