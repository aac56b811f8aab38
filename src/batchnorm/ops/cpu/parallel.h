// torch's own threads: no second pool beside them.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>

namespace batchnorm {

// Below so many values a second thread costs more than it saves, as torch too finds (at::internal::GRAIN_SIZE).
constexpr int64_t kWorthThreads = 32768;

inline int64_t threads_for(int64_t values) {
  return values < kWorthThreads ? 1 : static_cast<int64_t>(torch::stable::get_num_threads());
}

// Calls run(task) for each task; tasks may run in any order and thread.
template <class Run>
void in_parallel(int64_t tasks, int64_t values, const Run& run) {
  if (tasks < 2 || values < kWorthThreads) {
    for (int64_t task = 0; task < tasks; ++task) run(task);
    return;
  }
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) run(task);
  });
}

}  // namespace batchnorm
