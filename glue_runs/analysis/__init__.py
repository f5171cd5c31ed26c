"""What the runs of a grid show: tables, statistics, figures, the report."""
