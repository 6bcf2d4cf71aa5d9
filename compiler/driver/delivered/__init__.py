"""What is done with a delivered artifact: verified, run, traced, rebuilt."""
