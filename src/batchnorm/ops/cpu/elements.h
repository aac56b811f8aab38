// Single values, read and written without regard to speed: parameters, buffers, and what is not finite.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstring>

#include "layout.h"

namespace batchnorm {

inline int64_t size_of(Element element) {
  constexpr int64_t sizes[] = {4, 8, 2, 2};
  return sizes[static_cast<int>(element)];
}

// The type that statistics of such an input are kept in.
inline Element statistics_of(Element element) {
  return element == Element::Float64 ? Element::Float64 : Element::Float32;
}

template <class T>
double read_as(const void* data, int64_t index) {
  return static_cast<double>(static_cast<const T*>(data)[index]);
}

inline double read(const void* data, int64_t index, Element element) {
  switch (element) {
    case Element::Float32: return read_as<float>(data, index);
    case Element::Float64: return read_as<double>(data, index);
    case Element::BFloat16: return static_cast<double>(static_cast<float>(static_cast<const c10::BFloat16*>(data)[index]));
    default: return static_cast<double>(static_cast<float>(static_cast<const c10::Half*>(data)[index]));
  }
}

inline void write(void* data, int64_t index, Element element, double value) {
  switch (element) {
    case Element::Float32: static_cast<float*>(data)[index] = static_cast<float>(value); break;
    case Element::Float64: static_cast<double*>(data)[index] = value; break;
    case Element::BFloat16: static_cast<c10::BFloat16*>(data)[index] = static_cast<float>(value); break;
    default: static_cast<c10::Half*>(data)[index] = static_cast<float>(value); break;
  }
}

// Calls visit(index) for each valid value of a channel, in the order of memory.
template <class Visit>
void each_value(const Layout& l, int64_t channel, Visit visit) {
  const int64_t period = l.channels * l.inner;
  const auto visit_columns = [&](int64_t start, int64_t columns) {
    for (int64_t first = channel * l.inner; first < columns; first += period) {
      for (int64_t k = 0; k < l.inner; ++k) visit(start + first + k);
    }
  };
  for (const Segment& segment : l.partition.segments) {
    for (int64_t i = 0; i < segment.length; ++i) {
      if (l.planes) {
        visit(channel * l.spatial + segment.offset + i);
      } else {
        visit_columns((segment.offset + i) * l.width, l.width);
      }
    }
  }
  visit_columns(l.rows * l.width, l.rest);
}

}  // namespace batchnorm
