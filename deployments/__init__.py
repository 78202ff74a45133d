"""Ray Serve deployments: the gateway, and the inference replicas behind it."""
