"""Interactions by id, as they were opened."""

from __future__ import annotations

from collections import OrderedDict

from deployments.clients import DatastoreClient
from rayapp.errors import NotFound
from rayapp.serving.interaction import Interaction, no_interaction, opened_at

REMEMBERED = 10_000


class OpenedInteractions:
    """Finds interactions in the click log and remembers those used last. Belongs to one event loop.

    How an interaction was opened never changes, so that a turn of one that is known here costs no call. Whether it
    still exists shows when the turn is logged.
    """

    def __init__(self, datastore: DatastoreClient) -> None:
        self._datastore = datastore
        self._known: OrderedDict[str, Interaction] = OrderedDict()

    def add(self, interaction: Interaction) -> None:
        """Remember one that was opened just now."""
        self._known[interaction.id] = interaction
        self._known.move_to_end(interaction.id)
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)

    async def known(self, interaction_id: str) -> Interaction:
        """As `find`, without looking whether one that is remembered still exists."""
        return self._known.get(interaction_id) or await self.find(interaction_id)

    async def find(self, interaction_id: str) -> Interaction:
        """The interaction with nothing but its opening. Raises NotFound."""
        try:
            interaction = Interaction.of(await self._datastore.event(opened_at(interaction_id)))
        except NotFound:
            raise no_interaction(interaction_id) from None
        if interaction.id != interaction_id:
            raise no_interaction(interaction_id)
        self.add(interaction)
        return interaction
