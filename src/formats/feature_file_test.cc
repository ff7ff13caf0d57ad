// SPDX-License-Identifier: Apache-2.0
#include "draftflow/formats/feature_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <array>
#include <fstream>

#include "draftflow/base/error.h"
#include "draftflow/base/file.h"
#include "draftflow/formats/safetensors.h"
#include "formats/gzip_writer.h"
#include "formats/zip_builder.h"
#include "testing/temp_folder.h"

namespace draftflow {
namespace {

using testing::HasSubstr;
using testing_support::TempFolder;
using namespace std::string_literals;

// A torch file of an empty dict, and one of {"n": None}.
std::string empty_ckpt() {
  return testing_support::ZipBuilder().add("a/data.pkl", "\x80\x02}."s).finish();
}
std::string value_ckpt() {
  return testing_support::ZipBuilder().add("a/data.pkl", "\x80\x02}X\1\0\0\0nNs."s).finish();
}

void write(const std::filesystem::path& path, const std::string& bytes) {
  std::filesystem::create_directories(path.parent_path());
  std::ofstream(path) << bytes;
}

TEST(FeatureFile, ListsEveryKindBelowTheFolderInByteOrder) {
  const TempFolder folder;
  for (const char* name :
       {"b.ckpt", "a/z.ckpt.gz", "a-b.ckpt", "a/deep/er/x.safetensors", "skip.txt", "skip.ckpt.tmp", "skip.gz", "UP.CKPT"}) {
    write(folder.path() / name, "");
  }
  std::vector<std::string> names;
  for (const auto& path : list_feature_files(folder.path())) {
    EXPECT_TRUE(path.is_absolute());
    names.push_back(std::filesystem::relative(path, folder.path()));
  }
  // '-' sorts before '/': the order of the whole path's bytes, not of its components
  EXPECT_EQ(names, (std::vector<std::string>{"a-b.ckpt", "a/deep/er/x.safetensors", "a/z.ckpt.gz", "b.ckpt"}));
}

TEST(FeatureFile, FollowsLinksToFilesOnly) {
  const TempFolder folder, elsewhere;
  write(elsewhere.path() / "real.ckpt", "");
  std::filesystem::create_symlink(elsewhere.path() / "real.ckpt", folder.path() / "link.ckpt");
  std::filesystem::create_directory_symlink(elsewhere.path(), folder.path() / "folder");
  std::filesystem::create_directory_symlink(elsewhere.path(), folder.path() / "folder.ckpt");
  std::filesystem::create_symlink("nowhere",
                                  folder.path() / "dangling.ckpt");  // listed, so that reading it is an error by name
  std::vector<std::string> names;
  for (const auto& path : list_feature_files(folder.path())) names.push_back(path.filename());
  EXPECT_EQ(names, (std::vector<std::string>{"dangling.ckpt", "link.ckpt"}));
  EXPECT_THROW(load_feature_file(folder.path() / "dangling.ckpt"), NotFound);
}

TEST(FeatureFile, ListingNamesAFolderThatIsNone) {
  const TempFolder folder;
  write(folder.path() / "file", "");
  EXPECT_TRUE(list_feature_files(folder.path()).empty());
  EXPECT_THROW(list_feature_files(folder.path() / "file"), InvalidArgument);
  try {
    list_feature_files("/nonexistent");
    FAIL();
  } catch (const NotFound& error) {
    EXPECT_STREQ(error.what(), "the folder /nonexistent does not exist");
  }
}

TEST(FeatureFile, LoadsEveryKind) {
  const TempFolder folder;
  write(folder.path() / "a.ckpt", empty_ckpt());
  write(folder.path() / "a.ckpt.gz", testing_support::gzipped(empty_ckpt()));
  EXPECT_TRUE(load_feature_file(folder.path() / "a.ckpt").empty());
  EXPECT_TRUE(load_feature_file(folder.path() / "a.ckpt.gz").empty());
  const std::array<std::int64_t, 2> ids{5, 6};
  write_safetensors(folder.path() / "a.safetensors",
                    {{"ids", Tensor::copy_of(DType::kInt64, {2}, std::as_bytes(std::span(ids)))}});
  EXPECT_EQ(load_feature_file(folder.path() / "a.safetensors").at(0).second.as<std::int64_t>()[1], 6);
}

TEST(FeatureFile, NamesAValueThatIsNoTensor) {
  const TempFolder folder;
  write(folder.path() / "a.ckpt", value_ckpt());
  try {
    load_feature_file(folder.path() / "a.ckpt");
    FAIL();
  } catch (const InvalidArgument& error) {
    EXPECT_THAT(error.what(), HasSubstr("a.ckpt: 'n' is a NoneType: every value of a feature file is a tensor"));
  }
}

TEST(FeatureFile, ReadsWhatElseIsInAFileByNameAndType) {
  const TempFolder folder;
  write(folder.path() / "a.ckpt", value_ckpt());
  const FeatureFile file = read_feature_file(folder.path() / "a.ckpt");
  EXPECT_TRUE(file.tensors.empty());
  EXPECT_EQ(file.values, (std::vector<std::pair<std::string, std::string>>{{"n", "NoneType"}}));
}

TEST(FeatureFile, RefusesOtherEndingsAndDamage) {
  const TempFolder folder;
  EXPECT_THROW(load_feature_file(folder.path() / "a.pt"), InvalidArgument);
  EXPECT_THROW(load_feature_file(folder.path() / "a.ckpt"), NotFound);
  for (const char* name : {"a.ckpt", "a.ckpt.gz", "a.safetensors"}) {
    write(folder.path() / name, "");
    EXPECT_THROW(load_feature_file(folder.path() / name), Corrupt) << name;
    write(folder.path() / name, "neither a zip nor anything else");
    EXPECT_THROW(load_feature_file(folder.path() / name), Corrupt) << name;
  }
  write(folder.path() / "b.ckpt.gz", testing_support::gzipped(empty_ckpt().substr(1)));
  EXPECT_THROW(load_feature_file(folder.path() / "b.ckpt.gz"), Corrupt);
}

TEST(FeatureFile, APipeOrFolderDoesNotHang) {
  const TempFolder folder;
  for (const char* ending : {".ckpt", ".ckpt.gz", ".safetensors"}) {
    const std::string pipe = "pipe"s + ending, inner = "folder"s + ending;
    ASSERT_EQ(mkfifo((folder.path() / pipe).c_str(), 0600), 0);
    std::filesystem::create_directory(folder.path() / inner);
    EXPECT_THROW(load_feature_file(folder.path() / pipe), InvalidArgument);
    EXPECT_THROW(load_feature_file(folder.path() / inner), InvalidArgument);
  }
  EXPECT_TRUE(list_feature_files(folder.path()).empty());
}

}  // namespace
}  // namespace draftflow
