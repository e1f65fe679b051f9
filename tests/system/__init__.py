"""Whole processes: the engine process, the server, and clients that misbehave."""
