"""`client.webhooks`, blocking and for asyncio: the secret that signs the project's webhooks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ondol.client import webhook_flows

if TYPE_CHECKING:
    from ondol.client.async_client import AsyncOndol
    from ondol.client.sync_client import Ondol


class Webhooks:
    """Webhooks of this project."""

    def __init__(self, client: Ondol) -> None:
        self._client = client

    def secret(self) -> str:
        """The secret for `verify_webhook`, `whsec_…`; made when it is first asked for."""
        return self._client.run(webhook_flows.get_secret(self._client.policy))

    def rotate_secret(self) -> str:
        """A fresh secret, which signs every try from now on; the one before signs nothing any more."""
        return self._client.run(webhook_flows.rotate_secret(self._client.policy))


class AsyncWebhooks:
    """Webhooks of this project; each method does what its twin in `Webhooks` does."""

    def __init__(self, client: AsyncOndol) -> None:
        self._client = client

    async def secret(self) -> str:
        """The secret for `verify_webhook`, `whsec_…`; made when it is first asked for."""
        return await self._client.run(webhook_flows.get_secret(self._client.policy))

    async def rotate_secret(self) -> str:
        """A fresh secret, which signs every try from now on; the one before signs nothing any more."""
        return await self._client.run(webhook_flows.rotate_secret(self._client.policy))
