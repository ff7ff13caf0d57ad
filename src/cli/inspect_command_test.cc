// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "cli/inspect.h"
#include "draftflow/base/error.h"
#include "draftflow/base/file.h"
#include "draftflow/formats/safetensors.h"
#include "testing/temp_folder.h"

namespace draftflow::cli {
namespace {

template <class T>
Tensor tensor_of(DType dtype, const std::vector<T>& values) {
  return Tensor::copy_of(dtype, {static_cast<std::int64_t>(values.size())}, std::as_bytes(std::span(values)));
}

TEST(TensorStats, CountsNaNAndInfinityAndFindsTheEnds) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  const TensorStats stats = tensor_stats(tensor_of<float>(DType::kFloat32, {nan, 3, -2, inf, nan}));
  EXPECT_EQ(stats.nan_count, 2);
  EXPECT_EQ(stats.infinite_count, 1);
  EXPECT_EQ(stats.min, -2);
  EXPECT_EQ(stats.max, inf);
}

TEST(TensorStats, ReadsHalfPrecision) {
  // 1.0, -2.5, smallest subnormal, NaN
  const TensorStats half = tensor_stats(tensor_of<std::uint16_t>(DType::kFloat16, {0x3C00, 0xC100, 0x0001, 0x7E00}));
  EXPECT_EQ(half.min, -2.5);
  EXPECT_EQ(half.max, 1.0);
  EXPECT_EQ(half.nan_count, 1);
  EXPECT_EQ(tensor_stats(tensor_of<std::uint16_t>(DType::kFloat16, {0x0001})).max, std::ldexp(1, -24));
  const TensorStats brain = tensor_stats(tensor_of<std::uint16_t>(DType::kBFloat16, {0x3F80, 0xC020, 0x7FC0}));
  EXPECT_EQ(brain.min, -2.5);
  EXPECT_EQ(brain.max, 1.0);
  EXPECT_EQ(brain.nan_count, 1);
}

TEST(TensorStats, AnEmptyTensorHasNone) {
  EXPECT_EQ(tensor_stats(tensor_of<float>(DType::kFloat32, {})).count, 0);
}

TEST(Inspect, AFeatureFile) {
  const testing_support::TempFolder folder;
  write_safetensors(folder.path() / "a.safetensors", {{"ids", tensor_of<std::int64_t>(DType::kInt64, {5, 7})}});
  const auto found = inspect_path(folder.path() / "a.safetensors", true);
  EXPECT_EQ(found["kind"], "feature file");
  EXPECT_EQ(found["tensors"][0]["name"], "ids");
  EXPECT_EQ(found["tensors"][0]["max"], 7.0);
  EXPECT_FALSE(inspect_path(folder.path() / "a.safetensors", false)["tensors"][0].contains("max"));
}

TEST(Inspect, AModelFolder) {
  const testing_support::TempFolder folder;
  replace_file(folder.path() / "config.json", R"({"hidden_size": 2})");
  write_safetensors(folder.path() / "model.safetensors", {{"w", tensor_of<float>(DType::kFloat32, {1, 2})}});
  const auto found = inspect_path(folder.path(), true);
  EXPECT_EQ(found["kind"], "model folder");
  EXPECT_EQ(found["config"]["hidden_size"], 2);
  EXPECT_EQ(found["tensors"][0]["min"], 1.0);
}

TEST(Inspect, ALedgerAndARunFolder) {
  const testing_support::TempFolder folder;
  open_sqlite_ledger(folder.path() / "ledger.sqlite3")->close_prompts();
  EXPECT_EQ(inspect_path(folder.path() / "ledger.sqlite3", true)["status"]["prompts_closed"], true);
  EXPECT_EQ(inspect_path(folder.path(), true)["kind"], "run folder");
  EXPECT_EQ(inspect_path(folder.path(), true)["finished"], false);
}

TEST(Inspect, RefusesWhatItDoesNotKnow) {
  const testing_support::TempFolder folder;
  EXPECT_THROW(inspect_path(folder.path() / "missing", true), NotFound);
  EXPECT_THROW(inspect_path(folder.path(), true), InvalidArgument);
  replace_file(folder.path() / "notes.txt", "hello");
  EXPECT_THROW(inspect_path(folder.path() / "notes.txt", true), InvalidArgument);
  replace_file(folder.path() / "bad.safetensors", "hello");
  EXPECT_THROW(inspect_path(folder.path() / "bad.safetensors", true), Corrupt);
}

}  // namespace
}  // namespace draftflow::cli
