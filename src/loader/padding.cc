// SPDX-License-Identifier: Apache-2.0
#include "draftflow/loader/padding.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "draftflow/base/error.h"
#include "draftflow/base/text.h"

namespace draftflow {
namespace {

// A tensor as rows of equal size: T of them, or, where it has no dimension of the sample's length, one.
struct Rows {
  std::span<const std::int64_t> rest;  // the shape of a row
  bool by_length = false;
};

Rows rows_of(const Tensor& tensor, std::int64_t length) {
  const std::span<const std::int64_t> shape(tensor.shape);
  if (shape.size() >= 2 && shape[0] == 1 && shape[1] == length) return {.rest = shape.subspan(2), .by_length = true};
  if (!shape.empty() && shape[0] == length) return {.rest = shape.subspan(1), .by_length = true};
  return {.rest = shape};
}

[[noreturn]] void refuse(const std::string& name, const Tensor& first, const Tensor& other, std::size_t row) {
  throw InvalidArgument(
      fmt::format("tensor '{}' is {} {} in one sample of a batch and {} {} in number {}: all dimensions but the length must be "
                  "equal",
                  printable(name, 80), dtype_name(first.dtype), shape_text(first.shape), dtype_name(other.dtype),
                  shape_text(other.shape), row));
}

Tensor pad(const std::string& name, const std::vector<const TensorMap*>& samples, const TensorMap& first, std::int64_t longest,
           BufferPool& pool) {
  const Tensor& model = *find_tensor(first, name);
  const Rows rows = rows_of(model, sample_length(first));
  std::vector<std::int64_t> shape{static_cast<std::int64_t>(samples.size())};
  if (rows.by_length) shape.push_back(longest);
  shape.insert(shape.end(), rows.rest.begin(), rows.rest.end());
  auto [tensor, bytes] = pool.allocate(model.dtype, shape);
  const std::size_t stride = bytes.size() / samples.size();
  for (std::size_t i = 0; i < samples.size(); ++i) {
    const std::span<std::byte> row = bytes.subspan(i * stride, stride);
    std::size_t filled = 0;
    if (!samples[i]->empty()) {
      const Tensor* from = find_tensor(*samples[i], name);
      if (from == nullptr) {
        throw InvalidArgument(fmt::format("tensor '{}' is missing in sample {} of a batch", printable(name, 80), i));
      }
      const Rows theirs = rows_of(*from, sample_length(*samples[i]));
      const bool fits =
          from->dtype == model.dtype && theirs.by_length == rows.by_length && std::ranges::equal(theirs.rest, rows.rest);
      if (!fits) refuse(name, model, *from, i);
      filled = from->bytes.size();
      std::memcpy(row.data(), from->bytes.data(), filled);
    }
    std::memset(row.data() + filled, 0, stride - filled);
  }
  return tensor;
}

}  // namespace

std::int64_t sample_length(const TensorMap& sample) {
  if (sample.empty()) return 0;
  const Tensor* ids = find_tensor(sample, "input_ids");
  if (ids != nullptr && !ids->shape.empty()) return ids->shape.back();
  const Tensor& first = sample.front().second;
  return first.shape.empty() ? 0 : first.shape.front();
}

TensorMap pad_batch(const std::vector<const TensorMap*>& samples, BufferPool& pool) {
  const TensorMap* first = nullptr;
  std::int64_t longest = 0;
  for (const TensorMap* sample : samples) {
    if (first == nullptr && !sample->empty()) first = sample;
    longest = std::max(longest, sample_length(*sample));
  }
  TensorMap batch;
  if (first == nullptr) return batch;
  for (const TensorMap* sample : samples) {
    for (const auto& [name, tensor] : *sample) {
      if (find_tensor(*first, name) == nullptr) {
        throw InvalidArgument(fmt::format("tensor '{}' is in some samples of a batch and not in all", printable(name, 80)));
      }
    }
  }
  for (const auto& [name, tensor] : *first) batch.emplace_back(name, pad(name, samples, *first, longest, pool));
  return batch;
}

}  // namespace draftflow
