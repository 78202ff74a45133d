"""A server's parts in this process, with images that are labelled and an app that can be trained."""

from __future__ import annotations

import pytest

from rayapp.config import Settings
from rayapp.datastore.local import LocalDatastore
from rayapp.jobs.withdrawals import Withdrawals
from rayapp.serving.catalogue import Catalogue
from tests.jobs.plain import APP, label_all, write_images


@pytest.fixture
def settings(tmp_path):
    write_images(tmp_path / "studies")
    return Settings(
        studies=tmp_path / "studies", workspace=tmp_path / "workspace", app=str(APP), models=("bright", "shiny")
    )


@pytest.fixture
def datastore(settings):
    store = LocalDatastore(settings.studies, watch=False, settle=0.0)
    label_all(store, settings.studies)
    yield store
    store.close()


@pytest.fixture
def withdrawals(tmp_path):
    return Withdrawals(tmp_path / "withdrawn")


@pytest.fixture
def catalogue(settings, datastore):
    return Catalogue(settings, datastore)
