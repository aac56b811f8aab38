// Which instruction sets this binary holds, which of them the processor runs, and which one is in use.
#pragma once

#include "types.h"

namespace batchnorm {

int instruction_set_count();
const char* instruction_set_name(int index);
bool instruction_set_runs(int index);

// Best first, so 0 unless the processor lacks it; −1 where none runs.
int chosen_instruction_set();
void choose_instruction_set(int index);

// The kernels in use.
const Kernels& kernels_for(Element element);

}  // namespace batchnorm
