#include "passes.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "elements.h"
#include "parallel.h"

namespace batchnorm {

namespace {

constexpr int64_t kLanes = 16;

bool is_double(const Pass& pass) { return pass.element == Element::Float64; }

double as_statistic(const Pass& pass, double value) {
  return is_double(pass) ? value : static_cast<double>(static_cast<float>(value));
}

// z = (x − mean)·scale + shift: the same for forward and backward, bit for bit.
struct Affine {
  double scale, shift;
};

template <class P>
Affine affine(const P& pass, int64_t channel, double var) {
  const double invstd = 1 / std::sqrt(var + pass.eps);
  const double weight = pass.weight ? pass.weight[channel] : 1;
  return {as_statistic(pass, weight * invstd), pass.bias ? pass.bias[channel] : 0};
}

const void* at(const void* tensor, int64_t values, Element element) {
  return tensor ? static_cast<const char*>(tensor) + values * size_of(element) : nullptr;
}

void* at(void* tensor, int64_t values, Element element) {
  return tensor ? static_cast<char*>(tensor) + values * size_of(element) : nullptr;
}

// Moments of what is not finite, as torch has them: sums in double, infinite where the values are. Also what float
// cannot square: any value may turn out so, and this is rare, so it is plain.
Moments plain_moments(const Pass& pass, int64_t channel) {
  const Layout& l = pass.layout;
  double count = 0, sum = 0, squares = 0, mean = 0;
  for (int round = 0; round < 2; ++round) {
    each_value(l, channel, [&](int64_t index) {
      const double value = read(pass.input, index, pass.element);
      if (round == 0) {
        count += 1;
        sum += value;
      } else {
        squares += (value - mean) * (value - mean);
      }
    });
    mean = sum / std::max(count, 1.0);
  }
  return {count, mean, squares};
}

// A channel's first valid value, for all of its parts alike.
double origin_of(const Pass& pass, int64_t channel) {
  const Layout& l = pass.layout;
  const std::vector<Segment>& segments = l.partition.segments;
  int64_t first = channel * l.inner;
  if (l.planes) {
    if (segments.empty()) return 0;
    first = channel * l.spatial + segments[0].offset;
  } else if (!segments.empty()) {
    first += segments[0].offset * l.width;
  } else if (l.rest == 0) {
    return 0;
  }
  const double value = read(pass.input, first, pass.element);
  return std::isfinite(value) ? value : 0;
}

// `found` has its mean counted from the channel's origin.
void finish_moments(const Pass& pass, int64_t channel, Moments found, double* mean, double* var) {
  if (found.count > 0) found.mean += origin_of(pass, channel);
  if (!std::isfinite(found.mean) || !std::isfinite(found.m2)) found = plain_moments(pass, channel);
  mean[channel] = as_statistic(pass, found.mean);
  var[channel] = as_statistic(pass, found.count > 0 ? found.m2 / found.count : 0);
}

// --- planes: a channel at a time, or a slice of one ------------------------------------------------------------------

PlaneWork plane_work(const Pass& pass, int64_t channel) {
  const Layout& l = pass.layout;
  PlaneWork work;
  work.input = at(pass.input, channel * l.spatial, pass.element);
  work.residual = at(pass.residual, channel * l.spatial, pass.element);
  if (pass.bits) {
    const int64_t bytes = l.bytes_of_bits() / l.channels;
    work.bits = pass.bits + channel * bytes;
    work.bits_end = work.bits + bytes;
  }
  work.segments = l.partition.segments.data();
  work.blocks = l.partition.blocks.data();
  work.begin = 0;
  work.end = static_cast<int64_t>(l.partition.blocks.size());
  work.activation = pass.activation;
  return work;
}

void restrict_to(PlaneWork& work, const Range& slice) {
  work.begin = slice.begin;
  work.end = slice.end;
}

// Whether threads share channels: where channels are too few to go round.
bool slices_channels(const Layout& l) {
  const int64_t threads = threads_for(l.values());
  return threads > 1 && l.channels < 2 * threads && l.partition.slices.size() > 1;
}

Moments channel_moments(const Pass& pass, int64_t channel) {
  Moments all;
  for (const Range& slice : pass.layout.partition.slices) {
    PlaneWork work = plane_work(pass, channel);
    work.origin = origin_of(pass, channel);
    restrict_to(work, slice);
    all = merged(all, pass.kernels.plane_moments(work));
  }
  return all;
}

void set_affine(PlaneWork& work, const Affine& a, double mean) {
  work.mean = mean;
  work.scale = a.scale;
  work.shift = a.shift;
}

PlaneWork normalize_work(const ForwardPass& pass, int64_t channel, const double* mean, const double* var) {
  PlaneWork work = plane_work(pass, channel);
  work.output = at(pass.output, channel * pass.layout.spatial, pass.element);
  set_affine(work, affine(pass, channel, var[channel]), mean[channel]);
  return work;
}

// Calls run(channel, slice) over all of them in parallel.
template <class Run>
void each_slice(const Layout& l, const Run& run) {
  const int64_t slices = static_cast<int64_t>(l.partition.slices.size());
  in_parallel(l.channels * slices, l.values(), [&](int64_t task) { run(task / slices, task % slices); });
}

void plane_forward(const ForwardPass& pass, double* mean, double* var, bool find, bool write) {
  const Layout& l = pass.layout;
  const auto kernel = pass.kernels.plane_normalize[static_cast<int>(pass.activation.kind)];
  if (!slices_channels(l)) {
    in_parallel(l.channels, l.values(), [&](int64_t channel) {
      if (find) finish_moments(pass, channel, channel_moments(pass, channel), mean, var);
      if (write) kernel(normalize_work(pass, channel, mean, var));
    });
    return;
  }
  const int64_t slices = static_cast<int64_t>(l.partition.slices.size());
  if (find) {
    std::vector<Moments> parts(l.channels * slices);
    each_slice(l, [&](int64_t channel, int64_t slice) {
      PlaneWork work = plane_work(pass, channel);
      work.origin = origin_of(pass, channel);
      restrict_to(work, l.partition.slices[slice]);
      parts[channel * slices + slice] = pass.kernels.plane_moments(work);
    });
    for (int64_t channel = 0; channel < l.channels; ++channel) {
      Moments all;
      for (int64_t slice = 0; slice < slices; ++slice) all = merged(all, parts[channel * slices + slice]);
      finish_moments(pass, channel, all, mean, var);
    }
  }
  if (!write) return;
  each_slice(l, [&](int64_t channel, int64_t slice) {
    PlaneWork work = normalize_work(pass, channel, mean, var);
    restrict_to(work, l.partition.slices[slice]);
    kernel(work);
  });
}

PlaneWork gradient_work(const BackwardPass& pass, int64_t channel) {
  PlaneWork work = plane_work(pass, channel);
  const int64_t first = channel * pass.layout.spatial;
  work.grad_output = at(pass.grad_output, first, pass.element);
  work.output = at(pass.grad_input, first, pass.element);
  work.grad_residual = at(pass.grad_residual, first, pass.element);
  set_affine(work, affine(pass, channel, pass.var[channel]), pass.mean[channel]);
  work.training = pass.training;
  return work;
}

// dx = weight·invstd·(dz − Σdz/n − x̂·Σ(dz·x̂)/n), as dz·of_grad + (x − mean)·of_input + constant.
struct InputGradient {
  double of_grad, of_input = 0, constant = 0;
};

InputGradient input_gradient(const BackwardPass& pass, int64_t channel, double count, double sum_dz, double sum_dzx) {
  // The output does not depend on a value that is alone in its channel; rounding would leave a trace of it.
  if (pass.training && count < 2) return {0};
  const double invstd = 1 / std::sqrt(pass.var[channel] + pass.eps);
  InputGradient g{(pass.weight ? pass.weight[channel] : 1) * invstd};
  if (pass.training) {
    g.of_input = -g.of_grad * invstd * sum_dzx / count;
    g.constant = -g.of_grad * sum_dz / count;
  }
  return g;
}

void set_gradient(PlaneWork& work, const InputGradient& g) {
  work.of_grad = g.of_grad;
  work.of_input = g.of_input;
  work.constant = g.constant;
}

// Σ dz·(x − mean) as Σ dz·x̂.
double standardized(const BackwardPass& pass, int64_t channel, double sum) {
  return sum / std::sqrt(pass.var[channel] + pass.eps);
}

void plane_backward(const BackwardPass& pass, double count, double* sum_dz, double* sum_dzx, bool find, bool write) {
  const Layout& l = pass.layout;
  const auto find_sums = pass.kernels.plane_grad_sums[static_cast<int>(pass.activation.kind)];
  const auto write_input = pass.kernels.plane_grad_input[static_cast<int>(pass.activation.kind)];
  const int64_t slices = static_cast<int64_t>(l.partition.slices.size());
  const auto gradient = [&](int64_t channel) {
    return pass.training ? input_gradient(pass, channel, count, sum_dz[channel], sum_dzx[channel])
                         : input_gradient(pass, channel, count, 0, 0);
  };
  const auto slice_sums = [&](int64_t channel, int64_t slice, double* sums) {
    PlaneWork work = gradient_work(pass, channel);
    restrict_to(work, l.partition.slices[slice]);
    find_sums(work, sums);
  };
  if (!slices_channels(l)) {
    in_parallel(l.channels, l.values(), [&](int64_t channel) {
      if (find) {
        // Slice by slice, or the sums would depend on who adds them up.
        double first = 0, second = 0;
        for (int64_t slice = 0; slice < slices; ++slice) {
          double sums[2] = {};
          slice_sums(channel, slice, sums);
          first += sums[0];
          second += sums[1];
        }
        sum_dz[channel] = first;
        sum_dzx[channel] = standardized(pass, channel, second);
      }
      if (write) {
        PlaneWork work = gradient_work(pass, channel);
        set_gradient(work, gradient(channel));
        write_input(work);
      }
    });
    return;
  }
  if (find) {
    std::vector<double> parts(2 * l.channels * slices);
    each_slice(l, [&](int64_t channel, int64_t slice) {
      slice_sums(channel, slice, &parts[2 * (channel * slices + slice)]);
    });
    for (int64_t channel = 0; channel < l.channels; ++channel) {
      double first = 0, second = 0;
      for (int64_t slice = 0; slice < slices; ++slice) {
        first += parts[2 * (channel * slices + slice)];
        second += parts[2 * (channel * slices + slice) + 1];
      }
      sum_dz[channel] = first;
      sum_dzx[channel] = standardized(pass, channel, second);
    }
  }
  if (!write) return;
  each_slice(l, [&](int64_t channel, int64_t slice) {
    PlaneWork work = gradient_work(pass, channel);
    restrict_to(work, l.partition.slices[slice]);
    set_gradient(work, gradient(channel));
    write_input(work);
  });
}

// --- a matrix: some rows of some columns at a time -------------------------------------------------------------------

// Vectors of a value a column, in the accumulator's type, padded to whole registers.
class ColumnVectors {
 public:
  ColumnVectors(const Pass& pass, int vectors) : double_(is_double(pass)), layout_(pass.layout) {
    const int64_t columns = std::max(layout_.width, layout_.rest);
    pitch_ = (columns + kLanes - 1) / kLanes * kLanes;
    data_.resize(vectors * pitch_ * (double_ ? sizeof(double) : sizeof(float)));
  }

  const void* operator[](int vector) const {
    return data_.data() + vector * pitch_ * (double_ ? sizeof(double) : sizeof(float));
  }

  void set(int vector, const double* channels) {
    double_ ? fill<double>(vector, channels) : fill<float>(vector, channels);
  }

 private:
  template <class A>
  void fill(int vector, const double* channels) {
    A* to = reinterpret_cast<A*>(data_.data()) + vector * pitch_;
    int64_t column = 0;
    while (column < pitch_) {
      for (int64_t channel = 0; channel < layout_.channels; ++channel) {
        for (int64_t k = 0; k < layout_.inner && column < pitch_; ++k) to[column++] = static_cast<A>(channels[channel]);
      }
    }
  }

  bool double_;
  const Layout& layout_;
  int64_t pitch_;
  std::vector<char> data_;
};

// One more, shorter row at the end.
const Segment kOneRow{0, 1, 0};
const Range kOneBlock{0, 1, 1};

// The parts that a matrix is walked in: slices of rows, the short row behind them, groups of columns.
class Tasks {
 public:
  explicit Tasks(const Layout& l) : l_(l), slices_(static_cast<int64_t>(l.partition.slices.size())) {
    const int64_t threads = threads_for(l.values());
    const int64_t wanted = threads > 1 && slices_ < 4 * threads ? 4 * threads / std::max<int64_t>(slices_, 1) + 1 : 1;
    group_ = std::max<int64_t>((l.width / wanted + 4 * kLanes - 1) / (4 * kLanes) * (4 * kLanes), 4 * kLanes);
    groups_ = (l.width + group_ - 1) / group_;
  }

  // Slices, the short row among them: partial sums have a row for each.
  int64_t slices() const { return slices_ + (l_.rest > 0); }
  double rows(int64_t slice) const {
    return slice < slices_ ? static_cast<double>(l_.partition.slices[slice].length) : 1.0;
  }
  int64_t columns(int64_t slice) const { return slice < slices_ ? l_.width : l_.rest; }

  // Calls run(work, slice): `work` has everything set that tells where.
  template <class Run>
  void each(const Run& run) const {
    in_parallel(slices_ * groups_ + (l_.rest > 0), l_.values(), [&](int64_t task) {
      ColumnWork work;
      int64_t slice = slices_;
      if (task < slices_ * groups_) {
        slice = task / groups_;
        work.segments = l_.partition.segments.data();
        work.blocks = l_.partition.blocks.data();
        work.begin = l_.partition.slices[slice].begin;
        work.end = l_.partition.slices[slice].end;
        work.first = task % groups_ * group_;
        work.last = std::min(work.first + group_, l_.width);
      } else {
        work.segments = &kOneRow;
        work.blocks = &kOneBlock;
        work.end = 1;
        work.last = l_.rest;
      }
      work.width = l_.width;
      run(work, slice);
    });
  }

 private:
  const Layout& l_;
  int64_t slices_, group_, groups_;
};

void set_tensors(ColumnWork& work, const Pass& pass, int64_t slice, const Tasks& tasks) {
  // The short row begins where the matrix ends; its indices begin at 0.
  const bool is_rest = pass.layout.rest > 0 && slice == tasks.slices() - 1;
  const int64_t first = is_rest ? pass.layout.rows * pass.layout.width : 0;
  work.input = at(pass.input, first, pass.element);
  work.residual = at(pass.residual, first, pass.element);
  work.bits = pass.bits ? pass.bits + first / 8 : nullptr;
  work.bits_end = pass.bits ? pass.bits + pass.layout.bytes_of_bits() : nullptr;
  work.activation = pass.activation;
}

int64_t first_of(const Pass& pass, int64_t slice, const Tasks& tasks) {
  const bool is_rest = pass.layout.rest > 0 && slice == tasks.slices() - 1;
  return is_rest ? pass.layout.rows * pass.layout.width : 0;
}

void column_moments(const Pass& pass, double* mean, double* var) {
  const Layout& l = pass.layout;
  const Tasks tasks(l);
  const int64_t columns = std::max(l.width, l.rest);
  const int64_t sums = std::max<int64_t>(tasks.slices(), 1) * columns;  // a mask may leave nothing
  std::vector<double> means(sums), m2s(sums), origins(columns);
  for (int64_t j = 0; j < columns; ++j) {
    // Of the first row of each channel, or all of its columns would merge from different origins.
    origins[j] = j < l.channels * l.inner ? origin_of(pass, l.channel_of(j)) : origins[j - l.channels * l.inner];
  }
  tasks.each([&](ColumnWork& work, int64_t slice) {
    set_tensors(work, pass, slice, tasks);
    work.origin = origins.data();
    work.first_sums = &means[slice * columns];
    work.second_sums = &m2s[slice * columns];
    pass.kernels.column_moments(work);
  });
  // Slices first, column by column; then the columns of each channel.
  std::vector<double> counts(columns, 0.0);
  for (int64_t slice = 1; slice < tasks.slices(); ++slice) {
    if (slice == 1) std::fill_n(counts.begin(), tasks.columns(0), tasks.rows(0));
    const double rows = tasks.rows(slice);
    const double* other_mean = &means[slice * columns];
    const double* other_m2 = &m2s[slice * columns];
    const double before = counts[0];
    const double share = rows / (before + rows);
    for (int64_t j = 0; j < tasks.columns(slice); ++j) {
      const double delta = other_mean[j] - means[j];
      means[j] += delta * share;
      m2s[j] += other_m2[j] + delta * delta * before * share;
      counts[j] += rows;
    }
  }
  if (tasks.slices() == 1) std::fill_n(counts.begin(), tasks.columns(0), tasks.rows(0));
  std::vector<Moments> found(l.channels);
  for (int64_t j = 0; j < columns; ++j) {
    Moments& channel = found[l.channel_of(j)];
    channel = merged(channel, {counts[j], means[j], m2s[j]});
  }
  for (int64_t channel = 0; channel < l.channels; ++channel) finish_moments(pass, channel, found[channel], mean, var);
}

// Mean, scale and shift of each column.
template <class P>
void set_vectors(ColumnVectors& vectors, const P& pass, const double* mean, const double* var) {
  const int64_t channels = pass.layout.channels;
  std::vector<double> scale(channels), shift(channels);
  for (int64_t channel = 0; channel < channels; ++channel) {
    const Affine a = affine(pass, channel, var[channel]);
    scale[channel] = a.scale;
    shift[channel] = a.shift;
  }
  vectors.set(0, mean);
  vectors.set(1, scale.data());
  vectors.set(2, shift.data());
}

void column_normalize(const ForwardPass& pass, const double* mean, const double* var) {
  const Layout& l = pass.layout;
  ColumnVectors vectors(pass, 3);
  set_vectors(vectors, pass, mean, var);
  const Tasks tasks(l);
  const auto kernel = pass.kernels.column_normalize[static_cast<int>(pass.activation.kind)];
  tasks.each([&](ColumnWork& work, int64_t slice) {
    set_tensors(work, pass, slice, tasks);
    work.output = at(pass.output, first_of(pass, slice, tasks), pass.element);
    work.mean = vectors[0];
    work.scale = vectors[1];
    work.shift = vectors[2];
    kernel(work);
  });
}

void set_gradient(ColumnWork& work, const BackwardPass& pass, int64_t slice, const Tasks& tasks,
                  const ColumnVectors& vectors) {
  set_tensors(work, pass, slice, tasks);
  work.grad_output = at(pass.grad_output, first_of(pass, slice, tasks), pass.element);
  work.mean = vectors[0];
  work.scale = vectors[1];
  work.shift = vectors[2];
}

void column_grad_sums(const BackwardPass& pass, double* sum_dz, double* sum_dzx) {
  const Layout& l = pass.layout;
  ColumnVectors vectors(pass, 3);
  set_vectors(vectors, pass, pass.mean, pass.var);
  const Tasks tasks(l);
  const int64_t columns = std::max(l.width, l.rest);
  const int64_t sums = std::max<int64_t>(tasks.slices(), 1) * columns;  // a mask may leave nothing
  std::vector<double> first(sums), second(sums);
  const auto kernel = pass.kernels.column_grad_sums[static_cast<int>(pass.activation.kind)];
  tasks.each([&](ColumnWork& work, int64_t slice) {
    set_gradient(work, pass, slice, tasks, vectors);
    work.first_sums = &first[slice * columns];
    work.second_sums = &second[slice * columns];
    kernel(work);
  });
  std::fill_n(sum_dz, l.channels, 0.0);
  std::fill_n(sum_dzx, l.channels, 0.0);
  for (int64_t slice = 1; slice < tasks.slices(); ++slice) {
    for (int64_t j = 0; j < tasks.columns(slice); ++j) {
      first[j] += first[slice * columns + j];
      second[j] += second[slice * columns + j];
    }
  }
  for (int64_t j = 0; j < columns; ++j) {
    sum_dz[l.channel_of(j)] += first[j];
    sum_dzx[l.channel_of(j)] += second[j];
  }
  for (int64_t channel = 0; channel < l.channels; ++channel) {
    sum_dzx[channel] = standardized(pass, channel, sum_dzx[channel]);
  }
}

void column_grad_input(const BackwardPass& pass, double count, const double* sum_dz, const double* sum_dzx) {
  const Layout& l = pass.layout;
  ColumnVectors vectors(pass, 6);
  set_vectors(vectors, pass, pass.mean, pass.var);
  std::vector<double> of_grad(l.channels), of_input(l.channels), constant(l.channels);
  for (int64_t channel = 0; channel < l.channels; ++channel) {
    const InputGradient g = input_gradient(pass, channel, count, pass.training ? sum_dz[channel] : 0,
                                           pass.training ? sum_dzx[channel] : 0);
    of_grad[channel] = g.of_grad;
    of_input[channel] = g.of_input;
    constant[channel] = g.constant;
  }
  vectors.set(3, of_grad.data());
  vectors.set(4, of_input.data());
  vectors.set(5, constant.data());
  const Tasks tasks(l);
  const auto kernel = pass.kernels.column_grad_input[static_cast<int>(pass.activation.kind)];
  tasks.each([&](ColumnWork& work, int64_t slice) {
    set_gradient(work, pass, slice, tasks, vectors);
    work.output = at(pass.grad_input, first_of(pass, slice, tasks), pass.element);
    work.grad_residual = at(pass.grad_residual, first_of(pass, slice, tasks), pass.element);
    work.training = pass.training;
    work.of_grad = vectors[3];
    work.of_input = vectors[4];
    work.constant = vectors[5];
    kernel(work);
  });
}

void clear(const Pass& pass, void* tensor) {
  // What no segment covers is 0.
  if (tensor && pass.layout.masked) std::memset(tensor, 0, pass.layout.values() * size_of(pass.element));
}

}  // namespace

void moments(const Pass& pass, double* mean, double* var) {
  if (pass.layout.values() == 0) {
    std::fill_n(mean, pass.layout.channels, 0.0);
    std::fill_n(var, pass.layout.channels, 0.0);
  } else if (pass.layout.planes) {
    ForwardPass forward{pass};
    plane_forward(forward, mean, var, true, false);
  } else {
    column_moments(pass, mean, var);
  }
}

void normalize(const ForwardPass& pass, const double* mean, const double* var) {
  clear(pass, pass.output);
  if (pass.layout.planes) {
    plane_forward(pass, const_cast<double*>(mean), const_cast<double*>(var), false, true);
  } else {
    column_normalize(pass, mean, var);
  }
}

void moments_and_normalize(const ForwardPass& pass, double* mean, double* var) {
  if (pass.layout.planes && pass.layout.values() > 0) {
    clear(pass, pass.output);
    plane_forward(pass, mean, var, true, true);
    return;
  }
  moments(pass, mean, var);
  normalize(pass, mean, var);
}

void grad_sums(const BackwardPass& pass, double* sum_dz, double* sum_dzx) {
  if (pass.layout.planes) {
    plane_backward(pass, 0, sum_dz, sum_dzx, true, false);
  } else {
    column_grad_sums(pass, sum_dz, sum_dzx);
  }
}

void grad_input(const BackwardPass& pass, double count, const double* sum_dz, const double* sum_dzx) {
  clear(pass, pass.grad_input);
  clear(pass, pass.grad_residual);
  if (pass.layout.planes) {
    plane_backward(pass, count, const_cast<double*>(sum_dz), const_cast<double*>(sum_dzx), false, true);
  } else {
    column_grad_input(pass, count, sum_dz, sum_dzx);
  }
}

void grad_sums_and_input(const BackwardPass& pass, double* sum_dz, double* sum_dzx) {
  const bool write = pass.grad_input || pass.grad_residual;
  const double count = static_cast<double>(pass.layout.count());
  if (pass.layout.planes && write && sum_dz) {
    clear(pass, pass.grad_input);
    clear(pass, pass.grad_residual);
    plane_backward(pass, count, sum_dz, sum_dzx, true, true);
    return;
  }
  if (sum_dz) grad_sums(pass, sum_dz, sum_dzx);
  if (!write) return;
  BackwardPass rest = pass;
  rest.training = pass.training && sum_dz;  // the residual's gradient alone needs no sums
  grad_input(rest, count, sum_dz, sum_dzx);
}

}  // namespace batchnorm
