#pragma once

#include "inputs.h"

namespace deberta_scale {

// Fills in `output`, [B, Q, H, D], and the logarithms of the sums of exponentiated scores, [B, H, Q], where a query sees
// anything; the rest is left as it is.
template <typename T>
void attention_forward(const Inputs<T>& inputs, T* output, float* log_sums);

}  // namespace deberta_scale
