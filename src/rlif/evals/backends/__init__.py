"""What answers the questions of an evaluation: the engine in this process, or a server."""
