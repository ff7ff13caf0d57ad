// SPDX-License-Identifier: Apache-2.0
#include "draftflow/base/file.h"
#include "draftflow/formats/feature_file.h"
#include "draftflow/formats/safetensors.h"
#include "draftflow/store/feature_store.h"
#include "store/store_testing.h"
#include "testing/temp_folder.h"

namespace draftflow {
namespace {

using store_testing::expect_same;
using store_testing::message_of;
using store_testing::run_metadata;
using store_testing::sample_tensors;
using store_testing::small_tensors;
using ::testing::HasSubstr;

class FilesStore : public ::testing::Test {
 protected:
  FilesStore() {
    write_safetensors(file_, small_tensors());
    ref_ = std::make_unique<SampleRef>(make_file_ref(file_, small_tensors(), SampleId("run:00000000"), run_metadata()));
  }

  testing_support::TempFolder folder_;
  std::filesystem::path file_ = folder_.path() / "a b\n.safetensors";
  std::unique_ptr<SampleRef> ref_;
  std::unique_ptr<FeatureStore> store_ = open_files_store();
};

TEST_F(FilesStore, ReadsTheFileInPlaceByARefInJson) {
  EXPECT_EQ(ref_->feature_store_uri, "file://" + file_.string());
  EXPECT_EQ(ref_->feature_keys[0], FeatureKeys::value_type("input_ids", "input_ids"));
  EXPECT_EQ(ref_->generation, 1u);
  EXPECT_EQ(ref_->incarnation, "");
  const SampleRef again = sample_ref_from_json(sample_ref_to_json(*ref_));
  expect_same(store_->read(again), small_tensors());
  expect_same(store_->read(again, {"hidden_state"}), {small_tensors()[1]});
  EXPECT_THROW(store_->read(again, {"nobody"}), NotFound);
}

TEST_F(FilesStore, NeverWritesOrDeletes) {
  EXPECT_THAT(message_of<InvalidArgument>([&] { store_->put(small_tensors(), SampleId("a"), run_metadata()); }),
              HasSubstr("read-only"));
  EXPECT_FALSE(store_->remove(*ref_));
  store_->gc();
  expect_same(store_->read(*ref_), small_tensors());
}

TEST_F(FilesStore, AChangedFileIsCorrupt) {
  TensorMap other = small_tensors();
  other[1].second = store_testing::random_tensor(DType::kBFloat16, {8, 16}, 3);
  write_safetensors(file_, other);
  EXPECT_THAT(message_of<Corrupt>([&] { store_->read(*ref_); }), HasSubstr("'hidden_state' is bfloat16 [8, 16]"));
  write_safetensors(file_, {other[1]});
  EXPECT_THAT(message_of<Corrupt>([&] { store_->read(*ref_); }), HasSubstr("the file was changed since"));
  std::filesystem::resize_file(file_, 30);
  EXPECT_THROW(store_->read(*ref_), Corrupt);
}

TEST_F(FilesStore, AFileThatIsGoneIsNotFoundAndNamed) {
  std::filesystem::remove(file_);
  EXPECT_THAT(message_of<NotFound>([&] { store_->read(*ref_); }), HasSubstr("the file is gone"));
}

TEST_F(FilesStore, OtherUrisAreNotFound) {
  for (const char* uri : {"disagg://st/a", "file://", "file://relative", "/etc/passwd"}) {
    SampleRef ref = *ref_;
    ref.feature_store_uri = uri;
    EXPECT_THAT(message_of<NotFound>([&] { store_->read(ref); }), HasSubstr(uri));
  }
}

TEST_F(FilesStore, APathThatIsNotUtf8IsRefused) {
  EXPECT_THAT(
      message_of<InvalidArgument>([&] { make_file_ref("/x/\xFF.ckpt", small_tensors(), SampleId("a"), run_metadata()); }),
      HasSubstr("not UTF-8"));
}

TEST(FilesStoreRealData, ReadsTorchFilesInPlace) {
  DRAFTFLOW_REQUIRE_REAL_DATA(folder, "features-torch");
  const auto files = list_feature_files(folder);
  ASSERT_FALSE(files.empty());
  const TensorMap tensors = load_feature_file(files[0]);
  const SampleRef ref = make_file_ref(files[0], tensors, SampleId("run:00000000"), run_metadata());
  expect_same(open_files_store()->read(ref), tensors);
}

}  // namespace
}  // namespace draftflow
