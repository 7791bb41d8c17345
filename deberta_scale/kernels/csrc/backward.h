#pragma once

#include "inputs.h"

namespace deberta_scale {

// Rows of the batch are added up in this many parts at most, each in its own order and the parts in theirs, so that
// gradients of the tables are the same bits whatever the number of threads.
constexpr int64_t kParts = 4;

inline int64_t parts_of(const Shape& shape) { return std::min(kParts, std::max<int64_t>(shape.rows, 1)); }

// What forward gave, and the gradient of its output.
template <typename T>
struct Upstream {
  const T *gradient, *output;
  const float* log_sums;
};

// Gradients to be filled in. Those of queries, keys and values where a document has them; the tables' are sums in fp32,
// zeros at first, for each part: [parts, R, H, D], null without the table.
template <typename T>
struct Gradients {
  T *query, *key, *value;
  float *relative_key, *relative_query;
};

template <typename T>
void attention_backward(const Inputs<T>& inputs, const Upstream<T>& upstream, const Gradients<T>& gradients);

}  // namespace deberta_scale
