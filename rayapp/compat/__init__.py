"""MONAI Label's import names for apps written for it, so that such an app runs unchanged.

`rayapp.app.import_aliases` puts these modules under the names that the app imports; `provided` says which stands for
which. An app's tasks are adapted to rayapp's protocols by the modules that begin with `ported_`.
"""
