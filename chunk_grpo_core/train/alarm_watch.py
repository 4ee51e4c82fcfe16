"""Whoever keeps the rows of a run that goes on, tells of alarms, and says when one stops it."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from .alarms import Alarm, standing_alarms
from .config import TrainConfig
from .events import AlarmRaised, Listener

__all__ = ["AlarmWatch"]

log = logging.getLogger(__name__)


class AlarmWatch:
    """Judges each new row together with those before it, of this process alone."""

    def __init__(self, config: TrainConfig, listen: Listener) -> None:
        self._config, self._listen = config, listen
        self._rows: list[Mapping[str, object]] = []
        self._standing: frozenset[str] = frozenset()

    def judge(self, row: Mapping[str, object]) -> Alarm | None:
        """Tell of alarms that are new with this row.

        Returns:
            One that ``run.stop_on`` names, if it stands.
        """
        self._rows.append(row)
        standing = {alarm.name: alarm for alarm in standing_alarms(self._rows, self._config)}
        for name, alarm in standing.items():
            if name not in self._standing:
                log.warning("%s", alarm.text)
                self._listen(AlarmRaised(alarm))
        self._standing = frozenset(standing)
        stopping = [name for name in self._config.run.stop_on if name in standing]
        return standing[stopping[0]] if stopping else None
