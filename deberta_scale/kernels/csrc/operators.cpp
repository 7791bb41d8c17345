// The kernel as operators of torch: torch.ops.deberta_scale.attention_forward and attention_backward.
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include "backward.h"
#include "forward.h"

namespace deberta_scale {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

template <typename T>
std::tuple<Tensor, Tensor> forward_of(const Arguments& arguments) {
  const Inputs<T> inputs = inputs_of<T>(arguments);
  const Shape& shape = inputs.shape;
  Tensor output = at::zeros_like(arguments.query);
  Tensor log_sums = at::zeros({shape.rows, shape.heads, shape.queries}, output.options().dtype(at::kFloat));
  attention_forward<T>(inputs, output.data_ptr<T>(), log_sums.data_ptr<float>());
  return {output, log_sums};
}

std::tuple<Tensor, Tensor> forward(
    const Tensor& query, const Tensor& key, const Tensor& value, const OptionalTensor& relative_key,
    const OptionalTensor& relative_query, const Tensor& document_starts, const Tensor& document_ends,
    const OptionalTensor& rows_by_distance, const OptionalTensor& query_places, double scale, double drop_probability,
    int64_t seed) {
  const Arguments arguments{
      query,           key,           value,            relative_key, relative_query,   document_starts,
      document_ends, rows_by_distance, query_places, scale, drop_probability, seed};
  return query.scalar_type() == at::kBFloat16 ? forward_of<BFloat16>(arguments) : forward_of<float>(arguments);
}

// Sums of a table's gradient over parts of the batch.
struct TableGradient {
  TableGradient(const OptionalTensor& table, int64_t parts)
      : parts(at::zeros({table ? parts : 0, table ? table->size(0) : 0, table ? table->size(1) : 0,
                         table ? table->size(2) : 0}, at::kFloat)) {}

  float* data() { return parts.size(0) ? parts.data_ptr<float>() : nullptr; }

  // One part after the other; empty without a table.
  Tensor sum(at::ScalarType type) const {
    if (!parts.size(0)) return at::empty({0}, type);
    Tensor sum = parts[0];
    for (int64_t part = 1; part < parts.size(0); ++part) sum.add_(parts[part]);
    return sum.to(type, /*non_blocking=*/false, /*copy=*/true);
  }

  Tensor parts;
};

template <typename T>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward_of(
    const Arguments& arguments, const Tensor& gradient, const Tensor& output, const Tensor& log_sums) {
  const Inputs<T> inputs = inputs_of<T>(arguments);
  TORCH_CHECK(
      gradient.is_contiguous() && gradient.sizes() == arguments.query.sizes() &&
          gradient.scalar_type() == arguments.query.scalar_type(),
      "the gradient must be contiguous and like the query");
  Tensor query = at::zeros_like(arguments.query), key = at::zeros_like(arguments.key);
  Tensor value = at::zeros_like(arguments.value);
  TableGradient relative_key(arguments.relative_key, parts_of(inputs.shape));
  TableGradient relative_query(arguments.relative_query, parts_of(inputs.shape));
  attention_backward<T>(
      inputs, {gradient.const_data_ptr<T>(), output.const_data_ptr<T>(), log_sums.const_data_ptr<float>()},
      {query.data_ptr<T>(), key.data_ptr<T>(), value.data_ptr<T>(), relative_key.data(), relative_query.data()});
  const auto type = gradient.scalar_type();
  return {query, key, value, relative_key.sum(type), relative_query.sum(type)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& gradient, const Tensor& output, const Tensor& log_sums, const Tensor& query, const Tensor& key,
    const Tensor& value, const OptionalTensor& relative_key, const OptionalTensor& relative_query,
    const Tensor& document_starts, const Tensor& document_ends, const OptionalTensor& rows_by_distance,
    const OptionalTensor& query_places, double scale, double drop_probability, int64_t seed) {
  const Arguments arguments{
      query,           key,           value,            relative_key, relative_query,   document_starts,
      document_ends, rows_by_distance, query_places, scale, drop_probability, seed};
  return query.scalar_type() == at::kBFloat16 ? backward_of<BFloat16>(arguments, gradient, output, log_sums)
                                              : backward_of<float>(arguments, gradient, output, log_sums);
}

}  // namespace

TORCH_LIBRARY(deberta_scale, library) {
  const std::string arguments =
      "Tensor query, Tensor key, Tensor value, Tensor? relative_key, Tensor? relative_query, Tensor document_starts, "
      "Tensor document_ends, Tensor? rows_by_distance, Tensor? query_places, float scale, float drop_probability, "
      "int seed";
  const std::string forward_schema = "attention_forward(" + arguments + ") -> (Tensor, Tensor)";
  const std::string backward_schema = "attention_backward(Tensor gradient, Tensor output, Tensor log_sums, " +
                                      arguments + ") -> (Tensor, Tensor, Tensor, Tensor, Tensor)";
  library.def(forward_schema.c_str());
  library.def(backward_schema.c_str());
}

TORCH_LIBRARY_IMPL(deberta_scale, CPU, library) {
  library.impl("attention_forward", &forward);
  library.impl("attention_backward", &backward);
}

}  // namespace deberta_scale
