#include "backward.h"

#include <ATen/Parallel.h>

#include "scores.h"

namespace deberta_scale {
namespace {

// Gradients of one document and head after the other, with what one thread needs for it. Scores are made again, tile by
// tile; the sum over a row that softmax's gradient needs is that of output times gradient.
template <typename T>
class Backward {
 public:
  Backward(const Inputs<T>& inputs, const Upstream<T>& upstream, const Gradients<T>& gradients)
      : inputs_(inputs),
        upstream_(upstream),
        gradients_(gradients),
        head_size_(inputs.shape.padded_head),
        length_(inputs.shape.padded_length),
        scores_(inputs, /*backward=*/true),
        packed_queries_(length_ * head_size_),
        queries_turned_(head_size_ * length_),
        packed_keys_(length_ * head_size_),
        keys_turned_(head_size_ * length_),
        value_rows_(length_ * head_size_),
        value_columns_(round_up(length_, kTile) * head_size_),
        upstream_rows_(length_ * head_size_),
        packed_upstream_(length_ * head_size_),
        probabilities_(kTile * kTileStride),
        towards_scores_(kTile * kTileStride),
        turned_(kTile * kTileStride),
        spread_(kStrip * scores_.spread_stride),
        packed_spread_(kStrip * scores_.spread_stride),
        towards_probabilities_(kStrip * kTileStride),
        table_sums_(head_size_),
        log_sums_(length_),
        means_(length_),
        of_queries_(length_ * head_size_),
        of_keys_(kTile * head_size_),
        of_values_(kTile * head_size_) {}

  void begin_head(int64_t head) { scores_.begin_head(head); }

  void begin_part() {
    scores_.falling.clear_gradient();
    scores_.rising.clear_gradient();
  }

  void end_part(int64_t head, int64_t part) {
    const int64_t size = inputs_.shape.table_rows * inputs_.stride();
    scores_.falling.add_gradient(inputs_, head, gradients_.relative_key + part * size);
    scores_.rising.add_gradient(inputs_, head, gradients_.relative_query + part * size);
  }

  void differentiate(const Document& document, int64_t head) {
    if (!document.num_queries) return;
    begin_document(document, head);
    for (int64_t first_key = 0; first_key < document.num_keys; first_key += kTile) {
      const Keys keys = keys_of(document, first_key);
      std::fill(of_keys_.at(0), of_keys_.at(kTile * head_size_), 0.0f);
      std::fill(of_values_.at(0), of_values_.at(kTile * head_size_), 0.0f);
      for (int64_t first = 0; first < document.num_queries; first += kTile) {
        const Queries tile = queries_of(document, first, kTile, length_);
        scores_.begin_tile(document, tile, keys);
        for (int64_t strip = 0; strip < tile.count; strip += kStrip)
          differentiate_queries(
              document, head, tile,
              queries_of(document, tile.first + strip, std::min(kStrip, tile.count - strip), length_), keys);
        differentiate_keys(document, tile, keys);
      }
      const int64_t offset = inputs_.key_offset(document, head) + keys.first * inputs_.stride();
      write(of_keys_.at(0), keys.count, gradients_.key + offset);
      write(of_values_.at(0), keys.count, gradients_.value + offset);
    }
    write(of_queries_.at(0), document.num_queries, gradients_.query + inputs_.query_offset(document, head));
  }

 private:
  void begin_document(const Document& document, int64_t head) {
    scores_.begin_document(document, head);
    const int64_t stride = inputs_.stride(), size = inputs_.shape.head_size;
    const int64_t queries = round_up(document.num_queries, kStrip), keys = round_up(document.num_keys, kStrip);
    pack_rows(scores_.query_rows(0), queries, head_size_, head_size_, packed_queries_.at(0));
    transpose(scores_.query_rows(0), head_size_, queries_turned_.at(0), length_, queries, head_size_);
    pack_rows(scores_.key_rows(0), keys, head_size_, head_size_, packed_keys_.at(0));
    transpose(scores_.key_rows(0), head_size_, keys_turned_.at(0), length_, keys, head_size_);
    const T* value = inputs_.value + inputs_.key_offset(document, head);
    load_rows(value, stride, document.num_keys, size, value_rows_.at(0), keys, head_size_);
    for (int64_t first = 0; first < keys; first += kTile)
      pack_columns(
          value_rows_.at(first * head_size_), std::min(kTile, keys - first), head_size_,
          value_columns_.at(first * head_size_), kTile);
    const int64_t offset = inputs_.query_offset(document, head);
    load_rows(
        upstream_.gradient + offset, stride, document.num_queries, size, upstream_rows_.at(0), queries, head_size_);
    pack_rows(upstream_rows_.at(0), queries, head_size_, head_size_, packed_upstream_.at(0));
    std::copy_n(
        upstream_.log_sums + inputs_.log_sum_offset(document, head), document.num_queries, log_sums_.at(0));
    for (int64_t query = 0; query < document.num_queries; ++query) {
      const T *gradient = upstream_.gradient + offset + query * stride, *output = upstream_.output + offset + query * stride;
      float sum = 0.0f;
      for (int64_t k = 0; k < size; ++k) sum += static_cast<float>(gradient[k]) * static_cast<float>(output[k]);
      *means_.at(query) = sum;
    }
    std::fill(of_queries_.at(0), of_queries_.at(queries * head_size_), 0.0f);
  }

  // Probabilities and gradients of scores of one strip, and what follows from them for its queries.
  void differentiate_queries(
      const Document& document, int64_t head, const Queries& tile, const Queries& strip, const Keys& keys) {
    float* scores = scores_.strip(document, tile, strip, keys);
    multiply(
        kStrip, keys.padded(), head_size_, static_cast<const T*>(upstream_rows_.at(strip.first * head_size_)),
        head_size_, static_cast<const T*>(value_columns_.at(keys.first * head_size_)), kTile,
        towards_probabilities_.at(0), kTileStride, /*add=*/false);
    const int64_t in_tile = strip.first - tile.first;
    for (int64_t t = 0; t < kStrip; ++t)
      differentiate_softmax(document, head, strip, t, keys, scores + t * kTileStride, in_tile + t);

    const T* towards_scores = towards_scores_.at(in_tile * kTileStride);
    float* of_queries = of_queries_.at(strip.first * head_size_);
    multiply(
        kStrip, head_size_, keys.padded(), towards_scores, kTileStride,
        static_cast<const T*>(packed_keys_.at(keys.first * head_size_)), head_size_, of_queries, head_size_,
        /*add=*/true);
    if (!scores_.falling) return;
    const int64_t distances = strip.span + keys.padded();
    const int64_t stretch = scores_.falling.falling_stretch(strip.place, strip.span, keys.first);
    if (const auto column = scores_.falling.far_column(stretch, distances))
      return differentiate_far(
          scores_.falling, *column, towards_scores, keys.padded(), scores_.query_rows(strip.first), of_queries);
    for (int64_t t = 0; t < kStrip; ++t)
      spread_row(
          towards_scores + t * kTileStride, t < strip.count ? keys.padded() : 0,
          t < strip.count ? Scores<T>::shift(document, strip, t) : 0, spread_.at(t * scores_.spread_stride), distances);
    differentiate_distances(
        scores_.falling, stretch, distances, queries_turned_.at(strip.first), of_queries);
  }

  // Of one row: probabilities as they met the values, and gradients of scores. Zeros in what only fills up.
  void differentiate_softmax(
      const Document& document, int64_t head, const Queries& strip, int64_t t, const Keys& keys, float* scores,
      int64_t in_tile) {
    T* probabilities = probabilities_.at(in_tile * kTileStride);
    T* towards_scores = towards_scores_.at(in_tile * kTileStride);
    if (t >= strip.count) {
      std::memset(static_cast<void*>(probabilities), 0, keys.padded() * sizeof(T));
      std::memset(static_cast<void*>(towards_scores), 0, keys.padded() * sizeof(T));
      return;
    }
    hide_padding(scores, keys);
    const int64_t query = strip.first + t;
    const Vector scale(inputs_.scale), offset(-*log_sums_.at(query));
    float* towards_probabilities = towards_probabilities_.at(t * kTileStride);
    const bool drops = inputs_.dropout.drops();
    const KeptInRow kept = inputs_.kept(document, head, query);
    const Vector scale_of_kept(inputs_.dropout.scale_of_kept());
    Vector sum(0.0f);
    for (int64_t key = 0; key < keys.padded(); key += kLanes) {
      const Vector probability = at::vec::fmadd(load(scores + key), scale, offset).exp_u20();
      Vector towards = load(towards_probabilities + key), dropped = probability;
      if (drops) {
        const __mmask16 keep = kept.from(document.first_key + keys.first + key);
        towards = _mm512_maskz_mul_ps(keep, towards, scale_of_kept);
        dropped = _mm512_maskz_mul_ps(keep, dropped, scale_of_kept);
        store(towards_probabilities + key, towards);
      }
      store(scores + key, probability);
      store(probabilities + key, dropped);
      sum = at::vec::fmadd(probability, towards, sum);
    }
    // In few keys, where the rounding of the output would show, the mean is at hand.
    const bool all_keys = document.num_keys <= kTile;
    const Vector mean(all_keys ? _mm512_reduce_add_ps(sum) : *means_.at(query));
    for (int64_t key = 0; key < keys.padded(); key += kLanes)
      store(towards_scores + key, load(scores + key) * (load(towards_probabilities + key) - mean) * scale);
  }

  // What follows from the tile's probabilities and gradients of scores for its keys and values.
  void differentiate_keys(const Document& document, const Queries& tile, const Keys& keys) {
    const int64_t queries = tile.padded();
    transpose(probabilities_.at(0), kTileStride, turned_.at(0), kTileStride, queries, keys.padded());
    for (int64_t strip = 0; strip < keys.padded(); strip += kStrip)
      multiply(
          kStrip, head_size_, queries, static_cast<const T*>(turned_.at(strip * kTileStride)), kTileStride,
          static_cast<const T*>(packed_upstream_.at(tile.first * head_size_)), head_size_,
          of_values_.at(strip * head_size_), head_size_, /*add=*/true);

    transpose(towards_scores_.at(0), kTileStride, turned_.at(0), kTileStride, queries, keys.padded());
    for (int64_t strip = 0; strip < keys.padded(); strip += kStrip) {
      float* of_keys = of_keys_.at(strip * head_size_);
      multiply(
          kStrip, head_size_, queries, static_cast<const T*>(turned_.at(strip * kTileStride)), kTileStride,
          static_cast<const T*>(packed_queries_.at(tile.first * head_size_)), head_size_, of_keys, head_size_,
          /*add=*/true);
      if (!scores_.rising) continue;
      const int64_t distances = tile.span + kStrip, first_key = keys.first + strip;
      const int64_t stretch = scores_.rising.rising_stretch(tile.place, first_key);
      if (const auto column = scores_.rising.far_column(stretch, distances)) {
        differentiate_far(
            scores_.rising, *column, turned_.at(strip * kTileStride), queries, scores_.key_rows(first_key), of_keys);
        continue;
      }
      for (int64_t t = 0; t < kStrip; ++t) spread_key(document, tile, strip, t, distances);
      differentiate_distances(scores_.rising, stretch, distances, keys_turned_.at(first_key), of_keys);
    }
  }

  // Gradients of the scores of key t of a strip, each query's at its distance.
  void spread_key(const Document& document, const Queries& tile, int64_t strip, int64_t t, int64_t distances) {
    const T* source = turned_.at((strip + t) * kTileStride);
    T* target = spread_.at(t * scores_.spread_stride);
    const int64_t shift = kStrip - 1 - t;
    if (inputs_.all_places_ask) return spread_row(source, tile.padded(), shift, target, distances);
    std::memset(static_cast<void*>(target), 0, distances * sizeof(T));
    for (int64_t query = 0; query < tile.count; ++query)
      target[shift + document.place(tile.first + query) - tile.place] = source[query];
  }

  // From gradients by distance, a strip of rows: those of the rows' own factors, and of a stretch of the table. `turned`
  // has the factors as columns.
  void differentiate_distances(
      DistanceTable<T>& table, int64_t stretch, int64_t distances, const T* turned, float* of_rows) {
    const int64_t stride = scores_.spread_stride;
    multiply(
        kStrip, head_size_, distances, static_cast<const T*>(spread_.at(0)), stride, table.packed_rows(stretch),
        head_size_, of_rows, head_size_, /*add=*/true);
    pack_rows(spread_.at(0), kStrip, distances, stride, packed_spread_.at(0));
    multiply(
        head_size_, distances, kStrip, turned, length_, static_cast<const T*>(packed_spread_.at(0)), stride,
        table.gradient(stretch), inputs_.shape.distance_stride, /*add=*/true);
  }

  // The same where all distances have one row of the table: its factor is the sum of the gradients along a row.
  void differentiate_far(
      DistanceTable<T>& table, int64_t column, const T* towards_scores, int64_t width, const T* rows, float* of_rows) {
    const T* of_table = table.row(column);
    float* sums = table_sums_.at(0);
    std::fill(sums, sums + head_size_, 0.0f);
    for (int64_t t = 0; t < kStrip; ++t) {
      Vector along(0.0f);
      for (int64_t place = 0; place < width; place += kLanes)
        along = along + load(towards_scores + t * kTileStride + place);
      const Vector gradient(_mm512_reduce_add_ps(along));
      for (int64_t k = 0; k < head_size_; k += kLanes) {
        float* of_row = of_rows + t * head_size_ + k;
        store(of_row, at::vec::fmadd(gradient, load(of_table + k), load(of_row)));
        store(sums + k, at::vec::fmadd(gradient, load(rows + t * head_size_ + k), load(sums + k)));
      }
    }
    float* of_column = table.gradient(column);
    for (int64_t k = 0; k < head_size_; ++k) of_column[k * inputs_.shape.distance_stride] += sums[k];
  }

  void write(const float* rows, int64_t count, T* target) {
    for (int64_t row = 0; row < count; ++row)
      for (int64_t k = 0; k < inputs_.shape.head_size; ++k)
        target[row * inputs_.stride() + k] = static_cast<T>(rows[row * head_size_ + k]);
  }

  const Inputs<T>& inputs_;
  const Upstream<T>& upstream_;
  const Gradients<T>& gradients_;
  const int64_t head_size_, length_;
  Scores<T> scores_;
  Buffer<T> packed_queries_, queries_turned_, packed_keys_, keys_turned_, value_rows_, value_columns_;
  Buffer<T> upstream_rows_, packed_upstream_;
  Buffer<T> probabilities_, towards_scores_, turned_, spread_, packed_spread_;
  Buffer<float> towards_probabilities_, table_sums_, log_sums_, means_;
  Buffer<float> of_queries_, of_keys_, of_values_;
};

}  // namespace

template <typename T>
void attention_backward(const Inputs<T>& inputs, const Upstream<T>& upstream, const Gradients<T>& gradients) {
  const int64_t parts = parts_of(inputs.shape), rows = inputs.shape.rows;
  at::parallel_for(0, inputs.shape.heads * parts, 1, [&](int64_t begin, int64_t end) {
    Backward<T> backward(inputs, upstream, gradients);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t head = item / parts, part = item % parts;
      if (item == begin || part == 0) backward.begin_head(head);
      backward.begin_part();
      for (int64_t row = rows * part / parts; row < rows * (part + 1) / parts; ++row)
        for (const Document& document : inputs.documents[row]) backward.differentiate(document, head);
      backward.end_part(head, part);
    }
    release_hardware<T>();
  });
}

template void attention_backward<float>(const Inputs<float>&, const Upstream<float>&, const Gradients<float>&);
template void attention_backward<BFloat16>(
    const Inputs<BFloat16>&, const Upstream<BFloat16>&, const Gradients<BFloat16>&);

}  // namespace deberta_scale
