"""The model: vision encoder (mostly frozen), trainable connector, language model with optional LoRA."""
