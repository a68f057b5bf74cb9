"""The client keeps its promises towards any server that keeps the interface's."""
