// The end of a block, LayerNorm(dropout(states) + residual), in one pass over memory each way. Of dropout nothing is
// kept: the backward pass makes its random numbers again.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <cmath>

#include "dropout.h"
#include "tiles.h"

namespace deberta_scale {
namespace {

using at::Tensor;

constexpr int64_t kRows = 64;  // that one part of the work has: the sums of gradients do not depend on threads

// Calls function(offset, mask) for 16 elements of a row after the other; `mask` leaves out what lies behind its end.
template <typename Function>
void for_lanes(int64_t width, const Function& function) {
  int64_t k = 0;
  for (; k + kLanes <= width; k += kLanes) function(k, static_cast<__mmask16>(0xFFFF));
  if (k < width) function(k, static_cast<__mmask16>((1u << (width - k)) - 1));
}

__m512 load_some(const float* source, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, source); }

__m512 load_some(const BFloat16* source, __mmask16 mask) {
  return from_bfloat16(_mm256_maskz_loadu_epi16(mask, source));
}

void store_some(float* target, __m512 value, __mmask16 mask) { _mm512_mask_storeu_ps(target, mask, value); }

void store_some(BFloat16* target, __m512 value, __mmask16 mask) {
  _mm256_mask_storeu_epi16(target, mask, to_bfloat16(value));
}

// As it will be read again.
template <typename T>
__m512 as_stored(__m512 value) {
  return sizeof(T) == 2 ? from_bfloat16(to_bfloat16(value)) : value;
}

// Of states: rows [N, E], worked on in parts.
struct Shape {
  int64_t rows, width;

  int64_t parts() const { return (rows + kRows - 1) / kRows; }
};

Shape shape_of(const Tensor& states) { return {states.numel() / std::max<int64_t>(states.size(-1), 1), states.size(-1)}; }

void check(const Tensor& tensor, const Tensor& like, const char* name) {
  TORCH_CHECK(
      tensor.is_contiguous() && tensor.sizes() == like.sizes() && tensor.scalar_type() == like.scalar_type(), name,
      " must be contiguous and like the states");
}

void check(const Tensor& states, const Tensor& weight) {
  TORCH_CHECK(
      weight.is_contiguous() && weight.dim() == 1 && weight.size(0) == states.size(-1) &&
          weight.scalar_type() == states.scalar_type(),
      "weight and bias must be vectors as wide as the states, of the same dtype");
}

template <typename T>
void forward_rows(
    const Shape& shape, const Dropout& dropout, const T* states, const T* residual, const T* weight, const T* bias,
    float epsilon, T* output, T* sums, float* means, float* scales) {
  const float width = static_cast<float>(shape.width);
  const __m512 scale_of_kept = _mm512_set1_ps(dropout.scale_of_kept());
  at::parallel_for(0, shape.parts(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin * kRows; row < std::min(end * kRows, shape.rows); ++row) {
      const int64_t first = row * shape.width;
      const KeptInRow kept(dropout, row);
      __m512 total = _mm512_setzero_ps();
      for_lanes(shape.width, [&](int64_t k, __mmask16 mask) {
        __m512 value = load_some(states + first + k, mask);
        if (dropout.drops()) value = _mm512_maskz_mul_ps(kept.from(k), value, scale_of_kept);
        value = as_stored<T>(_mm512_add_ps(value, load_some(residual + first + k, mask)));
        store_some(sums + first + k, value, mask);
        total = _mm512_add_ps(total, value);
      });
      const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(total) / width);
      __m512 squares = _mm512_setzero_ps();
      for_lanes(shape.width, [&](int64_t k, __mmask16 mask) {
        const __m512 centred = _mm512_maskz_sub_ps(mask, load_some(sums + first + k, mask), mean);
        squares = _mm512_fmadd_ps(centred, centred, squares);
      });
      const float scale = 1.0f / std::sqrt(_mm512_reduce_add_ps(squares) / width + epsilon);
      for_lanes(shape.width, [&](int64_t k, __mmask16 mask) {
        const __m512 centred = _mm512_sub_ps(load_some(sums + first + k, mask), mean);
        const __m512 normal = _mm512_mul_ps(centred, _mm512_set1_ps(scale));
        store_some(
            output + first + k, _mm512_fmadd_ps(normal, load_some(weight + k, mask), load_some(bias + k, mask)), mask);
      });
      means[row] = _mm512_cvtss_f32(mean);
      scales[row] = scale;
    }
  });
}

// Gradients of states, residual, weight and bias; the last two as sums of each part, [parts, 2, E].
template <typename T>
void backward_rows(
    const Shape& shape, const Dropout& dropout, const T* gradient, const T* sums, const float* means,
    const float* scales, const T* weight, T* of_states, T* of_residual, float* of_weights) {
  const float width = static_cast<float>(shape.width);
  const __m512 scale_of_kept = _mm512_set1_ps(dropout.scale_of_kept());
  at::parallel_for(0, shape.parts(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      float* of_weight = of_weights + part * 2 * shape.width;
      float* of_bias = of_weight + shape.width;
      std::fill(of_weight, of_weight + 2 * shape.width, 0.0f);
      for (int64_t row = part * kRows; row < std::min((part + 1) * kRows, shape.rows); ++row) {
        const int64_t first = row * shape.width;
        const __m512 mean = _mm512_set1_ps(means[row]), scale = _mm512_set1_ps(scales[row]);
        __m512 total = _mm512_setzero_ps(), along = _mm512_setzero_ps();
        for_lanes(shape.width, [&](int64_t k, __mmask16 mask) {
          const __m512 above = load_some(gradient + first + k, mask);
          const __m512 normal = _mm512_mul_ps(_mm512_sub_ps(load_some(sums + first + k, mask), mean), scale);
          const __m512 weighted = _mm512_mul_ps(above, load_some(weight + k, mask));
          total = _mm512_add_ps(total, weighted);
          along = _mm512_fmadd_ps(weighted, normal, along);
          store_some(of_weight + k, _mm512_fmadd_ps(above, normal, load_some(of_weight + k, mask)), mask);
          store_some(of_bias + k, _mm512_add_ps(above, load_some(of_bias + k, mask)), mask);
        });
        const __m512 mean_of_all = _mm512_set1_ps(_mm512_reduce_add_ps(total) / width);
        const __m512 mean_along = _mm512_set1_ps(_mm512_reduce_add_ps(along) / width);
        const KeptInRow kept(dropout, row);
        for_lanes(shape.width, [&](int64_t k, __mmask16 mask) {
          const __m512 normal = _mm512_mul_ps(_mm512_sub_ps(load_some(sums + first + k, mask), mean), scale);
          __m512 value = _mm512_mul_ps(load_some(gradient + first + k, mask), load_some(weight + k, mask));
          value = _mm512_sub_ps(value, _mm512_fmadd_ps(normal, mean_along, mean_of_all));
          value = _mm512_mul_ps(value, scale);
          store_some(of_residual + first + k, value, mask);
          if (dropout.drops())
            store_some(of_states + first + k, _mm512_maskz_mul_ps(kept.from(k), value, scale_of_kept), mask);
        });
      }
    }
  });
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor, Tensor> forward_of(
    const Tensor& states, const Tensor& residual, const Tensor& weight, const Tensor& bias, double epsilon,
    const Dropout& dropout) {
  const Shape shape = shape_of(states);
  Tensor output = at::empty_like(states), sums = at::empty_like(states);
  Tensor means = at::empty({shape.rows}, states.options().dtype(at::kFloat)), scales = at::empty_like(means);
  forward_rows<T>(
      shape, dropout, states.const_data_ptr<T>(), residual.const_data_ptr<T>(), weight.const_data_ptr<T>(),
      bias.const_data_ptr<T>(), static_cast<float>(epsilon), output.data_ptr<T>(), sums.data_ptr<T>(),
      means.data_ptr<float>(), scales.data_ptr<float>());
  return {output, sums, means, scales};
}

template <typename T>
std::tuple<Tensor, Tensor, Tensor, Tensor> backward_of(
    const Tensor& gradient, const Tensor& sums, const Tensor& means, const Tensor& scales, const Tensor& weight,
    const Dropout& dropout) {
  const Shape shape = shape_of(sums);
  Tensor of_residual = at::empty_like(sums);
  Tensor of_states = dropout.drops() ? at::empty_like(sums) : of_residual;
  Tensor parts = at::empty({shape.parts(), 2, shape.width}, means.options());
  backward_rows<T>(
      shape, dropout, gradient.const_data_ptr<T>(), sums.const_data_ptr<T>(), means.const_data_ptr<float>(),
      scales.const_data_ptr<float>(), weight.const_data_ptr<T>(), of_states.data_ptr<T>(), of_residual.data_ptr<T>(),
      parts.data_ptr<float>());
  const Tensor of_weights = parts.sum(0).to(sums.scalar_type());
  return {of_states, of_residual, of_weights[0], of_weights[1]};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(
    const Tensor& states, const Tensor& residual, const Tensor& weight, const Tensor& bias, double epsilon,
    double drop_probability, int64_t seed) {
  check(states, states, "states");
  check(residual, states, "residual");
  check(states, weight);
  check(states, bias);
  const Dropout dropout{drop_probability, static_cast<uint64_t>(seed)};
  return states.scalar_type() == at::kBFloat16 ? forward_of<BFloat16>(states, residual, weight, bias, epsilon, dropout)
                                               : forward_of<float>(states, residual, weight, bias, epsilon, dropout);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& gradient, const Tensor& sums, const Tensor& means, const Tensor& scales, const Tensor& weight,
    double drop_probability, int64_t seed) {
  check(gradient, sums, "the gradient");
  const Dropout dropout{drop_probability, static_cast<uint64_t>(seed)};
  return sums.scalar_type() == at::kBFloat16 ? backward_of<BFloat16>(gradient, sums, means, scales, weight, dropout)
                                             : backward_of<float>(gradient, sums, means, scales, weight, dropout);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(deberta_scale, library) {
  library.def(
      "residual_norm_forward(Tensor states, Tensor residual, Tensor weight, Tensor bias, float epsilon, "
      "float drop_probability, int seed) -> (Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "residual_norm_backward(Tensor gradient, Tensor sums, Tensor means, Tensor scales, Tensor weight, "
      "float drop_probability, int seed) -> (Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(deberta_scale, CPU, library) {
  library.impl("residual_norm_forward", &forward);
  library.impl("residual_norm_backward", &backward);
}

}  // namespace deberta_scale
