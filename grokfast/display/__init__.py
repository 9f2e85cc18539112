"""What the command line shows of runs, while it works and afterwards."""
