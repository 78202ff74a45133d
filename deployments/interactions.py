"""Interactions by id, as they were opened."""

from __future__ import annotations

from collections import OrderedDict

from deployments.clients import DatastoreClient
from rayapp.errors import NotFound
from rayapp.serving.interaction import Interaction, no_interaction, opened_at

REMEMBERED = 10_000


class OpenedInteractions:
    """Looks up interactions in the click log and caches the most recently used ones. Belongs to one event loop.

    How an interaction was opened never changes, so a turn of a cached one needs no lookup. If it no longer exists,
    logging the turn fails.
    """

    def __init__(self, datastore: DatastoreClient) -> None:
        self._datastore = datastore
        self._known: OrderedDict[str, Interaction] = OrderedDict()

    def add(self, interaction: Interaction) -> None:
        """Cache an interaction that was just opened."""
        self._known[interaction.id] = interaction
        self._known.move_to_end(interaction.id)
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)

    async def known(self, interaction_id: str) -> Interaction:
        """As `find`, but a cached interaction may have been removed since."""
        return self._known.get(interaction_id) or await self.find(interaction_id)

    async def find(self, interaction_id: str) -> Interaction:
        """The interaction as it was opened, without its turns. Raises NotFound."""
        try:
            interaction = Interaction.of(await self._datastore.event(opened_at(interaction_id)))
        except NotFound:
            raise no_interaction(interaction_id) from None
        if interaction.id != interaction_id:
            raise no_interaction(interaction_id)
        self.add(interaction)
        return interaction
