"""Arguments that do not fit: the compiled kernels refuse before they write, or compute what is meant; none crashes."""

from __future__ import annotations

import pytest

from batchnorm.ops import cpu
from ops.kernel_misfits import check_in_a_process_of_its_own

if not cpu.available:
    pytest.skip(cpu.reason, allow_module_level=True)


@pytest.mark.parametrize("what", ["refuse", "serve"])
def test_in_a_process_of_its_own(what: str) -> None:
    check_in_a_process_of_its_own(
        f"from batchnorm.ops.cpu import kernels; from ops.kernel_misfits import {what}; {what}(kernels)"
    )
