"""Ray Serve deployments: the HTTP gateway and the inference replicas behind it."""
