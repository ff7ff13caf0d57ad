// SPDX-License-Identifier: Apache-2.0
//
// For this room's tests only: a small random target, prompts, and a fixture that captures into a ledger and a store of its own.
#pragma once

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "draftflow/base/file.h"
#include "draftflow/capture/worker.h"
#include "draftflow/formats/safetensors.h"
#include "draftflow/ledger/ledger.h"
#include "draftflow/model/bridge.h"
#include "draftflow/model/compute.h"
#include "draftflow/model/llama.h"
#include "draftflow/store/feature_store.h"
#include "testing/temp_folder.h"

namespace draftflow::capture_testing {

using Json = nlohmann::json;
using Ids = std::vector<std::int64_t>;
using Spoil = std::function<at::Tensor(const std::string&, const at::Tensor&)>;

constexpr std::int64_t kHour = 3'600'000;                              // ms
constexpr std::uint64_t kSampleBytes = 3 * (8 + 8 + 32 * 2 + 96 * 2);  // of a sample of three tokens

// A random model as a Hugging Face folder, its weights changed on request.
inline void write_target(const std::filesystem::path& folder, int layers = 8, const Spoil& spoil = {}) {
  make_folders(folder);
  const std::string config =
      fmt::format(R"({{"architectures":["LlamaForCausalLM"],"model_type":"llama","hidden_size":32,"intermediate_size":48,)"
                  R"("num_hidden_layers":{},"num_attention_heads":4,"num_key_value_heads":2,"vocab_size":2048,)"
                  R"("max_position_embeddings":64,"tie_word_embeddings":true}})",
                  layers);
  TensorMap tensors;
  for (const auto& [name, weight] : Llama::random(parse_llama_config(config, "test"), 5).parameters()) {
    tensors.emplace_back(name, from_torch(spoil ? spoil(name, weight).contiguous() : weight));
  }
  write_safetensors(folder / "model.safetensors", tensors);
  replace_file(folder / "config.json", config);
}

inline std::string ids_line(const Ids& ids) {
  return Json({{"input_ids", ids}}).dump() + "\n";
}

// Prompts of three tokens, each another.
inline std::string id_prompts(int count) {
  std::string text;
  for (int i = 0; i < count; ++i) text += ids_line({1, 10 + i, 2000 - i});
  return text;
}

class CaptureTest : public ::testing::Test {
 protected:
  CaptureTest() {
    set_up_compute(1);  // before the first tensor: children are forked from this process
    write_target(options_.target);
  }

  CaptureProgress capture(const CaptureCallback& on_progress = {}) { return run_capture(options_, on_progress, stop_); }
  CaptureProgress capture_prompts(const std::string& text, const std::string& name = "prompts.jsonl") {
    prompts(text, name);
    return capture();
  }
  void prompts(const std::string& text, const std::string& name = "prompts.jsonl") {
    options_.prompts = folder_.path() / name;
    replace_file(options_.prompts, text);
  }
  void ingest(const std::string& text) {
    options_.ingest_only = true;
    capture_prompts(text);
    options_.ingest_only = false;
    options_.prompts.clear();
  }

  Llama::Output forward(const Ids& ids, const std::vector<int>& layers) const {
    const at::NoGradGuard no_grad;
    return Llama::load(ModelFolder(options_.target), at::kFloat).forward(at::tensor(ids, at::kLong).unsqueeze(0), layers);
  }

  std::unique_ptr<Ledger> ledger() const { return open_sqlite_ledger(options_.ledger); }
  LedgerStatus status() const { return ledger()->status(); }
  std::unique_ptr<FeatureStore> store() const {
    return open_shared_dir_store(options_.store.parent_path(), StoreId(options_.store.filename()), {});
  }
  std::vector<std::string> reasons() const {
    std::vector<std::string> reasons;
    for (const auto& [id, reason] : ledger()->failed_prompts(100)) reasons.push_back(reason);
    return reasons;
  }
  std::vector<SampleRef> refs() const {
    const auto books = ledger();
    std::vector<SampleRef> refs;
    for (const std::string& id : books->all_committed_ids()) refs.push_back(*books->get_committed(SampleId(id)));
    return refs;
  }

  // Every prompt is committed once, with its bytes in the store, and nothing else is there.
  void expect_complete(int count) const {
    const LedgerStatus now = status();
    EXPECT_EQ(now.prompts_done, count);
    EXPECT_EQ(now.committed, count);
    for (const SampleRef& ref : refs()) {
      EXPECT_NO_THROW(EXPECT_EQ(store()->read(ref).size(), 4U)) << ref.sample_id.str();
    }
    store()->gc();
    EXPECT_EQ(store()->health().resident_samples, static_cast<std::uint64_t>(count));
  }

  const testing_support::TempFolder folder_;
  std::atomic<bool> stop_{false};
  CaptureOptions options_{.target = folder_.path() / "target",
                          .tokenizer = std::filesystem::path(DRAFTFLOW_SOURCE_DIR) / "examples/target/tokenizer.model",
                          .ledger = folder_.path() / "ledger.sqlite3",
                          .store = folder_.path() / "features",
                          .run_id = "r"};
};

}  // namespace draftflow::capture_testing
