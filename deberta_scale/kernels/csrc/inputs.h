// What a call is about: shapes, documents, and queries of a document in tiles and strips.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "dropout.h"
#include "tiles.h"

namespace deberta_scale {

// Places of one row of the batch that see each other, and the queries that ask from among them.
struct Document {
  int64_t row, first_key, num_keys;
  int64_t first_query, num_queries;
  const int64_t* places;  // of its queries in the row; null: every place asks, in order

  // Place of a query, counted from the document's first.
  int64_t place(int64_t query) const { return places ? places[query] - first_key : query; }
};

// Some queries of a document that are worked on together, and the stretch of places they lie in. The stretch is whole
// strips long, begins at an even place and ends inside the padded row, so that pairs of distances stay together.
struct Queries {
  int64_t first, count;
  int64_t place, span;

  int64_t padded() const { return round_up(count, kStrip); }
};

inline Queries queries_of(const Document& document, int64_t first, int64_t most, int64_t padded_length) {
  const int64_t count = std::min(most, document.num_queries - first);
  const int64_t begin = document.place(first) / 2 * 2;
  const int64_t span = round_up(document.place(first + count - 1) + 1 - begin, kStrip);
  return {first, count, std::min(begin, padded_length - span), span};
}

struct Shape {
  int64_t rows, length, queries, heads, head_size;
  int64_t table_rows;
  int64_t padded_length, padded_head;
  int64_t distances;        // columns of a table laid out by distance: -padded_length < distance < padded_length, + 1
  int64_t distance_stride;  // and its stride, no power of two
};

// A tensor [R, H, D] that is read by distance, or nothing.
template <typename T>
struct Inputs {
  Shape shape;
  const T *query, *key, *value;
  const T *relative_key, *relative_query;  // null without the term
  const int64_t* rows_by_distance;
  int64_t far_below, far_above;  // distances up to the one, and from the other on, have one row of the table each
  std::vector<std::vector<Document>> documents;  // of each row of the batch
  bool all_places_ask;
  float scale;
  Dropout dropout;

  int64_t stride() const { return shape.heads * shape.head_size; }
  int64_t key_offset(const Document& document, int64_t head) const {
    return (document.row * shape.length + document.first_key) * stride() + head * shape.head_size;
  }
  int64_t query_offset(const Document& document, int64_t head) const {
    return (document.row * shape.queries + document.first_query) * stride() + head * shape.head_size;
  }
  // Of the logarithms of sums, [B, H, Q].
  int64_t log_sum_offset(const Document& document, int64_t head) const {
    return (document.row * shape.heads + head) * shape.queries + document.first_query;
  }
  KeptInRow kept(const Document& document, int64_t head, int64_t query) const {
    const int64_t place = document.first_key + document.place(query);
    return KeptInRow(dropout, (document.row * shape.heads + head) * shape.length + place);
  }
  // Row of the relative table at a distance; beyond the row's length any, since no query and key are so far apart.
  int64_t row_at(int64_t distance) const {
    const int64_t farthest = shape.length - 1;
    return rows_by_distance[std::clamp(distance, -farthest, farthest) + farthest];
  }
};

// The tensors of a call as they come from Python: see kernels/signature.py.
struct Arguments {
  const at::Tensor &query, &key, &value;
  const std::optional<at::Tensor>&relative_key, &relative_query;
  const at::Tensor &document_starts, &document_ends;
  const std::optional<at::Tensor>&rows_by_distance, &query_places;
  double scale, drop_probability;
  int64_t seed;
};

// Checks the arguments; raises an error that names the one that does not fit.
template <typename T>
Inputs<T> inputs_of(const Arguments& arguments);

}  // namespace deberta_scale
