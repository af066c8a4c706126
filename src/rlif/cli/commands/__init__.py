"""One module a command: its options, and one call. What is heavy is imported when it runs."""
