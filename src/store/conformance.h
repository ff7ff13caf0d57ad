// SPDX-License-Identifier: Apache-2.0
//
// For this room's tests only: the backends that store bytes, and the fixture of the suites that run over each of them. A
// test attaches as often as it likes: every attach of one name sees the same store, until the test ends.
//
//   class Verbs : public Conformance {};
//   TEST_P(Verbs, PutThenRead) { attach()->put(...); }
//   DRAFTFLOW_INSTANTIATE_CONFORMANCE(Verbs);
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "draftflow/store/feature_store.h"
#include "store/store_testing.h"
#include "testing/temp_folder.h"

namespace draftflow {

struct StoreOptionsForTests {
  StoreKind kind = StoreKind::kLedgered;
  std::uint64_t max_resident_bytes = 0;
  std::int64_t max_hold_age_ms = 0;
  bool retain_on_release = false;
};

struct Backend {
  const char* name;
  std::function<std::unique_ptr<FeatureStore>(const std::filesystem::path& root, const StoreId& id,
                                              const StoreOptionsForTests& options)>
      attach;
  const char* uri;        // of sample "s/1" in store "features"; {} stands for the generation
  const char* note = "";  // what of the suites means less here, and where it is tested instead
  std::function<void(const std::filesystem::path& root)> end = {};  // a test is over: lets go of what attach kept for it
};

inline void PrintTo(const Backend& backend, std::ostream* out) {
  *out << backend.name << (*backend.note == '\0' ? "" : ": ") << backend.note;
}

class Conformance : public ::testing::TestWithParam<Backend> {
 protected:
  ~Conformance() override {
    if (GetParam().end) GetParam().end(folder_.path());
  }
  std::unique_ptr<FeatureStore> attach(const std::string& id = "features", const StoreOptionsForTests& options = {}) {
    return GetParam().attach(folder_.path(), StoreId(id), options);
  }

  testing_support::TempFolder folder_;
};

inline Backend shared_dir_backend(const char* name, Durability durability) {
  const auto attach = [durability](const std::filesystem::path& root, const StoreId& id, const StoreOptionsForTests& options) {
    return create_shared_dir_store(root, id,
                                   {.kind = options.kind,
                                    .durability = durability,
                                    .max_resident_bytes = options.max_resident_bytes,
                                    .max_hold_age_ms = options.max_hold_age_ms,
                                    .retain_on_release = options.retain_on_release});
  };
  return {name, attach, "disagg://features/s/1"};
}

inline std::vector<Backend> conformance_backends() {
  return {shared_dir_backend("shared_dir", Durability::kNone), shared_dir_backend("shared_dir_durable", Durability::kFull)};
}

#define DRAFTFLOW_INSTANTIATE_CONFORMANCE(suite)                                         \
  INSTANTIATE_TEST_SUITE_P(Backends, suite, ::testing::ValuesIn(conformance_backends()), \
                           [](const auto& backend) { return std::string(backend.param.name); })

}  // namespace draftflow
