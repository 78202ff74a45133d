"""rayapp: AI-assisted interactive labelling of 3D medical images, served by Ray.

This package is the domain. It imports neither Ray nor the packages `actors` and `deployments`; `rayapp.launch`,
the composition root, is the one exception.
"""

__version__ = "0.1.0"
