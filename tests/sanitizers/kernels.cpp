// Forward and backward over awkward shapes: compiled with sanitizers and run by kernels.py.
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <cstdio>

#include "backward.h"
#include "forward.h"

namespace {

using deberta_scale::Arguments;

void check_finite(std::initializer_list<at::Tensor> results) {
  for (const at::Tensor& result : results)
    TORCH_CHECK(result.isfinite().all().item<bool>(), "a result is not finite");
}

// Documents of `sizes` in a row of `length`, every third place asking when `some_ask`.
template <typename T>
void run(
    const std::vector<int64_t>& sizes, int64_t length, int64_t head_size, bool c2p, bool p2c, bool some_ask,
    double drop_probability) {
  const int64_t rows = 2, heads = 2, table_rows = 7;
  const auto options = at::TensorOptions().dtype(c10::CppTypeToScalarType<T>::value);
  at::Tensor starts = at::zeros({rows, length}, at::kLong), ends = at::zeros({rows, length}, at::kLong);
  std::vector<int64_t> asking;
  int64_t place = 0;
  for (const int64_t size : sizes) {
    starts[0].slice(0, place, place + size).fill_(place);
    ends[0].slice(0, place, place + size).fill_(place + size);
    for (int64_t query = place; query < place + size; query += 3) asking.push_back(query);
    place += size;
  }
  std::optional<at::Tensor> places, relative_key, relative_query;
  int64_t queries = length;
  if (some_ask) {
    queries = static_cast<int64_t>(asking.size());
    places = at::full({rows, queries}, -1, at::kLong);
    places->select(0, 0).copy_(at::tensor(asking, at::kLong));
  }
  if (c2p) relative_key = at::randn({table_rows, heads, head_size}).to(options);
  if (p2c) relative_query = at::randn({table_rows, heads, head_size}).to(options);
  // distances of 3 and more share a row: in long documents whole tiles have one
  const std::optional<at::Tensor> by_distance = at::arange(4 - length, length + 3).clamp(0, table_rows - 1);
  const at::Tensor query = at::randn({rows, queries, heads, head_size}).to(options);
  const at::Tensor key = at::randn({rows, length, heads, head_size}).to(options);
  const at::Tensor value = at::randn({rows, length, heads, head_size}).to(options);
  const Arguments arguments{query, key,         value,  relative_key, relative_query,   starts,
                            ends,  by_distance, places, 0.2,          drop_probability, 5};
  const auto inputs = deberta_scale::inputs_of<T>(arguments);
  at::Tensor output = at::zeros_like(query), log_sums = at::zeros({rows, heads, queries});
  deberta_scale::attention_forward<T>(inputs, output.data_ptr<T>(), log_sums.data_ptr<float>());
  at::Tensor of_query = at::zeros_like(query), of_key = at::zeros_like(key), of_value = at::zeros_like(value);
  at::Tensor of_tables = at::zeros({2, deberta_scale::parts_of(inputs.shape), table_rows, heads, head_size});
  deberta_scale::attention_backward<T>(
      inputs, {query.const_data_ptr<T>(), output.const_data_ptr<T>(), log_sums.const_data_ptr<float>()},
      {of_query.data_ptr<T>(), of_key.data_ptr<T>(), of_value.data_ptr<T>(), of_tables[0].data_ptr<float>(),
       of_tables[1].data_ptr<float>()});
  check_finite({output, of_query, of_key, of_value, of_tables});
}

template <typename T>
void run_residual_norm(int64_t rows, int64_t width, double drop_probability) {
  using at::Tensor;
  using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;
  using Forward =
      Four(const Tensor&, const Tensor&, const Tensor&, const Tensor&, double, double, int64_t);
  using Backward =
      Four(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, double, int64_t);
  auto& operators = c10::Dispatcher::singleton();
  const auto forward = operators.findSchemaOrThrow("deberta_scale::residual_norm_forward", "").typed<Forward>();
  const auto backward = operators.findSchemaOrThrow("deberta_scale::residual_norm_backward", "").typed<Backward>();
  const auto options = at::TensorOptions().dtype(c10::CppTypeToScalarType<T>::value);
  const Tensor states = at::randn({rows, width}).to(options), weight = at::randn({width}).to(options);
  const auto [output, sums, means, scales] = forward.call(states, states, weight, weight, 1e-7, drop_probability, 5);
  const auto [of_states, of_residual, of_weight, of_bias] =
      backward.call(output, sums, means, scales, weight, drop_probability, 5);
  check_finite({output, of_states, of_residual, of_weight, of_bias});
}

template <typename T>
void run_all() {
  run_residual_norm<T>(1, 1, 0.0);
  run_residual_norm<T>(65, 17, 0.0);
  run_residual_norm<T>(130, 48, 0.3);
  run<T>({1}, 1, 1, true, true, false, 0.0);
  run<T>({33, 31, 2}, 70, 5, true, true, false, 0.1);
  run<T>({33, 31, 2}, 70, 40, true, true, true, 0.1);
  run<T>({129, 160}, 289, 64, true, true, false, 0.0);
  run<T>({129, 160}, 300, 16, true, true, true, 0.0);
  run<T>({128}, 128, 32, true, false, false, 0.5);
  run<T>({200}, 200, 32, false, true, true, 0.5);
  run<T>({40}, 64, 32, false, false, false, 0.0);
  run<T>({}, 20, 8, true, true, false, 0.0);
}

}  // namespace

int main() {
  run_all<float>();
  run_all<c10::BFloat16>();
  std::puts("nothing found");
}
