"""Which worker gets which jobs and calls."""
