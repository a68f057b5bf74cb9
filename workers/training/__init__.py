"""Fine-tuning: the plan of a run, the check of its data, the training child and what supervises it."""
