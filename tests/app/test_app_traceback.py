"""Lines in an app's code, looked up by several threads at once."""

import gc
import importlib.util
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from rayapp.app import app_traceback


@pytest.fixture
def eager_collector():
    """Collects garbage all the time and runs Python code as it does, so that threads take turns inside the parser."""
    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()

    def busy(*_):
        sum(range(50))

    sys.setswitchinterval(1e-5)
    gc.set_threshold(20)
    gc.callbacks.append(busy)
    yield
    gc.callbacks.remove(busy)
    gc.set_threshold(*thresholds)
    sys.setswitchinterval(interval)


def test_threads_that_look_for_a_class_at_once_all_find_its_line(tmp_path, eager_collector, monkeypatch):
    file = tmp_path / "spleen.py"
    functions = [f"def f{n}(x):\n    return [[x + {n}, [x * (1 + (2 - (3 * x)))]]]\n" for n in range(100)]
    file.write_text("".join(functions) + "class Spleen:\n    pass\n")
    spec = importlib.util.spec_from_file_location("spleen_of_the_test", file)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: app_traceback.definition(module.Spleen, tmp_path), range(24)))
    assert found == {"Spleen (spleen.py, line 201)"}
