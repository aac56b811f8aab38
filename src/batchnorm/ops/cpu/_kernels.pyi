"""The compiled CPU kernels (module.cpp): which instruction set computes."""

def instruction_sets() -> tuple[str, ...]:
    """What this binary holds and this processor runs, best first."""

def instruction_set() -> str:
    """The one that computes; a ``RuntimeError`` where the processor runs none."""

def use(name: str) -> None:
    """Let another one compute from here on, in every thread; a ``ValueError`` where it cannot."""
