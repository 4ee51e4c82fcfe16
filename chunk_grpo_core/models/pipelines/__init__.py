"""Models as diffusers' pipelines run them: what a family says of one, and all that they share."""

__all__: list[str] = []
