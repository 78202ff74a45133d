"""The versions that a replica answers with: the one in production, and the one that a replay asks for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from rayapp.errors import NotFound
from rayapp.serving.live_versions import Serving


class Threads:
    """Executors that call in this thread."""

    async def io(self, call, *args):
        return call(*args)


class Versions:
    """A model store without any version."""

    def version(self, name, version):
        raise NotFound(f"model {name!r} has no version {version!r}")


async def test_a_served_version_that_the_store_does_not_have_can_be_replayed():
    bundle = SimpleNamespace(version="0.5.9")
    app = SimpleNamespace(infers={"spleen": bundle}, models=Versions(), make_task=None)
    serving = Serving(app=app, executors=Threads(), warm=None)
    assert await serving.task("spleen", "0.5.9") is bundle
    for model, version in (("spleen", "0.5.8"), ("liver", "0.5.9")):
        with pytest.raises(NotFound, match=f"{model}.*{version}"):
            await serving.task(model, version)
