"""The GLUE tasks: descriptions, examples, tokenization and metrics."""
