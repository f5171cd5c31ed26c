"""The GLUE tasks as data: examples in, tokens out, metrics."""
