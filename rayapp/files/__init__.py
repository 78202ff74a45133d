"""Files on disk: durable replacement, safe unpacking of archives."""
