"""The results of a grid: tables, statistics, figures and the report."""
