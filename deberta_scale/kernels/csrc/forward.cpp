#include "forward.h"

#include <ATen/Parallel.h>

#include <cmath>

#include "scores.h"

namespace deberta_scale {
namespace {

// Attention of one document and head after the other, with what one thread needs for it. A tile of queries meets the
// keys in tiles; what it has summed up so far is rescaled whenever a larger score is found.
template <typename T>
class Forward {
 public:
  Forward(const Inputs<T>& inputs, T* output, float* log_sums)
      : inputs_(inputs),
        output_(output),
        log_sums_(log_sums),
        head_size_(inputs.shape.padded_head),
        scores_(inputs, /*backward=*/false),
        value_rows_(inputs.shape.padded_length * head_size_),
        packed_values_(inputs.shape.padded_length * head_size_),
        probabilities_(kStrip * kTileStride),
        sums_of_values_(kTile * head_size_),
        largest_(kTile),
        sums_(kTile) {}

  void begin_head(int64_t head) { scores_.begin_head(head); }

  void attend(const Document& document, int64_t head) {
    if (!document.num_queries) return;
    scores_.begin_document(document, head);
    const int64_t keys = round_up(document.num_keys, kStrip);
    load_rows(
        inputs_.value + inputs_.key_offset(document, head), inputs_.stride(), document.num_keys,
        inputs_.shape.head_size, value_rows_.at(0), keys, head_size_);
    pack_rows(value_rows_.at(0), keys, head_size_, head_size_, packed_values_.at(0));
    for (int64_t first = 0; first < document.num_queries; first += kTile)
      attend(document, head, queries_of(document, first, kTile, inputs_.shape.padded_length));
  }

 private:
  void attend(const Document& document, int64_t head, const Queries& tile) {
    std::fill(largest_.at(0), largest_.at(kTile), -std::numeric_limits<float>::infinity());
    std::fill(sums_.at(0), sums_.at(kTile), 0.0f);
    std::fill(sums_of_values_.at(0), sums_of_values_.at(kTile * head_size_), 0.0f);
    for (int64_t first_key = 0; first_key < document.num_keys; first_key += kTile) {
      const Keys keys = keys_of(document, first_key);
      scores_.begin_tile(document, tile, keys);
      for (int64_t first = 0; first < tile.count; first += kStrip) {
        const Queries strip =
            queries_of(document, tile.first + first, std::min(kStrip, tile.count - first), inputs_.shape.padded_length);
        float* scores = scores_.strip(document, tile, strip, keys);
        for (int64_t t = 0; t < strip.count; ++t)
          exponentiate(document, head, strip.first + t, keys, scores + t * kTileStride, first + t, t);
        multiply(
            kStrip, head_size_, keys.padded(), static_cast<const T*>(probabilities_.at(0)), kTileStride,
            static_cast<const T*>(packed_values_.at(keys.first * head_size_)), head_size_,
            sums_of_values_.at(first * head_size_), head_size_, /*add=*/true);
      }
    }
    for (int64_t query = 0; query < tile.count; ++query) finish(document, head, tile.first + query, query);
  }

  // One row of scores → of probabilities, up to a factor that is the same for all tiles of keys.
  void exponentiate(
      const Document& document, int64_t head, int64_t query, const Keys& keys, float* scores, int64_t in_tile,
      int64_t in_strip) {
    hide_padding(scores, keys);
    Vector most(-std::numeric_limits<float>::infinity());
    for (int64_t key = 0; key < keys.padded(); key += kLanes) most = at::vec::maximum(most, load(scores + key));
    const float before = *largest_.at(in_tile);
    const float largest = std::max(before, _mm512_reduce_max_ps(most) * inputs_.scale);
    const Vector scale(inputs_.scale), offset(-largest);
    const bool drops = inputs_.dropout.drops();
    const KeptInRow kept = inputs_.kept(document, head, query);
    T* row = probabilities_.at(in_strip * kTileStride);
    Vector sum(0.0f);
    for (int64_t key = 0; key < keys.padded(); key += kLanes) {
      Vector exponential = at::vec::fmadd(load(scores + key), scale, offset).exp_u20();
      sum = sum + exponential;
      if (drops) exponential = _mm512_maskz_mov_ps(kept.from(document.first_key + keys.first + key), exponential);
      store(row + key, exponential);
    }
    const float correction = std::exp(before - largest);
    *sums_.at(in_tile) = *sums_.at(in_tile) * correction + _mm512_reduce_add_ps(sum);
    *largest_.at(in_tile) = largest;
    float* sum_of_values = sums_of_values_.at(in_tile * head_size_);
    for (int64_t k = 0; k < head_size_; k += kLanes)
      store(sum_of_values + k, load(sum_of_values + k) * Vector(correction));
  }

  void finish(const Document& document, int64_t head, int64_t query, int64_t in_tile) {
    const float sum = *sums_.at(in_tile), factor = inputs_.dropout.scale_of_kept() / sum;
    T* target = output_ + inputs_.query_offset(document, head) + query * inputs_.stride();
    const float* sum_of_values = sums_of_values_.at(in_tile * head_size_);
    for (int64_t k = 0; k < inputs_.shape.head_size; ++k) target[k] = static_cast<T>(sum_of_values[k] * factor);
    log_sums_[inputs_.log_sum_offset(document, head) + query] = *largest_.at(in_tile) + std::log(sum);
  }

  const Inputs<T>& inputs_;
  T* output_;
  float* log_sums_;
  const int64_t head_size_;
  Scores<T> scores_;
  Buffer<T> value_rows_, packed_values_, probabilities_;
  Buffer<float> sums_of_values_, largest_, sums_;
};

}  // namespace

template <typename T>
void attention_forward(const Inputs<T>& inputs, T* output, float* log_sums) {
  const Shape& shape = inputs.shape;
  at::parallel_for(0, shape.heads * shape.rows, 1, [&](int64_t begin, int64_t end) {
    Forward<T> forward(inputs, output, log_sums);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t head = item / shape.rows, row = item % shape.rows;
      if (item == begin || row == 0) forward.begin_head(head);
      for (const Document& document : inputs.documents[row]) forward.attend(document, head);
    }
    release_hardware<T>();
  });
}

template void attention_forward<float>(const Inputs<float>&, float*, float*);
template void attention_forward<BFloat16>(const Inputs<BFloat16>&, BFloat16*, float*);

}  // namespace deberta_scale
