"""Arguments that do not fit: the Triton kernels refuse before they launch, or compute what is meant; none crashes."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from ops.kernel_misfits import check_in_a_process_of_its_own
from ops.triton_interpreter import is_interpreted

if not is_interpreted:
    pytest.skip("Triton compiles here: what it refuses it refuses before that", allow_module_level=True)

SERVING = (
    "from batchnorm.ops.triton import kernels\n"
    "from ops import kernel_misfits\n"
    "from ops.triton_serving import serving\n"
    "with serving():\n"
)


def test_misfits_are_refused() -> None:
    """But a tensor whose memory somebody took away: an address costs more to ask for than a shape."""
    check_in_a_process_of_its_own(SERVING + "    kernel_misfits.refuse(kernels, left_out=('no memory',))")


def test_negated_tensors_are_served() -> None:
    """Whose memory holds other values than they have."""
    check_in_a_process_of_its_own(SERVING + "    kernel_misfits.serve(kernels, ('negative',), 'direct')", least=15)


@pytest.mark.slow
def test_other_guises_of_the_same_values_are_served() -> None:
    check_in_a_process_of_its_own(SERVING + "    kernel_misfits.serve(kernels)")
