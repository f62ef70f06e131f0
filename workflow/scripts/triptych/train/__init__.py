"""Training of one stage: the trainer, and what it is made of."""
