"""An app whose model runs on another server, reached by the Open Inference Protocol (for example Triton).

rayapp start --app examples/remote --studies DIR --conf server=http://127.0.0.1:9000 --conf model=promptable
"""

from rayapp.app import LabelApp
from rayapp.inference.methods.kserve import InferenceServer
from rayapp.inference.methods.remote import RemoteTask


class RemoteApp(LabelApp):
    """One promptable model on another server."""

    name = "remote"
    description = "A model on another server"

    def init_infers(self):
        """The task, under the model's name on the server."""
        conf = self.settings.conf
        names = self.settings.labels or ("structure",)
        model = conf.get("model", "promptable")
        task = RemoteTask(
            InferenceServer(conf["server"], model),
            labels={name: value for value, name in enumerate(names, start=1)},
            prompts=True,
            spacing=float(conf.get("spacing", 0)),
            description="Segmentation by clicks, computed on another server",
        )
        return {model: task}
