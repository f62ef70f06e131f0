"""The model: frozen vision encoder, trainable connector, language model with optional LoRA."""
