"""The HTTP APIs: the server that hosts them (server) and the application (app)."""
