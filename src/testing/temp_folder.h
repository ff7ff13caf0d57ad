// SPDX-License-Identifier: Apache-2.0
//
// For tests only: a fresh folder that is removed with everything in it, and the place of the optional real data.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "draftflow/base/random.h"

namespace draftflow::testing_support {

class TempFolder {
 public:
  TempFolder() : path_(std::filesystem::temp_directory_path() / ("draftflow-test-" + random_hex128())) {
    std::filesystem::create_directories(path_);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::filesystem::path& path() const { return path_; }

  std::vector<std::string> list() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(path_)) names.push_back(entry.path().filename());
    std::sort(names.begin(), names.end());
    return names;
  }

 private:
  std::filesystem::path path_;
};

// Real files to test against, beside the checkout or where DRAFTFLOW_TEST_DATA points; nothing when they are absent.
inline std::optional<std::filesystem::path> real_data(const std::string& name) {
  const char* given = std::getenv("DRAFTFLOW_TEST_DATA");
  const std::filesystem::path root =
      given != nullptr ? std::filesystem::path(given) : std::filesystem::path(DRAFTFLOW_SOURCE_DIR) / ".." / "shared" / "data";
  std::error_code ignored;
  if (!std::filesystem::exists(root / name, ignored)) return std::nullopt;
  return std::filesystem::weakly_canonical(root / name);
}

#define DRAFTFLOW_REQUIRE_REAL_DATA(variable, name)                                                          \
  const auto variable##_found = ::draftflow::testing_support::real_data(name);                               \
  if (!variable##_found) GTEST_SKIP() << "real data '" << (name) << "' is absent (set DRAFTFLOW_TEST_DATA)"; \
  const std::filesystem::path variable = *variable##_found

}  // namespace draftflow::testing_support
