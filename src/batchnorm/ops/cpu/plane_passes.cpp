// Passes over planes: a channel at a time, or, where channels are too few to go round, a slice of one.

#include "parallel.h"
#include "pass_parts.h"

namespace batchnorm {

namespace {

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

}  // namespace

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

namespace {

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

void set_gradient(PlaneWork& work, const InputGradient& g) {
  work.of_grad = g.of_grad;
  work.of_input = g.of_input;
  work.constant = g.constant;
}

}  // namespace

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

}  // namespace batchnorm
