"""Flower's part in `ondol up`: the port it gets, and the line that says where it is. It holds up nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ondol.control.flower.address import url_file, where_the_password_is
from ondol.control.host import http_address, is_port_free
from ondol.settings import PREFIX, FlowerSettings, UpSettings, load_settings


@dataclass(frozen=True, slots=True)
class PlannedFlower:
    """The one Flower of this stack; with port 0 it takes a free one itself."""

    settings: FlowerSettings
    port: int

    @property
    def environment(self) -> dict[str, str]:
        """What its process is told beside what all are told."""
        return {f"{PREFIX}FLOWER_PORT": str(self.port)}

    def line(self) -> str:
        """Where it is, or will be in a moment, and how to get in."""
        file = url_file(self.settings.run_dir)
        if self.port != 0:
            address = http_address(self.settings.flower_host, self.port)
        else:  # its own choice, which it makes while the rest of the stack starts
            address = file.read_text(encoding="utf-8").strip() if file.exists() else f"its address will be in {file}"
        return f"Flower: {address}  ({where_the_password_is(self.settings)})"


def plan_flower(settings: UpSettings, say: Callable[[str], None]) -> PlannedFlower | None:
    """The Flower that is to be started, None if it is turned off; `say` hears of a port that is taken."""
    if not settings.flower:
        return None
    flower = load_settings(FlowerSettings, data_dir=settings.data_dir)
    url_file(flower.run_dir).unlink(missing_ok=True)  # of an earlier life that was killed
    host, port = flower.flower_host, flower.flower_port
    if port == 0 or is_port_free(host, port):
        return PlannedFlower(flower, port)
    say(f"Port {port} on {host} is taken: Flower takes a free one (ONDOL_FLOWER_PORT chooses another).")
    return PlannedFlower(flower, 0)
