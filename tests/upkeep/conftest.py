"""The studies folder of the datastore's tests, and the store on it."""

from __future__ import annotations

from tests.datastore.conftest import open_store, plain, studies

__all__ = ["open_store", "plain", "studies"]
