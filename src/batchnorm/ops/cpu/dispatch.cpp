#include "dispatch.h"

#include <atomic>
#include <stdexcept>

namespace batchnorm {

#if defined(__x86_64__)
extern const Kernels* const kAvx512;
extern const Kernels* const kAvx2;
#elif defined(__aarch64__)
extern const Kernels* const kNeon;
#endif

namespace {

struct InstructionSet {
  const char* name;
  const Kernels* const* table;
  bool (*runs)();
};

const InstructionSet kSets[] = {
#if defined(__x86_64__)
    {"avx512", &kAvx512,
     [] {
       return static_cast<bool>(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"));
     }},
    {"avx2", &kAvx2,
     [] { return static_cast<bool>(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                                   __builtin_cpu_supports("f16c")); }},
#elif defined(__aarch64__)
    {"neon", &kNeon, [] { return true; }},
#endif
    {nullptr, nullptr, nullptr},  // an array cannot be empty
};

constexpr int kCount = static_cast<int>(sizeof(kSets) / sizeof(kSets[0])) - 1;

int best() {
  for (int index = 0; index < kCount; ++index) {
    if (kSets[index].runs()) return index;
  }
  return -1;
}

std::atomic<int>& chosen() {
  static std::atomic<int> index{best()};
  return index;
}

}  // namespace

int instruction_set_count() { return kCount; }
const char* instruction_set_name(int index) { return kSets[index].name; }
bool instruction_set_runs(int index) { return kSets[index].runs(); }
int chosen_instruction_set() { return chosen(); }
void choose_instruction_set(int index) { chosen() = index; }

const Kernels& kernels_for(Element element) {
  const int index = chosen();
  if (index < 0) throw std::runtime_error("batchnorm: this processor has none of the instruction sets of the kernels.");
  return (*kSets[index].table)[static_cast<int>(element)];
}

}  // namespace batchnorm
