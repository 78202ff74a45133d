"""The process and its machine: logs, host resources, scheduling priority, shares of a GPU."""
