// SPDX-License-Identifier: Apache-2.0
#include "draftflow/loader/ingest.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <numeric>
#include <span>

#include "draftflow/base/error.h"
#include "draftflow/base/file.h"
#include "draftflow/formats/feature_file.h"
#include "draftflow/formats/safetensors.h"
#include "draftflow/ledger/ledger.h"
#include "draftflow/store/feature_store.h"
#include "testing/temp_folder.h"

namespace draftflow {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

template <class T>
Tensor tensor_of(DType dtype, std::vector<std::int64_t> shape, const std::vector<T>& values) {
  return Tensor::copy_of(dtype, std::move(shape), std::as_bytes(std::span(values)));
}

// Three tokens, the first masked out, two features.
TensorMap good_tensors() {
  std::vector<float> hidden(6), aux(18);
  std::iota(hidden.begin(), hidden.end(), 0.0F);
  std::iota(aux.begin(), aux.end(), 100.0F);
  return {{"input_ids", tensor_of<std::int64_t>(DType::kInt64, {3}, {7, 9, 9})},
          {"loss_mask", tensor_of<std::int64_t>(DType::kInt64, {3}, {0, 1, 1})},
          {"hidden_state", tensor_of(DType::kFloat32, {1, 3, 2}, hidden)},
          {"aux_hidden_state", tensor_of(DType::kFloat32, {1, 3, 6}, aux)}};
}

void replace(TensorMap& tensors, const std::string& name, Tensor tensor) {
  for (auto& [key, old] : tensors) {
    if (key == name) old = std::move(tensor);
  }
}

class IngestTest : public ::testing::Test {
 protected:
  IngestTest() { make_folders(options_.folder); }
  void add(const std::string& name, const TensorMap& tensors) { write_safetensors(options_.folder / name, tensors); }
  IngestReport ingest() { return run_ingest(options_, {}, stop_); }

  // What ingest says about one bad file beside a good one.
  std::string reason_for(const std::function<void(TensorMap&)>& spoil) {
    TensorMap tensors = good_tensors();
    spoil(tensors);
    add("a.safetensors", good_tensors());
    add("b.safetensors", tensors);
    add("c.safetensors", good_tensors());
    const IngestReport report = ingest();
    EXPECT_EQ(report.committed, 2) << "one bad file must not stop the rest";
    if (report.failed.size() != 1) return fmt::format("{} files failed", report.failed.size());
    EXPECT_EQ(report.failed[0].file.filename(), "b.safetensors");
    return report.failed[0].reason;
  }

  const testing_support::TempFolder folder_;
  std::atomic<bool> stop_{false};
  IngestOptions options_{.folder = folder_.path() / "in", .ledger = folder_.path() / "out" / "ledger.sqlite3"};
};

TEST_F(IngestTest, NamedFilesBecomeRefsInTheirOrderOnAnOpenLedger) {
  for (const char* const name : {"a.safetensors", "b.safetensors", "c.safetensors"}) add(name, good_tensors());
  const auto ledger = open_memory_ledger(make_memory_ledger());
  options_.files = {options_.folder / "c.safetensors", options_.folder / "a.safetensors", options_.folder / "gone.ckpt"};
  const IngestReport report = run_ingest(*ledger, options_, {}, stop_);
  EXPECT_EQ(report.committed, 2);
  ASSERT_EQ(report.failed.size(), 1u);
  EXPECT_EQ(report.failed[0].file.filename(), "gone.ckpt");
  EXPECT_THAT(ledger->get_committed(SampleId("offline:00000000"))->feature_store_uri, testing::EndsWith("/c.safetensors"));
  EXPECT_THAT(ledger->get_committed(SampleId("offline:00000001"))->feature_store_uri, testing::EndsWith("/a.safetensors"));
  EXPECT_FALSE(ledger->token_counts().empty());
  EXPECT_FALSE(std::filesystem::exists(options_.ledger)) << "the one that is given is used";
  EXPECT_EQ(run_ingest(*ledger, options_, {}, stop_).already, 2);
}

TEST_F(IngestTest, FilesBecomeRefsInOrder) {
  add("b.safetensors", good_tensors());
  add("a.safetensors", good_tensors());
  make_folders(options_.folder / "a");
  add("a/z.safetensors", good_tensors());
  std::vector<std::int64_t> seen;
  const IngestReport report = run_ingest(
      options_,
      [&](std::int64_t done, std::int64_t total) {
        seen.push_back(done);
        EXPECT_EQ(total, 3);
      },
      stop_);
  EXPECT_THAT(seen, ElementsAre(1, 2, 3));
  EXPECT_EQ(report.files, 3);
  EXPECT_EQ(report.committed, 3);
  EXPECT_EQ(report.tokens, 9);
  EXPECT_EQ(report.bytes, 3U * (3 * 8 * 2 + 24 * 4));

  auto ledger = open_sqlite_ledger_read_only(options_.ledger);
  EXPECT_EQ(ledger->declared("kind"), "offline");
  EXPECT_THAT(ledger->all_committed_ids(), ElementsAre("offline:00000000", "offline:00000001", "offline:00000002"));
  const SampleRef ref = *ledger->get_committed(SampleId("offline:00000002"));
  EXPECT_EQ(ref.feature_store_uri, "file://" + (options_.folder / "b.safetensors").string());
  EXPECT_EQ(ref.num_tokens, 3);
  EXPECT_EQ(*ref.find_metadata("format"), "\"offline_eagle3\"");
  EXPECT_EQ(*ref.find_metadata("file_index"), "2");
  EXPECT_EQ(*ref.find_metadata("target_repr"), "\"hidden_state\"");
  EXPECT_EQ(open_files_store()->read(ref).size(), 4U);
  const std::vector<TokenCount> counts = ledger->token_counts();
  ASSERT_EQ(counts.size(), 1U);  // 7 is masked out
  EXPECT_EQ(counts[0].token, 9);
  EXPECT_EQ(counts[0].count, 6);
}

TEST_F(IngestTest, ASecondTimeReadsNothingAgain) {
  for (int i = 0; i < 70; ++i) add(fmt::format("{:03d}.safetensors", i), good_tensors());
  EXPECT_EQ(ingest().committed, 70);  // more than one batch
  replace_file(options_.folder / "005.safetensors", "spoilt since");
  const IngestReport again = ingest();
  EXPECT_EQ(again.committed, 0);
  EXPECT_EQ(again.already, 70);
  EXPECT_TRUE(again.failed.empty());
  EXPECT_EQ(open_sqlite_ledger_read_only(options_.ledger)->token_counts()[0].count, 140);
}

TEST_F(IngestTest, ALimitAndAStopCanBeContinued) {
  for (int i = 0; i < 6; ++i) add(fmt::format("{}.safetensors", i), good_tensors());
  options_.limit = 2;
  EXPECT_EQ(ingest().committed, 2);
  options_.limit = 0;
  const IngestReport stopped = run_ingest(
      options_, [&](std::int64_t done, std::int64_t) { stop_ = done == 4; }, stop_);
  EXPECT_EQ(stopped.files, 4);
  EXPECT_EQ(stopped.committed, 2);
  stop_ = false;
  EXPECT_EQ(ingest().committed, 2);
}

TEST_F(IngestTest, AShiftedFolderIsNotTakenForTheOldOne) {
  add("b.safetensors", good_tensors());
  ingest();
  add("a.safetensors", good_tensors());
  const IngestReport report = ingest();
  ASSERT_EQ(report.failed.size(), 1U);
  EXPECT_THAT(report.failed[0].reason, HasSubstr("sample 'offline:00000000' is committed as file://"));
}

TEST_F(IngestTest, AMissingOrEmptyFolderIsNotFound) {
  EXPECT_THROW(ingest(), NotFound);
  options_.folder = folder_.path() / "nowhere";
  EXPECT_THROW(ingest(), NotFound);
  EXPECT_FALSE(std::filesystem::exists(options_.ledger)) << "a failed call must not leave a ledger";
}

TEST_F(IngestTest, BadOptionsAreRefused) {
  options_.limit = -1;
  EXPECT_THROW(ingest(), InvalidArgument);
  options_.limit = 0;
  options_.strategy = "telepathy";
  EXPECT_THROW(ingest(), InvalidArgument);
}

TEST_F(IngestTest, AnOnlineLedgerIsRefused) {
  add("a.safetensors", good_tensors());
  open_sqlite_ledger(options_.ledger)->declare("kind", "online");
  EXPECT_THROW(ingest(), Conflict);
}

TEST_F(IngestTest, AMissingTensorIsNamedWithThoseThere) {
  EXPECT_THAT(reason_for([](TensorMap& tensors) { tensors.pop_back(); }),
              testing::AllOf(HasSubstr("no tensor 'aux_hidden_state'"), HasSubstr("input_ids, loss_mask, hidden_state")));
}

TEST_F(IngestTest, AMisshapenTensorIsNamed) {
  EXPECT_THAT(reason_for([](TensorMap& tensors) {
                replace(tensors, "loss_mask", tensor_of<std::int64_t>(DType::kInt64, {2}, {1, 1}));
              }),
              HasSubstr("tensor 'loss_mask' is int64 [2]: int64 [3], as input_ids, is needed"));
}

TEST_F(IngestTest, AnAuxiliaryTensorOfAnotherWidthIsNamed) {
  EXPECT_THAT(reason_for([](TensorMap& tensors) {
                replace(tensors, "aux_hidden_state", tensor_of(DType::kFloat32, {1, 3, 2}, std::vector<float>(6)));
              }),
              HasSubstr("tensor 'aux_hidden_state' is float32 [1, 3, 2]: bfloat16, float16 or float32 [1, 3, 6] is needed"));
}

TEST_F(IngestTest, AnEmptySampleIsRefused) {
  EXPECT_THAT(
      reason_for([](TensorMap& tensors) { replace(tensors, "input_ids", tensor_of<std::int64_t>(DType::kInt64, {0}, {})); }),
      HasSubstr("int64 [T] with T >= 1"));
}

TEST_F(IngestTest, AWrongTypeIsNamed) {
  EXPECT_THAT(reason_for([](TensorMap& tensors) {
                replace(tensors, "hidden_state", tensor_of(DType::kFloat64, {1, 3, 2}, std::vector<double>(6)));
              }),
              HasSubstr("tensor 'hidden_state' is float64"));
}

TEST_F(IngestTest, NotANumberIsNamedWithItsPlace) {
  EXPECT_THAT(reason_for([](TensorMap& tensors) {
                std::vector<float> values(18);
                values[6 + 4] = std::numeric_limits<float>::quiet_NaN();
                replace(tensors, "aux_hidden_state", tensor_of(DType::kFloat32, {1, 3, 6}, values));
              }),
              HasSubstr("tensor 'aux_hidden_state' holds NaN at [0, 1, 4]"));
}

TEST_F(IngestTest, InfinityInBfloat16IsNamed) {
  EXPECT_THAT(reason_for([](TensorMap& tensors) {
                std::vector<std::uint16_t> values(6);
                values[5] = 0xFF80;
                replace(tensors, "hidden_state", tensor_of(DType::kBFloat16, {1, 3, 2}, values));
              }),
              HasSubstr("tensor 'hidden_state' holds infinity at [0, 2, 1]"));
}

TEST_F(IngestTest, ImpossibleTokensAndMasksAreNamed) {
  EXPECT_THAT(reason_for([](TensorMap& tensors) {
                replace(tensors, "input_ids", tensor_of<std::int64_t>(DType::kInt64, {3}, {1, -2, 3}));
              }),
              HasSubstr("'input_ids' holds -2 at [1]"));
  std::filesystem::remove(options_.ledger);
  EXPECT_THAT(reason_for([](TensorMap& tensors) {
                replace(tensors, "loss_mask", tensor_of<std::int64_t>(DType::kInt64, {3}, {1, 1, 5}));
              }),
              HasSubstr("'loss_mask' holds 5 at [2]"));
}

TEST_F(IngestTest, AnotherWidthThanTheSetsIsNamedAlsoLater) {
  const TensorMap wide = {{"input_ids", tensor_of<std::int64_t>(DType::kInt64, {1}, {1})},
                          {"loss_mask", tensor_of<std::int64_t>(DType::kInt64, {1}, {1})},
                          {"hidden_state", tensor_of(DType::kFloat32, {1, 1, 4}, std::vector<float>(4))},
                          {"aux_hidden_state", tensor_of(DType::kFloat32, {1, 1, 12}, std::vector<float>(12))}};
  EXPECT_THAT(reason_for([&](TensorMap& tensors) { tensors = wide; }),
              HasSubstr("tensor 'hidden_state' is 4 wide, but this set's other files are 2 wide"));
  add("d.safetensors", wide);
  const IngestReport later = ingest();
  EXPECT_EQ(later.already, 2);
  EXPECT_EQ(later.failed.size(), 2U);
}

TEST_F(IngestTest, ATruncatedFileIsReported) {
  add("a.safetensors", good_tensors());
  add("b.safetensors", good_tensors());
  std::filesystem::resize_file(options_.folder / "a.safetensors", 100);
  replace_file(options_.folder / "c.ckpt", "no zip");
  const IngestReport report = ingest();
  EXPECT_EQ(report.committed, 1);
  EXPECT_EQ(report.failed.size(), 2U);
}

TEST_F(IngestTest, RealFeatureFilesAreTakenAsTheyAre) {
  DRAFTFLOW_REQUIRE_REAL_DATA(data, "features-torch");
  options_.folder = data;
  const IngestReport report = ingest();
  for (const IngestFailure& failure : report.failed) ADD_FAILURE() << failure.file << ": " << failure.reason;
  EXPECT_EQ(report.files, 64);
  EXPECT_EQ(report.committed, 64);
  EXPECT_FALSE(open_sqlite_ledger_read_only(options_.ledger)->token_counts().empty());
}

}  // namespace
}  // namespace draftflow
