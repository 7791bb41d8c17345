// Scores of a tile: Q·K + Q·Kr[distance] + K·Qr[distance], before scaling.
//
// The row of the relative table depends on i - j alone. So the table is laid out by distance, once for a head, and a
// strip of queries is multiplied with the stretch of it that its distances fall into. Every score is in the product
// then, each row of it one column further to the left than the row before, so that the scores are read from the same
// memory by a row stride that is one smaller. Three queries i, four keys j, distances written in the columns:
//
//     product, stride 6:                       read from column 2 on, with stride 5:
//                  columns of the stretch                     j=0  j=1  j=2  j=3
//       i=0     2   1 [ 0  -1  -2  -3]             i=0         0   -1   -2   -3
//       i=1     2 [ 1   0  -1  -2] -3              i=1         1    0   -1   -2
//       i=2    [2   1   0  -1] -2  -3              i=2         2    1    0   -1
//
// The second table is laid out the other way round and multiplied with strips of keys: there the queries lie along a
// row. What is read is turned from keys by queries to queries by keys.
//
// Places that are far apart all have the same row of a table (the last bucket). Where that holds for a whole stretch,
// one of its columns is multiplied, so that far pairs cost no more than without relative positions.
#pragma once

#include <optional>

#include "inputs.h"

namespace deberta_scale {

enum class Order { kFalling, kRising };

// A relative table of one head, by distance: column c is distance padded_length - 1 - c when falling, its negative when
// rising. With the gradient of each column in backward.
template <typename T>
class DistanceTable {
 public:
  DistanceTable(const Inputs<T>& inputs, const T* table, Order order, bool backward)
      : shape_(inputs.shape),
        far_below_(inputs.far_below),
        far_above_(inputs.far_above),
        table_(table),
        order_(order),
        rows_(table ? shape_.distances * shape_.padded_head : 0),
        columns_(table ? shape_.padded_head * shape_.distance_stride : 0),
        packed_rows_(table && backward ? shape_.distances * shape_.padded_head : 0),
        gradient_(table && backward ? shape_.padded_head * shape_.distance_stride : 0),
        backward_(backward) {}

  explicit operator bool() const { return table_ != nullptr; }

  void lay_out(const Inputs<T>& inputs, int64_t head) {
    if (!table_) return;
    for (int64_t column = 0; column < shape_.distances; ++column) {
      const T* source = table_ + inputs.row_at(distance(column)) * inputs.stride() + head * shape_.head_size;
      load_rows(source, 0, 1, shape_.head_size, rows_.at(column * shape_.padded_head), 1, shape_.padded_head);
    }
    pack_columns(rows_.at(0), shape_.distances, shape_.padded_head, columns_.at(0), shape_.distance_stride);
    if (backward_) pack_rows(rows_.at(0), shape_.distances, shape_.padded_head, shape_.padded_head, packed_rows_.at(0));
  }

  void clear_gradient() {
    if (table_) std::memset(gradient_.at(0), 0, shape_.padded_head * shape_.distance_stride * sizeof(float));
  }

  // Adds the gradients of one head to those of the table's rows, [R, H, D].
  void add_gradient(const Inputs<T>& inputs, int64_t head, float* of_table) const {
    if (!table_) return;
    Buffer<float> turned(kStrip * shape_.padded_head);
    for (int64_t column = 0; column < shape_.distances; ++column) {
      const int64_t in_strip = column % kStrip;
      if (in_strip == 0)
        transpose(
            gradient_.at(column), shape_.distance_stride, turned.at(0), shape_.padded_head, shape_.padded_head, kStrip);
      if (std::abs(distance(column)) >= shape_.length) continue;
      float* of_row = of_table + inputs.row_at(distance(column)) * inputs.stride() + head * shape_.head_size;
      for (int64_t k = 0; k < shape_.head_size; ++k) of_row[k] += *turned.at(in_strip * shape_.padded_head + k);
    }
  }

  // First column of the stretch for places from `place` on, `span` of them, and the other side's from `other` on.
  int64_t falling_stretch(int64_t place, int64_t span, int64_t other) const {
    return shape_.padded_length - place - span + other;
  }
  int64_t rising_stretch(int64_t place, int64_t first_key) const {
    return shape_.padded_length + place - first_key - kStrip;
  }

  // A column that stands for all of a stretch, where their distances have one row; of two that might, the one nearer to
  // distance 0, which some pair of the row has.
  std::optional<int64_t> far_column(int64_t stretch, int64_t count) const {
    const int64_t last = stretch + count - 1, one = distance(stretch), other = distance(last);
    if (std::max(one, other) > far_below_ && std::min(one, other) < far_above_) return std::nullopt;
    return std::abs(one) < std::abs(other) ? stretch : last;
  }

  const T* columns(int64_t column) const { return columns_.at(column * kInterleaved<T>); }
  const T* row(int64_t column) const { return rows_.at(column * shape_.padded_head); }
  const T* packed_rows(int64_t column) const { return packed_rows_.at(column * shape_.padded_head); }
  float* gradient(int64_t column) { return gradient_.at(column); }

 private:
  int64_t distance(int64_t column) const {
    const int64_t falling = shape_.padded_length - 1 - column;
    return order_ == Order::kFalling ? falling : -falling;
  }

  const Shape shape_;
  const int64_t far_below_, far_above_;
  const T* table_;
  const Order order_;
  Buffer<T> rows_, columns_, packed_rows_;
  Buffer<float> gradient_;
  const bool backward_;
};

// Keys of a tile.
struct Keys {
  int64_t first, count;
  int64_t padded() const { return round_up(count, kStrip); }
};

inline Keys keys_of(const Document& document, int64_t first) {
  return {first, std::min(kTile, document.num_keys - first)};
}

// Works on one tile at a time: `begin_head`, `begin_document`, `begin_tile`, then `strip` for each strip of its queries.
template <typename T>
class Scores {
 public:
  Scores(const Inputs<T>& inputs, bool backward)
      : falling(inputs, inputs.relative_key, Order::kFalling, backward),
        rising(inputs, inputs.relative_query, Order::kRising, backward),
        // a strip of distances: two tiles meet in at most a panel of them, queries here and there in the whole row
        spread_stride(inputs.all_places_ask ? kPanel + kLanes : inputs.shape.padded_length + kPanel + kLanes),
        inputs_(inputs),
        head_size_(inputs.shape.padded_head),
        query_rows_(inputs.shape.padded_length * head_size_),
        key_rows_(inputs.shape.padded_length * head_size_),
        key_columns_(round_up(inputs.shape.padded_length, kTile) * head_size_),
        product_(kStrip * spread_stride),
        of_far_(kStrip),
        scores_(kTile * kTileStride) {}

  void begin_head(int64_t head) {
    falling.lay_out(inputs_, head);
    rising.lay_out(inputs_, head);
  }

  void begin_document(const Document& document, int64_t head) {
    const int64_t stride = inputs_.stride(), size = inputs_.shape.head_size;
    const T* query = inputs_.query + inputs_.query_offset(document, head);
    const T* key = inputs_.key + inputs_.key_offset(document, head);
    const int64_t queries = round_up(document.num_queries, kStrip), keys = round_up(document.num_keys, kStrip);
    load_rows(query, stride, document.num_queries, size, query_rows_.at(0), queries, head_size_);
    load_rows(key, stride, document.num_keys, size, key_rows_.at(0), keys, head_size_);
    for (int64_t first = 0; first < keys; first += kTile)
      pack_columns(
          key_rows(first), std::min(kTile, keys - first), head_size_, key_columns_.at(first * head_size_), kTile);
  }

  // The position-to-content term of all scores of a tile.
  void begin_tile(const Document& document, const Queries& tile, const Keys& keys) {
    if (!rising) return;
    for (int64_t strip = 0; strip < keys.padded(); strip += kStrip) {
      const int64_t first_key = keys.first + strip, stretch = rising.rising_stretch(tile.place, first_key);
      if (const auto column = rising.far_column(stretch, tile.span + kStrip)) {
        multiply_far(key_rows(first_key), rising.row(*column));
        for (int64_t query = 0; query < tile.padded(); ++query)
          for (int64_t t = 0; t < kStrip; t += kLanes)
            store(scores_.at(query * kTileStride + strip + t), load(of_far_.at(t)));
        continue;
      }
      multiply(
          kStrip, tile.span + kStrip, head_size_, key_rows(first_key), head_size_, rising.columns(stretch),
          inputs_.shape.distance_stride, product_.at(0), spread_stride, false);
      // key t of the strip and the query at tile.place + x are in row t, column kStrip - 1 - t + x
      const float* skewed = product_.at(kStrip - 1);
      float* target = scores_.at(strip);
      if (inputs_.all_places_ask) {
        at::vec::transpose_mxn<float>(
            skewed, spread_stride - 1, target, kTileStride, kStrip, static_cast<int>(tile.padded()));
        continue;
      }
      for (int64_t query = 0; query < tile.padded(); ++query) {
        const bool asks = query < tile.count;
        const float* column = skewed + (asks ? document.place(tile.first + query) - tile.place : 0);
        for (int64_t t = 0; t < kStrip; ++t)
          target[query * kTileStride + t] = asks ? column[t * (spread_stride - 1)] : 0.0f;
      }
    }
  }

  // All three terms for a strip of the tile's queries, kTileStride apart. Queries and keys that only fill up are junk.
  float* strip(const Document& document, const Queries& tile, const Queries& strip, const Keys& keys) {
    float* scores = scores_.at((strip.first - tile.first) * kTileStride);
    multiply(
        kStrip, keys.padded(), head_size_, query_rows(strip.first), head_size_,
        static_cast<const T*>(key_columns_.at(keys.first * head_size_)), kTile, scores, kTileStride, bool(rising));
    if (!falling) return scores;
    const int64_t stretch = falling.falling_stretch(strip.place, strip.span, keys.first);
    if (const auto column = falling.far_column(stretch, strip.span + keys.padded())) {
      multiply_far(query_rows(strip.first), falling.row(*column));
      for (int64_t t = 0; t < strip.count; ++t) {
        float* row = scores + t * kTileStride;
        const Vector of_far(*of_far_.at(t));
        for (int64_t key = 0; key < keys.padded(); key += kLanes) store(row + key, load(row + key) + of_far);
      }
      return scores;
    }
    multiply(
        kStrip, strip.span + keys.padded(), head_size_, query_rows(strip.first), head_size_, falling.columns(stretch),
        inputs_.shape.distance_stride, product_.at(0), spread_stride, false);
    for (int64_t t = 0; t < strip.count; ++t) {
      const float* by_distance = product_.at(t * spread_stride + shift(document, strip, t));
      float* row = scores + t * kTileStride;
      for (int64_t key = 0; key < keys.padded(); key += kLanes)
        store(row + key, load(row + key) + load(by_distance + key));
    }
    return scores;
  }

  // Where the scores of query t of a strip begin in its row of distances.
  static int64_t shift(const Document& document, const Queries& strip, int64_t t) {
    return strip.place + strip.span - 1 - document.place(strip.first + t);
  }

  const T* query_rows(int64_t query) const { return query_rows_.at(query * head_size_); }
  const T* key_rows(int64_t key) const { return key_rows_.at(key * head_size_); }

  DistanceTable<T> falling, rising;
  const int64_t spread_stride;

 private:
  // A strip of rows times one row of a table.
  void multiply_far(const T* rows, const T* row) {
    for (int64_t t = 0; t < kStrip; ++t) {
      Vector sum(0.0f);
      for (int64_t k = 0; k < head_size_; k += kLanes)
        sum = at::vec::fmadd(load(rows + t * head_size_ + k), load(row + k), sum);
      *of_far_.at(t) = _mm512_reduce_add_ps(sum);
    }
  }

  const Inputs<T>& inputs_;
  const int64_t head_size_;
  Buffer<T> query_rows_, key_rows_, key_columns_;
  Buffer<float> product_, of_far_, scores_;
};

// Keys behind the document's last, in a tile's padding: nobody sees them.
inline void hide_padding(float* row, const Keys& keys) {
  std::fill(row + keys.count, row + keys.padded(), -std::numeric_limits<float>::infinity());
}

}  // namespace deberta_scale
