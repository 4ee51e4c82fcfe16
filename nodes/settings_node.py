"""A settings node: a table of inputs, laid over the settings that come in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from comfy_api.latest import io

from .patch import Patch, check_patch, in_force, plain
from .setting_inputs import SettingInput

__all__ = ["SettingsNode"]


class SettingsNode(io.ComfyNode):
    """Settings -> settings, with those that somebody set."""

    SETTINGS: ClassVar[Sequence[SettingInput]] = ()
    ALWAYS: ClassVar[Patch] = {}
    """What the node sets whatever its inputs say."""
    LEFT_OUT: ClassVar[tuple[str, ...]] = ()
    """Beginnings of the keys that have no effect behind this node: what comes in is left out."""

    @classmethod
    def execute(cls, settings: Patch | None = None, **inputs: Any) -> io.NodeOutput:
        """Lay what was set over the settings that come in, and say what is in force.

        Returns:
            The patch and a text; the page shows the lines of the text in the node.

        Raises:
            ValueError: A value is out of range or contradicts another.
        """
        left_out = {k: v for k, v in (settings or {}).items() if k.startswith(cls.LEFT_OUT)}
        incoming = {k: v for k, v in (settings or {}).items() if k not in left_out}
        set_here = dict(cls.ALWAYS)
        for setting in cls.SETTINGS:
            set_here |= setting.patch(inputs.get(setting.name))
        patch = {**incoming, **set_here}
        try:
            check_patch(patch)
        except ValueError as error:
            names = [setting.name for setting in cls.SETTINGS if setting.key in set_here]
            raise ValueError(f"{error} (this node sets {', '.join(names) or 'nothing'})") from error
        rows = [
            {"key": key, "value": setting.shown(value), "source": source}
            for setting in cls.SETTINGS
            for key, value, source in in_force(setting.keys, set_here, incoming)
        ]
        rows += [
            {"key": key, "value": plain(value), "source": "this node"}
            for key, value in cls.ALWAYS.items()
        ]
        rows += [
            {"key": key, "value": "not used", "source": "left out by this node"} for key in left_out
        ]
        text = "\n".join("{key} = {value}   [{source}]".format(**row) for row in rows)
        return io.NodeOutput(patch, text, ui={"chunk_grpo_settings": rows})
