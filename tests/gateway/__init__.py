"""The gateway's routes on plain objects: a real store, app, sessions and users, answered by a real HTTP server."""
