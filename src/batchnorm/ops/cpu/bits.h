// One bit a value, in the order in which a channel's values are counted: written and read in runs.
#pragma once

#include "pack.h"

namespace batchnorm::INSTRUCTION_SET {

// Writes runs of bits that go up. Whoever shares the bytes must be the same thread; a byte that two runs share holds
// zeros or bits of the run before.
class BitWriter {
 public:
  INLINE explicit BitWriter(uint8_t* bytes) : bytes_(bytes) {}

  INLINE void seek(int64_t position) {
    if (position == position_) return;
    finish();
    position_ = position;
    byte_ = bytes_ + position / 8;
    waiting_ = static_cast<int>(position % 8);
    bits_ = waiting_ ? *byte_ & ((1u << waiting_) - 1) : 0;
  }

  INLINE void put(uint32_t bits, int count) {
    bits_ |= static_cast<uint64_t>(bits & ((1u << count) - 1)) << waiting_;
    waiting_ += count;
    position_ += count;
    if (waiting_ >= 32) {
      const uint32_t whole = static_cast<uint32_t>(bits_);
      __builtin_memcpy(byte_, &whole, 4);
      byte_ += 4;
      bits_ >>= 32;
      waiting_ -= 32;
    }
  }

  INLINE void finish() {
    for (; waiting_ > 0; waiting_ -= 8, bits_ >>= 8) *byte_++ = static_cast<uint8_t>(bits_);
    waiting_ = 0;
  }

 private:
  uint8_t* bytes_;
  uint8_t* byte_ = nullptr;
  uint64_t bits_ = 0;
  int64_t position_ = -1;
  int waiting_ = 0;
};

// The sixteen bits from a position on; those behind the end are 0.
INLINE uint32_t read_bits(const uint8_t* bytes, const uint8_t* end, int64_t position) {
  const uint8_t* byte = bytes + position / 8;
  uint32_t found = 0;
  if (end - byte >= 4) {
    __builtin_memcpy(&found, byte, 4);
  } else {
    for (int i = 0; byte + i < end; ++i) found |= static_cast<uint32_t>(byte[i]) << (8 * i);
  }
  return (found >> (position % 8)) & 0xffff;
}

}  // namespace batchnorm::INSTRUCTION_SET
