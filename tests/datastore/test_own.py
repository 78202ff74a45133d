"""An app's own datastore: opened by its hook, in the datastore's actor and with nothing of the app before it."""

from __future__ import annotations

import os
import signal
import textwrap
from pathlib import Path

import pytest
import ray

from actors.datastore import GROUPS, remote_datastore, start_datastore
from rayapp.app.app_loader import brings_datastore, own_datastore
from rayapp.app.label_app import LabelApp
from rayapp.config import Settings
from rayapp.datastore.interfaces import Author, ClickEvent
from rayapp.datastore.local import LocalDatastore
from rayapp.errors import AppBroken, NotFound
from rayapp.launch import _answer
from tests.waiting import until

BRINGS = """
    from pathlib import Path
    import shutil

    from lib.vault import Vault
    from rayapp.app.label_app import LabelApp

    class MyApp(LabelApp):
        @classmethod
        def init_datastore(cls, settings):
            for image in Path(settings.conf["from"]).iterdir():
                shutil.copy(image, settings.studies)
            return Vault(settings.studies, watch=False)
"""
VAULT = """
    from rayapp.datastore.local import LocalDatastore

    class Vault(LocalDatastore):
        '''Knows no images whose names begin with a secret.'''

        def image_ids(self, **given):
            return [name for name in super().image_ids(**given) if not name.startswith("secret")]
"""


@pytest.fixture
def settings(tmp_path):
    return write(tmp_path, BRINGS, VAULT)


def write(folder, main, vault=""):
    """The settings of an app with these sources."""
    for name in ("studies", "elsewhere", "mine/lib"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name in ("ct_a.nii.gz", "secret.nii.gz"):
        (folder / "elsewhere" / name).write_bytes(b"voxels")
    (folder / "mine" / "main.py").write_text(textwrap.dedent(main))
    (folder / "mine" / "lib" / "vault.py").write_text(textwrap.dedent(vault))
    conf = {"from": str(folder / "elsewhere")}
    return Settings(studies=folder / "studies", workspace=folder / "ws", app=str(folder / "mine"), conf=conf)


def test_an_apps_own_datastore_serves_in_the_actor_and_again_after_a_kill(settings, ray_node):
    assert brings_datastore(settings)
    handle = start_datastore(settings)
    store = remote_datastore(handle)
    assert store.image_ids() == ["ct_a"]
    staged = store.stage(".nii.gz")
    staged.write_bytes(b"label")
    saved = store.save_label("ct_a", "final", staged, ".nii.gz", info={}, author=Author())
    os.kill(ray.get(handle.__ray_call__.remote(lambda _: os.getpid())), signal.SIGKILL)
    assert store.label("ct_a", "final") == saved
    with pytest.raises(NotFound):
        store.image("nobody")
    store.close()
    ray.kill(handle)


HELD = """
    import time
    from pathlib import Path

    from rayapp.datastore.local import LocalDatastore

    class Vault(LocalDatastore):
        '''Openings and whole lists wait until a file is there.'''

        def _wait(self):
            (self._studies / ".waiting").open("a").write("x")
            while not (self._studies / ".go").exists():
                time.sleep(0.01)

        def image(self, image_id):
            self._wait()
            return super().image(image_id)

        def document(self):
            self._wait()
            return super().document()
"""


def test_calls_that_wait_for_an_archive_or_read_everything_hold_up_no_save(tmp_path, ray_node):
    settings = write(tmp_path, BRINGS, HELD)
    handle = start_datastore(settings)
    store, waiting = remote_datastore(handle), tmp_path / "studies" / ".waiting"
    calls = [handle.image.remote("ct_a") for _ in range(40)] + [handle.document.remote() for _ in range(40)]
    until(lambda: waiting.exists() and waiting.stat().st_size == sum(GROUPS[name][0] for name in ("open", "whole")))
    staged = store.stage(".nii.gz")
    staged.write_bytes(b"label")
    assert store.save_label("ct_a", "final", staged, ".nii.gz", info={}, author=Author()).number == 1
    assert store.append_events([ClickEvent(image_id="ct_a", kind="click", payload={})]) == [1]
    assert len(ray.wait(calls, num_returns=len(calls), timeout=0)[1]) == len(calls)
    (tmp_path / "studies" / ".go").touch()
    ray.get(calls)
    store.close()
    ray.kill(handle)


def test_what_the_hook_does_wrong_arrives_as_itself(tmp_path, ray_node):
    broken = write(tmp_path, BRINGS.replace('conf["from"]', 'conf["form"]'), VAULT)
    handle = start_datastore(broken)
    with pytest.raises(AppBroken, match=r"init_datastore failed: main\.py, line 11: KeyError: 'form'"):
        _answer(handle.status.remote())
    ray.kill(handle)


def test_apps_without_one_have_the_folder_and_their_code_is_not_run_for_it(tmp_path):
    without = write(tmp_path, "raise RuntimeError('run')\n")
    assert not brings_datastore(without)
    assert not brings_datastore(without.model_copy(update={"app": "radiology"}))
    store = LabelApp.init_datastore(without)
    assert isinstance(store, LocalDatastore)
    store.close()


NO_STORES = {
    "nothing": ("return None", r"init_datastore \(main\.py, line \d+\) must return a datastore, not None"),
    "a folder": ("return settings.studies", r"init_datastore .* must return a datastore, not a Pos\w+"),
    "half of one": (
        "return Half()",
        r"Half \(main\.py, line \d+\) is an incomplete datastore: it lacks the methods add_image, append",
    ),
}


@pytest.mark.parametrize("kind", NO_STORES)
def test_what_is_no_datastore_is_told_with_what_it_lacks(tmp_path, kind):
    made, said = NO_STORES[kind]
    half = "\n\n    class Half:\n        def image(self, image_id): pass\n        def close(self): pass\n"
    main = BRINGS.replace("return Vault(settings.studies, watch=False)", made) + half
    with pytest.raises(AppBroken, match=said):
        own_datastore(write(tmp_path, main, VAULT))


def test_everything_that_the_server_asks_of_a_datastore_is_asked_of_an_apps_own():
    from rayapp.app.validation import STORE

    public = {name for name in dir(LocalDatastore) if not name.startswith("_")}
    assert public == set(STORE), "what the actor passes on is all that the store has"


def test_the_path_in_a_message_is_the_apps(settings):
    store = own_datastore(settings)
    assert Path(type(store).__module__.replace(".", "/")) == Path("lib/vault")
    store.close()
