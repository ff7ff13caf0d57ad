// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <functional>
#include <ostream>
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
  std::function<std::unique_ptr<FeatureStore>(const std::filesystem::path& root, const StoreId& id, const StoreOptionsForTests&)> attach;
};
inline void PrintTo(const Backend& backend, std::ostream* out) { *out << backend.name; }
class Conformance : public ::testing::TestWithParam<Backend> {
 protected:
  std::unique_ptr<FeatureStore> attach(const std::string& id = "features", const StoreOptionsForTests& options = {}) {
    return GetParam().attach(folder_.path(), StoreId(id), options);
  }
  testing_support::TempFolder folder_;
};
inline std::unique_ptr<FeatureStore> plain(const std::filesystem::path& root, const StoreId& id, const StoreOptionsForTests& o) {
  return create_shared_dir_store(root, id, {.kind = o.kind, .max_resident_bytes = o.max_resident_bytes, .max_hold_age_ms = o.max_hold_age_ms, .retain_on_release = o.retain_on_release});
}
#define DRAFTFLOW_INSTANTIATE_CONFORMANCE(suite) INSTANTIATE_TEST_SUITE_P(Backends, suite, ::testing::Values(Backend{"shared_dir", plain}), [](const auto& b) { return std::string(b.param.name); })
}  // namespace draftflow
