// SPDX-License-Identifier: Apache-2.0
#include "cli/models.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "draftflow/base/error.h"
#include "draftflow/base/file.h"
#include "testing/temp_folder.h"

namespace draftflow::cli {
namespace {

using testing::HasSubstr;

std::string refusal(const std::vector<std::filesystem::path>& places) {
  try {
    load_models_from(places);
  } catch (const Unavailable& error) {
    return error.what();
  }
  return "loaded";
}

TEST(Models, AMissingModuleNamesThePlacesAndTheWayOut) {
  const std::string text = refusal({"/nowhere/libdraftflow_models.so", "/else/libdraftflow_models.so"});
  EXPECT_THAT(text, HasSubstr("looked for /nowhere/libdraftflow_models.so, /else/libdraftflow_models.so"));
  EXPECT_THAT(text, HasSubstr("make build"));
}

TEST(Models, AFileThatIsNoLibraryIsRefused) {
  const testing_support::TempFolder folder;
  replace_file(folder.path() / "libdraftflow_models.so", "not a library");
  EXPECT_THAT(refusal({folder.path() / "libdraftflow_models.so"}), HasSubstr("could not be loaded"));
}

TEST(Models, ALibraryOfSomethingElseIsRefused) {
  EXPECT_THAT(refusal({"/lib/x86_64-linux-gnu/libm.so.6"}), HasSubstr("exports no draftflow_models"));
}

TEST(Models, IsLookedForBesideTheBinaryFirst) {
  const auto places = models_places();
  ASSERT_EQ(places.size(), 2u);
  EXPECT_EQ(places[0], std::filesystem::path(DRAFTFLOW_BINARY_DIR) / "lib" / "libdraftflow_models.so");
}

}  // namespace
}  // namespace draftflow::cli
