// SPDX-License-Identifier: Apache-2.0
#include "store/reference/reference_store.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <fstream>
#include <set>

#include "draftflow/formats/torch_zip.h"
#include "draftflow/records/manifest.h"
#include "formats/zip_builder.h"
#include "store/store_testing.h"
#include "testing/temp_folder.h"

namespace draftflow::store {
namespace {

using store_testing::expect_same;
using store_testing::files_below;
using store_testing::message_of;
using store_testing::run_metadata;
using store_testing::small_tensors;
using ::testing::AllOf;
using ::testing::HasSubstr;

TEST(ReferenceName, IsTheReferencesOwnExpression) {
  const auto parsed = parse_reference_name("a.g1.b.g12.ckpt");
  ASSERT_TRUE(parsed);
  EXPECT_EQ(parsed->sample_id, "a.g1.b");
  EXPECT_EQ(parsed->generation, 12u);
  EXPECT_EQ(parse_reference_name("a.g007.ckpt")->generation, 7u);
  for (const char* other : {"a.ckpt", ".g1.ckpt", "a.g.ckpt", "a.g-1.ckpt", "a.g1.ckpt.tmp", "a\n.g1.ckpt", "a.g1x.ckpt",
                            "a.g99999999999999999999.ckpt", "store.json"}) {
    EXPECT_FALSE(parse_reference_name(other)) << other;
  }
}

class ReferenceFolder : public ::testing::Test {
 protected:
  ReferenceFolder() { std::filesystem::create_directory(root()); }
  std::filesystem::path root() const { return temp_.path() / "st"; }
  std::unique_ptr<FeatureStore> open(const SharedDirOptions& options = {}) {
    return open_shared_dir_store(temp_.path(), StoreId("st"), options);
  }
  void write(const std::string& name, const TensorMap& tensors) {
    const UniqueFd fd = open_file(root() / name, O_WRONLY | O_CREAT | O_TRUNC);
    write_torch_zip(fd.get(), root() / name, tensors);
  }
  static SampleRef ref(const std::string& id, std::uint64_t generation, const TensorMap& tensors = small_tensors()) {
    SampleRef made{.sample_id = SampleId(id), .run_id = RunId("run")};
    made.feature_store_uri = "disagg://st/" + id;
    for (const auto& [name, tensor] : tensors) made.feature_specs.push_back(spec_from_tensor(name, tensor));
    made.generation = generation;
    return made;
  }

  testing_support::TempFolder temp_;
};

TEST_F(ReferenceFolder, ReadsTheGenerationAskedForAndNoOther) {
  write("a.g1.ckpt", small_tensors(1));
  write("a.g10.ckpt", small_tensors(2));
  write("a.g2.ckpt.tmp", small_tensors(3));
  const auto store = open();
  EXPECT_EQ(store->health().backend, "reference");
  EXPECT_EQ(store->health().resident_samples, 2u);
  EXPECT_EQ(store->kind(), StoreKind::kLedgered);
  expect_same(store->read(ref("a", 1), {}), small_tensors(1));
  const Fetched fetched = store->get(ref("a", 10));
  expect_same(fetched.tensors, small_tensors(2));
  EXPECT_EQ(store->get(ref("a", 10), {.names = {"hidden_state"}}).tensors.size(), 1u);
  EXPECT_THAT(message_of<NotFound>([&] { store->get(ref("a", 2)); }),
              AllOf(HasSubstr("sample 'a' generation 2"), HasSubstr("st")));
  EXPECT_EQ(store->find(SampleId("a")).generation, 10u);
  EXPECT_EQ(store->find(SampleId("a"), 1).feature_specs.size(), 2u);
  EXPECT_THROW(store->find(SampleId("b")), NotFound);
}

TEST_F(ReferenceFolder, NothingIsEverWrittenOrDeleted) {
  write("a.g1.ckpt", small_tensors());
  write("b.g1.ckpt", small_tensors());
  const auto before = files_below(root());
  {
    const auto store = open();
    store->release(store->get(ref("a", 1)).handle);
    EXPECT_FALSE(store->remove(ref("a", 1)));
    EXPECT_EQ(store->abort(SampleId("b")), 0u);
    store->gc();
    EXPECT_THAT(message_of<InvalidArgument>([&] { store->put(small_tensors(), SampleId("c"), run_metadata()); }),
                HasSubstr("only read"));
  }
  EXPECT_EQ(files_below(root()), before);
  EXPECT_THAT(message_of<InvalidArgument>([&] { create_shared_dir_store(temp_.path(), StoreId("st"), {}); }),
              AllOf(HasSubstr(root().string()), HasSubstr("reference runtime wrote"), HasSubstr("under another name")));
  EXPECT_EQ(files_below(root()), before);
}

TEST_F(ReferenceFolder, ALeaseIsATokenThatNobodyElseHas) {
  write("a.g1.ckpt", small_tensors());
  const auto one = open(), two = open();
  std::set<std::string> tokens;
  for (int i = 0; i < 3; ++i) {
    tokens.insert(one->get(ref("a", 1)).handle.lease_token);
    tokens.insert(two->get(ref("a", 1), {.zero_copy = true}).handle.lease_token);
  }
  EXPECT_EQ(tokens.size(), 6u);
}

// The reference looks a feature up by its key, whose last part is the name in the file.
TEST_F(ReferenceFolder, AFeatureIsFoundByItsKey) {
  write("a.g1.ckpt", small_tensors());
  const auto store = open();
  SampleRef keyed = ref("a", 1);
  keyed.feature_keys = {{"ids", "a/input_ids"}, {"states", "hidden_state"}};
  keyed.feature_specs.edit([](auto& specs) { specs[0].name = "ids"; });
  keyed.feature_specs.edit([](auto& specs) { specs[1].name = "states"; });
  TensorMap wanted = small_tensors();
  wanted[0].first = "ids";
  wanted[1].first = "states";
  expect_same(store->read(keyed, {}), wanted);
  EXPECT_EQ(store->get(keyed, {.names = {"states"}}).tensors.at(0).first, "states");
  keyed.feature_keys = {{"ids", "a/input_ids"}, {"states", "a/gone"}};
  EXPECT_THAT(message_of<Corrupt>([&] { store->get(keyed); }), HasSubstr("no tensor 'states'"));
}

TEST_F(ReferenceFolder, ANameWithASlashInTheFileIsFound) {
  const TensorMap tensors{{"deep/state", store_testing::random_tensor(DType::kFloat32, {2}, 1)}};
  write("a.g1.ckpt", tensors);
  const auto store = open();
  expect_same(store->read(store->find(SampleId("a"))), tensors);
}

std::string mappings() {
  std::ifstream maps("/proc/self/maps");
  return {std::istreambuf_iterator<char>(maps), {}};
}

TEST_F(ReferenceFolder, MappedBytesOutliveTheFileAndTheStore) {
  write("a.g1.ckpt", small_tensors(1));
  write("a.g1.ckpt.0123.tmp", small_tensors(2));
  TensorMap mapped;
  {
    const auto store = open();
    Fetched fetched = store->get(ref("a", 1), {.zero_copy = true});
    mapped = std::move(fetched.tensors);
    store->release(fetched.handle);
    std::filesystem::rename(root() / "a.g1.ckpt.0123.tmp", root() / "a.g1.ckpt");  // the reference's put after a free
    expect_same(store->get(ref("a", 1), {.zero_copy = true}).tensors, small_tensors(2));
    std::filesystem::remove(root() / "a.g1.ckpt");
    EXPECT_THROW(store->get(ref("a", 1), {.zero_copy = true}), NotFound);
  }
  expect_same(mapped, small_tensors(1));
  const std::string name = (root() / "a.g1.ckpt").string();
  EXPECT_THAT(mappings(), HasSubstr(name));
  mapped.clear();
  EXPECT_THAT(mappings(), ::testing::Not(HasSubstr(name)));
}

TEST_F(ReferenceFolder, AMappedFileIsCheckedAsACopiedOneIs) {
  write("a.g1.ckpt", small_tensors());
  const std::string good = read_text_file(root() / "a.g1.ckpt");
  const auto store = open();
  SampleRef lying = ref("a", 1);
  lying.feature_specs.edit([](auto& specs) { specs[1].shape = {8, 16}; });
  EXPECT_THROW(store->get(lying, {.zero_copy = true}), Corrupt);
  const TensorMap tensors = small_tensors();
  const std::span<const std::byte> states = tensors[1].second.bytes;
  const std::size_t at = good.find(std::string(reinterpret_cast<const char*>(states.data()), states.size()));
  ASSERT_NE(at, std::string::npos);
  std::string flipped = good;
  flipped[at + 3] ^= 1;
  for (const std::string& bad : {flipped, good.substr(0, good.size() / 2), std::string()}) {
    replace_file(root() / "a.g1.ckpt", bad);
    for (const bool zero_copy : {false, true}) {
      EXPECT_THROW(store->get(ref("a", 1), {.zero_copy = zero_copy}), Corrupt) << bad.size() << zero_copy;
    }
  }
}

TEST_F(ReferenceFolder, APickleThatWouldRunSomethingIsRefusedByName) {
  const std::filesystem::path proof = temp_.path() / "ran";
  const std::string command = "touch " + proof.string();
  const std::string bomb =
      std::string("\x80\x02") + "cposix\nsystem\nX" + testing_support::ZipBuilder::u32(command.size()) + command + "\x85R.";
  replace_file(root() / "a.g1.ckpt", testing_support::ZipBuilder().add("a/data.pkl", bomb).add("a/version", "3\n").finish());
  const auto store = open();
  EXPECT_THAT(message_of<InvalidArgument>([&] { store->get(ref("a", 1)); }),
              AllOf(HasSubstr("a.g1.ckpt"), HasSubstr("posix"), HasSubstr("system")));
  EXPECT_THROW(store->find(SampleId("a")), InvalidArgument);
  EXPECT_FALSE(std::filesystem::exists(proof));
}

TEST_F(ReferenceFolder, WhatIsNoFileNeitherHangsNorCounts) {
  write("good.g1.ckpt", small_tensors());
  ASSERT_EQ(::mkfifo((root() / "pipe.g1.ckpt").c_str(), 0600), 0);
  std::filesystem::create_directory(root() / "folder.g1.ckpt");
  write("zeros.g007.ckpt", small_tensors());
  write("zeros.g3.ckpt", small_tensors(3));
  write("\xff.g1.ckpt", small_tensors());
  const auto store = open();
  EXPECT_THROW(store->get(ref("pipe", 1)), Corrupt);
  EXPECT_THROW(store->get(ref("folder", 1)), Corrupt);
  EXPECT_EQ(store->find(SampleId("zeros")).generation, 3u);
  EXPECT_EQ(store->health().resident_samples, 2u);
  std::vector<std::string> damaged;
  store->for_each([](const ResidentSample&) { return true; },
                  [&](const std::filesystem::path& path, const std::string&) { damaged.push_back(path.filename()); });
  EXPECT_THAT(damaged, ::testing::UnorderedElementsAre("pipe.g1.ckpt", "folder.g1.ckpt", "zeros.g007.ckpt", "\xff.g1.ckpt"));
}

TEST_F(ReferenceFolder, DotsAreIdsLikeAnyOther) {
  write("..g1.ckpt", small_tensors(1));
  write("...g1.ckpt", small_tensors(2));
  const auto store = open();
  expect_same(store->get(ref(".", 1)).tensors, small_tensors(1));
  expect_same(store->get(ref("..", 1)).tensors, small_tensors(2));
}

TEST_F(ReferenceFolder, WhatTheReferenceCannotNameIsNotThere) {
  write("a.g1.ckpt", small_tensors());
  std::filesystem::create_directory(root() / "sub");
  write("sub/x.g1.ckpt", small_tensors());
  const auto store = open();
  for (const std::string& id : {std::string("../st/a"), std::string("sub/x"), std::string("a\nb"), std::string(300, 'x')}) {
    EXPECT_THROW(store->get(ref(id, 1)), NotFound) << id;
    EXPECT_THROW(store->find(SampleId(id), 1), NotFound) << id;
  }
  SampleRef other = ref("a", 1);
  other.incarnation = std::string(32, '1');
  EXPECT_THAT(message_of<NotFound>([&] { store->get(other); }), HasSubstr("of a store of draftflow's"));
  other = ref("a", 1);
  other.feature_store_uri = "disagg://else/a";
  EXPECT_THROW(store->get(other), NotFound);
}

TEST_F(ReferenceFolder, WhatIsNotAsTheRefSaysIsCorrupt) {
  write("a.g1.ckpt", small_tensors());
  const auto store = open();
  SampleRef lying = ref("a", 1);
  lying.feature_specs.edit([](auto& specs) { specs[1].shape = {8, 16}; });
  EXPECT_THROW(store->get(lying), Corrupt);
  lying = ref("a", 1);
  lying.feature_specs.edit([](auto& specs) { specs[0].name = "other"; });
  EXPECT_THAT(message_of<Corrupt>([&] { store->get(lying); }), HasSubstr("no tensor 'other'"));
  const std::string good = read_text_file(root() / "a.g1.ckpt");
  for (const std::size_t size : {std::size_t{0}, std::size_t{100}, good.size() / 2, good.size() - 1}) {
    const UniqueFd fd = open_file(root() / "a.g1.ckpt", O_WRONLY | O_TRUNC);
    write_all(fd.get(), std::as_bytes(std::span(good)).first(size), root() / "a.g1.ckpt");
    EXPECT_THROW(store->get(ref("a", 1)), Corrupt) << size;
  }
}

TEST_F(ReferenceFolder, LinksAreNotFollowed) {
  write("a.g1.ckpt", small_tensors());
  std::filesystem::create_symlink(root() / "a.g1.ckpt", root() / "b.g1.ckpt");
  const auto store = open();
  EXPECT_THAT(message_of<Corrupt>([&] { store->get(ref("b", 1)); }), HasSubstr("symbolic link"));
  std::vector<std::string> found, damaged;
  store->for_each(
      [&](const ResidentSample& sample) {
        found.push_back(sample.sample_id.str());
        return true;
      },
      [&](const std::filesystem::path& path, const std::string&) { damaged.push_back(path.filename()); });
  EXPECT_THAT(found, ::testing::ElementsAre("a"));
  EXPECT_THAT(damaged, ::testing::ElementsAre("b.g1.ckpt"));
}

TEST_F(ReferenceFolder, ASecretOrAnEmptyFolderIsNotOne) {
  EXPECT_THROW(open(), NotFound);
  write("a.g1.ckpt", small_tensors());
  EXPECT_THROW(open({.secret = std::make_shared<Secret>(Secret::from_bytes("x"))}), InvalidArgument);
}

TEST_F(ReferenceFolder, OfTheReferenceItself) {
  DRAFTFLOW_REQUIRE_REAL_DATA(real, "reference-store");
  const auto store = open_shared_dir_store(real, StoreId("st"), {});
  const std::vector<SampleRef> refs = read_ref_manifest(real / "manifest.json");
  ASSERT_EQ(refs.size(), 8u);
  EXPECT_EQ(store->health().resident_samples, 8u);
  for (const SampleRef& one : refs) {
    const Fetched fetched = store->get(one);
    ASSERT_EQ(fetched.tensors.size(), 4u);
    EXPECT_EQ(fetched.tensors[0].first, "input_ids");
    EXPECT_EQ(store->find(one.sample_id).feature_specs.size(), 4u);
    EXPECT_EQ(estimate_bytes(store->find(one.sample_id).feature_specs), one.estimated_bytes);
  }
}

}  // namespace
}  // namespace draftflow::store
