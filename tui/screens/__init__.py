"""The screens, in the order of their digits."""

from .base import RunScreen
from .controllers import Controllers
from .ledger import Ledger
from .memory import Memory
from .metrics import Metrics
from .overview import Overview
from .samples import Samples
from .services import Services

SCREENS: dict[str, type[RunScreen]] = {
    screen.NAME: screen for screen in (Overview, Metrics, Samples, Controllers, Services, Ledger, Memory)
}
