#include "inputs.h"

#include <c10/util/Exception.h>

namespace deberta_scale {
namespace {

Shape shape_of(const Arguments& arguments) {
  const at::Tensor &query = arguments.query, &key = arguments.key;
  TORCH_CHECK(query.dim() == 4 && key.dim() == 4, "query and key must be [rows, places, heads, head size]");
  Shape shape{};
  shape.rows = key.size(0), shape.length = key.size(1), shape.queries = query.size(1);
  shape.heads = key.size(2), shape.head_size = key.size(3);
  TORCH_CHECK(
      query.size(0) == shape.rows && query.size(2) == shape.heads && query.size(3) == shape.head_size,
      "query must have the rows, heads and head size of key");
  TORCH_CHECK(arguments.value.sizes() == key.sizes(), "value must have the shape of key");
  for (const auto& table : {arguments.relative_key, arguments.relative_query}) {
    if (!table) continue;
    TORCH_CHECK(arguments.rows_by_distance, "a relative table needs rows_by_distance");
    TORCH_CHECK(
        table->dim() == 3 && table->size(1) == shape.heads && table->size(2) == shape.head_size,
        "relative tables must be [table rows, heads, head size]");
    TORCH_CHECK(!shape.table_rows || shape.table_rows == table->size(0), "relative tables must have the same length");
    shape.table_rows = table->size(0);
  }
  shape.padded_length = round_up(std::max<int64_t>(shape.length, 1), kStrip);
  shape.padded_head = round_up(shape.head_size, kStrip);
  shape.distances = 2 * shape.padded_length;
  shape.distance_stride = shape.distances + kLanes;
  return shape;
}

// A contiguous tensor's numbers, or null for no tensor; one without numbers is still one.
template <typename T>
const T* numbers(const std::optional<at::Tensor>& tensor, const char* name, at::ScalarType type) {
  static const T no_numbers{};
  if (!tensor) return nullptr;
  TORCH_CHECK(
      tensor->is_contiguous() && tensor->scalar_type() == type, name, " must be contiguous and of type ", type);
  return tensor->numel() ? tensor->const_data_ptr<T>() : &no_numbers;
}

std::vector<Document> documents_of_row(
    int64_t row, const Shape& shape, const int64_t* starts, const int64_t* ends, const int64_t* places) {
  std::vector<Document> documents;
  int64_t query = 0;
  for (int64_t place = 0; place < shape.length;) {
    if (ends[place] == 0) {
      ++place;
      continue;
    }
    TORCH_CHECK(
        starts[place] == place && ends[place] > place && ends[place] <= shape.length,
        "document_starts and document_ends must be the same at all places of a document");
    Document document{row, place, ends[place] - place, place, ends[place] - place, nullptr};
    if (places) {
      while (query < shape.queries && places[query] >= 0 && places[query] < place) ++query;
      document.first_query = query;
      while (query < shape.queries && places[query] >= 0 && places[query] < ends[place]) ++query;
      document.num_queries = query - document.first_query;
      document.places = places + document.first_query;
    }
    documents.push_back(document);
    place = ends[place];
  }
  return documents;
}

void check_places(const int64_t* places, const Shape& shape) {
  for (int64_t query = 0; query < shape.queries; ++query) {
    const int64_t before = query ? places[query - 1] : -1;
    const bool blank = places[query] == -1, after_blank = query && before == -1;
    TORCH_CHECK(
        blank || (!after_blank && places[query] > before && places[query] < shape.length),
        "query_places must ascend in each row, below its length, with -1 for blanks after the last");
  }
}

}  // namespace

template <typename T>
Inputs<T> inputs_of(const Arguments& arguments) {
  constexpr auto type = c10::CppTypeToScalarType<T>::value;
  Inputs<T> inputs{};
  const Shape& shape = inputs.shape = shape_of(arguments);
  inputs.query = numbers<T>(arguments.query, "query", type);
  inputs.key = numbers<T>(arguments.key, "key", type);
  inputs.value = numbers<T>(arguments.value, "value", type);
  inputs.relative_key = numbers<T>(arguments.relative_key, "relative_key", type);
  inputs.relative_query = numbers<T>(arguments.relative_query, "relative_query", type);
  inputs.rows_by_distance = numbers<int64_t>(arguments.rows_by_distance, "rows_by_distance", at::kLong);
  if (shape.table_rows) {
    const int64_t count = 2 * shape.length - 1;
    TORCH_CHECK(arguments.rows_by_distance->numel() == count, "rows_by_distance must have 2 * length - 1 elements");
    const auto [least, most] = std::minmax_element(inputs.rows_by_distance, inputs.rows_by_distance + count);
    TORCH_CHECK(*least >= 0 && *most < shape.table_rows, "rows_by_distance must be rows of the relative table");
    const int64_t farthest = shape.length - 1;
    inputs.far_below = -farthest, inputs.far_above = farthest;
    while (inputs.far_below < farthest && inputs.row_at(inputs.far_below + 1) == inputs.row_at(-farthest))
      ++inputs.far_below;
    while (inputs.far_above > -farthest && inputs.row_at(inputs.far_above - 1) == inputs.row_at(farthest))
      --inputs.far_above;
  }
  const auto* starts = numbers<int64_t>(arguments.document_starts, "document_starts", at::kLong);
  const auto* ends = numbers<int64_t>(arguments.document_ends, "document_ends", at::kLong);
  const auto* places = numbers<int64_t>(arguments.query_places, "query_places", at::kLong);
  TORCH_CHECK(
      arguments.document_starts.numel() == shape.rows * shape.length &&
          arguments.document_ends.numel() == shape.rows * shape.length,
      "document_starts and document_ends must be [rows, length]");
  TORCH_CHECK(
      places ? arguments.query_places->numel() == shape.rows * shape.queries : shape.queries == shape.length,
      "query_places must be given for each query, when not all places ask");
  for (int64_t row = 0; row < shape.rows; ++row) {
    const int64_t* places_of_row = places ? places + row * shape.queries : nullptr;
    if (places_of_row) check_places(places_of_row, shape);
    const int64_t offset = row * shape.length;
    inputs.documents.push_back(documents_of_row(row, shape, starts + offset, ends + offset, places_of_row));
  }
  inputs.all_places_ask = places == nullptr;
  inputs.scale = static_cast<float>(arguments.scale);
  inputs.dropout = {arguments.drop_probability, static_cast<uint64_t>(arguments.seed)};
  return inputs;
}

template Inputs<float> inputs_of<float>(const Arguments&);
template Inputs<BFloat16> inputs_of<BFloat16>(const Arguments&);

}  // namespace deberta_scale
