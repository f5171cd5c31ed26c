"""Fine-tuning on GLUE with and without layerwise batch-entropy regularization."""
