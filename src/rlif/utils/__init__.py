"""What every room may use: files, memory, signals of the system, plots."""
