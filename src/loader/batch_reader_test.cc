// SPDX-License-Identifier: Apache-2.0
#include "draftflow/loader/batch_reader.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "draftflow/base/error.h"

namespace draftflow {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

// Windows of so many samples each; the ids count on.
class Counted : public WindowSource {
 public:
  Counted(FeatureStore& store, std::vector<int> sizes) : store_(store), sizes_(std::move(sizes)) {}

  WindowAnswer next() override {
    if (at_ == sizes_.size()) return {.state = WindowState::kEndOfStream, .window = std::nullopt};
    Window window{.number = static_cast<std::int64_t>(at_), .refs = {}};
    for (int i = 0; i < sizes_[at_]; ++i, ++id_) {
      const std::vector<std::int64_t> ids(static_cast<std::size_t>(1 + id_ % 3), id_);
      const Tensor tensor =
          Tensor::copy_of(DType::kInt64, {static_cast<std::int64_t>(ids.size())}, std::as_bytes(std::span(ids)));
      window.refs.push_back(store_.put({{"input_ids", tensor}}, SampleId(fmt::format("s{}", id_)), {.run_id = RunId("run")}));
      if (id_ == lost_) store_.remove(window.refs.back());
    }
    ++at_;
    return {.state = WindowState::kWindow, .window = std::move(window)};
  }

  bool wait(std::int64_t /*timeout_ms*/) override { return true; }

  int lost_ = -1;

 private:
  FeatureStore& store_;
  const std::vector<int> sizes_;
  std::size_t at_ = 0;
  int id_ = 0;
};

// "window.index: ids", with a full stop after a share's last batch.
std::vector<std::string> read_all(const std::vector<int>& sizes, BatchOptions options, int lost = -1) {
  const auto store = create_memory_store(StoreId("m"), {});
  options.loader.check = SampleCheck::kFinite;
  auto source = std::make_unique<Counted>(*store, sizes);
  source->lost_ = lost;
  BatchReader reader(std::move(source), *store, options);
  std::vector<std::string> read;
  const std::atomic<bool> stop{false};
  for (BatchAnswer answer = reader.next(stop, 60'000); answer.batch; answer = reader.next(stop, 60'000)) {
    const PaddedBatch& batch = *answer.batch;
    std::string text = fmt::format("{}.{}:", batch.window, batch.index);
    for (std::size_t i = 0; i < batch.sample_ids.size(); ++i)
      text += fmt::format(" {}/{}", batch.sample_ids[i], batch.lengths[i]);
    read.push_back(text + (batch.last ? "." : ""));
    EXPECT_EQ(batch.tensors.empty(), batch.sample_ids.size() == batch.failed.size());
  }
  return read;
}

TEST(BatchReader, CutsEachWindowIntoBatches) {
  EXPECT_THAT(read_all({3, 2}, {.batch_size = 2}), ElementsAre("0.0: s0/1 s1/2", "0.1: s2/3.", "1.0: s3/1 s4/2."));
  EXPECT_THAT(read_all({3, 2}, {}), ElementsAre("0.0: s0/1 s1/2 s2/3.", "1.0: s3/1 s4/2."));
}

TEST(BatchReader, AWindowWithoutASampleOfThisRankIsAnEmptyBatch) {
  EXPECT_THAT(read_all({0, 1}, {.batch_size = 2}), ElementsAre("0.0:.", "1.0: s0/1."));
}

TEST(BatchReader, ASampleThatCannotBeReadKeepsItsPlace) {
  EXPECT_THAT(read_all({2}, {}, 0), ElementsAre("0.0: s0/0 s1/2."));
  EXPECT_THAT(read_all({1}, {}, 0), ElementsAre("0.0: s0/0."));
}

TEST(BatchReader, ReadersInTurnGiveTheOrderOfOne) {
  for (const int readers : {2, 3, 4}) {
    std::vector<std::vector<std::string>> shares;
    for (int reader = 0; reader < readers; ++reader) {
      shares.push_back(read_all({3, 2, 5, 1}, {.batch_size = 2, .reader = reader, .readers = readers}));
    }
    std::vector<std::string> merged;
    for (std::size_t i = 0; i < 7; ++i) {
      auto& share = shares[i % static_cast<std::size_t>(readers)];
      ASSERT_LT(i / static_cast<std::size_t>(readers), share.size());
      merged.push_back(share[i / static_cast<std::size_t>(readers)]);
    }
    EXPECT_EQ(merged, read_all({3, 2, 5, 1}, {.batch_size = 2})) << readers;
  }
}

TEST(BatchReader, OptionsThatMakeNoSenseAreRefused) {
  const auto store = create_memory_store(StoreId("m"), {});
  const auto made = [&](const BatchOptions& options) {
    BatchReader(std::make_unique<Counted>(*store, std::vector<int>{}), *store, options);
  };
  EXPECT_THROW(made({.batch_size = -1}), InvalidArgument);
  EXPECT_THROW(made({.reader = 2, .readers = 2}), InvalidArgument);
}

}  // namespace
}  // namespace draftflow
