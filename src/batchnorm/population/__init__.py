"""Statistics of a network as a whole: estimated anew, frozen, merged over ranks, adapted to other data."""

__all__: list[str] = []
