"""A file of inputs becomes shards, and shards run like jobs: nothing is lost, nothing is run that was refused."""
