"""Model versions, networks by description, weights, MONAI bundles and the model zoo."""
