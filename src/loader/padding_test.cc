// SPDX-License-Identifier: Apache-2.0
#include "draftflow/loader/padding.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "draftflow/base/error.h"

namespace draftflow {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::ThrowsMessage;

Tensor ints(std::vector<std::int64_t> shape, const std::vector<std::int64_t>& values) {
  return Tensor::copy_of(DType::kInt64, std::move(shape), std::as_bytes(std::span(values)));
}

TensorMap sample(const std::vector<std::int64_t>& ids, const std::vector<std::int64_t>& hidden) {
  const auto length = static_cast<std::int64_t>(ids.size());
  return {{"input_ids", ints({length}, ids)}, {"hidden", ints({1, length, 2}, hidden)}, {"label", ints({2}, {length, 9})}};
}

TEST(PadBatch, ShorterRowsEndInZeros) {
  BufferPool pool(1 << 20);
  // What the pool kept must not show through the padding.
  { pool.allocate(DType::kInt64, {64}).second[0] = std::byte{7}; }
  const TensorMap one = sample({1, 2, 3}, {10, 11, 20, 21, 30, 31}), two = sample({5}, {50, 51});
  const TensorMap batch = pad_batch({&one, &two}, pool);
  ASSERT_EQ(batch.size(), 3U);
  EXPECT_THAT(batch[0].second.shape, ElementsAre(2, 3));
  EXPECT_THAT(batch[0].second.as<std::int64_t>(), ElementsAre(1, 2, 3, 5, 0, 0));
  EXPECT_THAT(batch[1].second.shape, ElementsAre(2, 3, 2));
  EXPECT_THAT(batch[1].second.as<std::int64_t>(), ElementsAre(10, 11, 20, 21, 30, 31, 50, 51, 0, 0, 0, 0));
  EXPECT_THAT(batch[2].second.shape, ElementsAre(2, 2));
  EXPECT_THAT(batch[2].second.as<std::int64_t>(), ElementsAre(3, 9, 1, 9));
}

TEST(PadBatch, AFailedSampleIsARowOfZeros) {
  BufferPool pool(1 << 20);
  const TensorMap one = sample({1, 2}, {10, 11, 20, 21}), failed;
  const TensorMap batch = pad_batch({&failed, &one}, pool);
  EXPECT_THAT(batch[0].second.as<std::int64_t>(), ElementsAre(0, 0, 1, 2));
  EXPECT_THAT(batch[2].second.as<std::int64_t>(), ElementsAre(0, 0, 2, 9));
  EXPECT_TRUE(pad_batch({&failed, &failed}, pool).empty());
  EXPECT_TRUE(pad_batch({}, pool).empty());
}

TEST(PadBatch, SamplesThatDoNotFitTogetherAreRefusedByName) {
  BufferPool pool(1 << 20);
  const TensorMap one = sample({1, 2, 3}, {10, 11, 20, 21, 30, 31});
  TensorMap other = sample({5}, {50, 51});
  other[1].second = ints({1, 1, 3}, {50, 51, 52});
  EXPECT_THAT(
      [&] {
        pad_batch({&one, &other}, pool);
      },
      ThrowsMessage<InvalidArgument>(
          HasSubstr("tensor 'hidden' is int64 [1, 3, 2] in one sample of a batch and int64 [1, 1, 3]")));
  other.erase(other.begin() + 1);
  EXPECT_THAT(
      [&] {
        pad_batch({&one, &other}, pool);
      },
      ThrowsMessage<InvalidArgument>(HasSubstr("'hidden' is missing in sample 1")));
  EXPECT_THAT(
      [&] {
        pad_batch({&other, &one}, pool);
      },
      ThrowsMessage<InvalidArgument>(HasSubstr("'hidden' is in some samples")));
}

}  // namespace
}  // namespace draftflow
