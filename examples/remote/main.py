"""An app whose model runs in another server that speaks the Open Inference Protocol, such as Triton.

rayapp start --app examples/remote --studies DIR --conf server=http://127.0.0.1:9000 --conf model=promptable
"""

from rayapp.app import LabelApp
from rayapp.inference.methods.kserve import InferenceServer
from rayapp.inference.methods.remote import RemoteTask


class RemoteApp(LabelApp):
    """One promptable model, served elsewhere."""

    name = "remote"
    description = "A model of another server"

    def init_infers(self):
        """The model, by the name that it has there."""
        conf = self.settings.conf
        names = self.settings.labels or ("structure",)
        model = conf.get("model", "promptable")
        task = RemoteTask(
            InferenceServer(conf["server"], model),
            labels={name: value for value, name in enumerate(names, start=1)},
            prompts=True,
            spacing=float(conf.get("spacing", 0)),
            description="Clicks are answered by another server",
        )
        return {model: task}
