// Passes over a matrix: some rows of some columns at a time.

#include "parallel.h"
#include "pass_parts.h"

namespace batchnorm {

namespace {

// Calls visit(column, channel) for each column. (Two integer divisions tell a column's channel too, and took
// an eighth of a forward pass over 128 rows.)
template <class Visit>
void each_column(const Layout& l, int64_t columns, Visit visit) {
  int64_t column = 0;
  while (column < columns) {
    for (int64_t channel = 0; channel < l.channels && column < columns; ++channel) {
      for (int64_t k = 0; k < l.inner && column < columns; ++k) visit(column++, channel);
    }
  }
}

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

// Where the indices of a slice begin: the short row begins where the matrix ends, and its own begin at 0.
int64_t first_of(const Pass& pass, int64_t slice, const Tasks& tasks) {
  const bool is_rest = pass.layout.rest > 0 && slice == tasks.slices() - 1;
  return is_rest ? pass.layout.rows * pass.layout.width : 0;
}

void set_tensors(ColumnWork& work, const Pass& pass, int64_t slice, const Tasks& tasks) {
  const int64_t first = first_of(pass, slice, tasks);
  work.input = at(pass.input, first, pass.element);
  work.residual = at(pass.residual, first, pass.element);
  work.bits = pass.bits ? pass.bits + first / 8 : nullptr;
  work.bits_end = pass.bits ? pass.bits + pass.layout.bytes_of_bits() : nullptr;
  work.activation = pass.activation;
}

}  // namespace

void column_moments(const Pass& pass, double* mean, double* var) {
  const Layout& l = pass.layout;
  const Tasks tasks(l);
  const int64_t columns = std::max(l.width, l.rest);
  const int64_t sums = std::max<int64_t>(tasks.slices(), 1) * columns;  // a mask may leave nothing
  std::vector<double> means(sums), m2s(sums), origins(columns);
  // Of the first row of each channel, or all of its columns would merge from different origins.
  std::vector<double> firsts(l.channels);
  for (int64_t channel = 0; channel < l.channels; ++channel) firsts[channel] = origin_of(pass, channel);
  each_column(l, columns, [&](int64_t j, int64_t channel) { origins[j] = firsts[channel]; });
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
  each_column(l, columns, [&](int64_t j, int64_t channel) {
    found[channel] = merged(found[channel], {counts[j], means[j], m2s[j]});
  });
  for (int64_t channel = 0; channel < l.channels; ++channel) finish_moments(pass, channel, found[channel], mean, var);
}

namespace {

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

}  // namespace

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

namespace {

void set_gradient(ColumnWork& work, const BackwardPass& pass, int64_t slice, const Tasks& tasks,
                  const ColumnVectors& vectors) {
  set_tensors(work, pass, slice, tasks);
  work.grad_output = at(pass.grad_output, first_of(pass, slice, tasks), pass.element);
  work.mean = vectors[0];
  work.scale = vectors[1];
  work.shift = vectors[2];
}

}  // namespace

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
  each_column(l, columns, [&](int64_t j, int64_t channel) {
    sum_dz[channel] += first[j];
    sum_dzx[channel] += second[j];
  });
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

}  // namespace batchnorm
