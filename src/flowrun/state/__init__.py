"""What is known of runs (records), how it is kept (stores), and how results are written."""
