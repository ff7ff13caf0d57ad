// SPDX-License-Identifier: Apache-2.0
//
// For the tests of commands over a store only: a store in a fresh folder, and what a command prints.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "cli/app.h"
#include "cli/store_command.h"
#include "draftflow/base/file.h"
#include "draftflow/formats/safetensors.h"
#include "testing/temp_folder.h"

namespace draftflow::cli {

// Calls `on_flush` each time that the text is flushed.
class WatchedText : public std::stringbuf {
 public:
  explicit WatchedText(std::function<void(const std::string&)> on_flush) : on_flush_(std::move(on_flush)) {}

 protected:
  int sync() override {
    if (on_flush_) on_flush_(str());
    return 0;
  }

 private:
  std::function<void(const std::string&)> on_flush_;
};

class StoreCommand : public ::testing::Test {
 protected:
  struct Outcome {
    int code;
    std::string out, err;
  };

  // `draftflow WORDS ...`
  static Outcome run(std::vector<std::string> words, std::function<void(const std::string&)> on_flush = {}) {
    words.insert(words.begin(), "draftflow");
    std::vector<const char*> argv;
    for (const std::string& word : words) argv.push_back(word.c_str());
    WatchedText text(std::move(on_flush));
    std::ostream out(&text);
    std::ostringstream err;
    const int code = run_cli(static_cast<int>(argv.size()), argv.data(), {out, err, false});
    return {code, text.str(), err.str()};
  }
  // `draftflow store WORDS ...`
  static Outcome call(std::vector<std::string> words, std::function<void(const std::string&)> on_flush = {}) {
    words.insert(words.begin(), "store");
    return run(std::move(words), std::move(on_flush));
  }

  static std::vector<nlohmann::json> json_lines(const std::string& text) {
    std::vector<nlohmann::json> all;
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) all.push_back(nlohmann::json::parse(line));
    return all;
  }

  static std::vector<std::string> lines_of(const std::string& text) {
    std::vector<std::string> all;
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) all.push_back(line);
    return all;
  }

  static TensorMap tensors(float first = 1) {
    const std::vector<float> states{first, -2.5, 8};
    const std::vector<std::int64_t> ids{5, 6, 7};
    return {{"hidden_state", Tensor::copy_of(DType::kFloat32, {1, 3}, std::as_bytes(std::span(states)))},
            {"input_ids", Tensor::copy_of(DType::kInt64, {3}, std::as_bytes(std::span(ids)))}};
  }

  std::string path() const { return (temp_.path() / "st").string(); }
  std::unique_ptr<FeatureStore> store(const SharedDirOptions& options = {}) const {
    return create_shared_dir_store(temp_.path(), StoreId("st"), options);
  }
  SampleRef put(const std::string& id, float first = 1) const {
    return store()->put(tensors(first), SampleId(id), {.run_id = RunId("run")});
  }
  std::filesystem::path file_of(const SampleRef& ref) const { return store()->resident(ref).path; }

  // Flips a bit of the last tensor byte.
  static void flip(const std::filesystem::path& file) {
    std::string bytes = read_text_file(file);
    bytes.back() ^= 0x20;
    replace_file(file, bytes);
  }

  testing_support::TempFolder temp_;
};

inline void expect_same_by_name(const TensorMap& got, const TensorMap& wanted) {
  ASSERT_EQ(got.size(), wanted.size());
  for (const auto& [name, tensor] : wanted) {
    const Tensor* found = find_tensor(got, name);
    ASSERT_NE(found, nullptr) << name;
    EXPECT_EQ(found->dtype, tensor.dtype) << name;
    EXPECT_EQ(found->shape, tensor.shape) << name;
    EXPECT_TRUE(std::equal(found->bytes.begin(), found->bytes.end(), tensor.bytes.begin(), tensor.bytes.end())) << name;
  }
}

}  // namespace draftflow::cli
