// SPDX-License-Identifier: Apache-2.0
//
// Stores of layout specforge: the reference runtime's consumer finds, reads and frees what draftflow puts, and neither takes
// the other's files for its own.
#include <fcntl.h>
#include <sys/file.h>
#include <sys/wait.h>

#include <cstdlib>
#include <fstream>
#include <optional>
#include <thread>

#include "draftflow/formats/feature_file.h"
#include "draftflow/formats/torch_zip.h"
#include "store/reference/reference_store.h"
#include "store/shared_dir/shared_dir_store.h"
#include "store/store_testing.h"
#include "testing/temp_folder.h"

namespace draftflow::store {
namespace {

using namespace store_testing;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class SpecforgeLayout : public ::testing::Test {
 protected:
  std::unique_ptr<FeatureStore> create(StoreKind kind = StoreKind::kLedgered) {
    return create_shared_dir_store(temp_.path(), StoreId("st"), {.kind = kind, .layout = StoreLayout::kSpecforge});
  }
  SampleRef put(FeatureStore& store, const std::string& id, std::uint64_t seed = 1) {
    return store.put(small_tensors(seed), SampleId(id), run_metadata());
  }
  std::filesystem::path root() const { return temp_.path() / "st"; }
  std::filesystem::path flat(const SampleRef& ref) const { return root() / *reference_name(ref.sample_id, ref.generation); }

  // Names right below the store's folder that the reference would take for samples.
  std::vector<std::string> flat_names() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(root())) {
      if (entry.path().extension() == ".ckpt") names.push_back(entry.path().filename());
    }
    return names;
  }
  std::vector<std::string> walked(FeatureStore& store) const {
    std::vector<std::string> ids;
    store.for_each(
        [&](const ResidentSample& sample) {
          ids.push_back(sample.sample_id.str());
          return true;
        },
        [](const std::filesystem::path& path, const std::string& problem) { ADD_FAILURE() << path << ": " << problem; });
    return ids;
  }

  testing_support::TempFolder temp_;
};

TEST_F(SpecforgeLayout, TheReferencesConsumerLoadsAndFreesASample) {
  const auto store = create();
  const SampleRef ref = store->put(sample_tensors(), SampleId("run:00000001"), run_metadata());
  const SampleRef other = put(*store, "run:00000002");
  const std::string script = DRAFTFLOW_SOURCE_DIR "/src/store/testdata/reference_consumer.py";
  const std::filesystem::path copy = temp_.path() / "copy.ckpt";
  const std::string command = "/usr/bin/python3 '" + script + "' '" + root().string() + "' run:00000001 " +
                              std::to_string(ref.generation) + " '" + copy.string() + "'";
  const int status = std::system(command.c_str());
  const int rc = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  if (rc == 77 || rc == 127) GTEST_SKIP() << "PyTorch is absent for /usr/bin/python3 (Debian: python3-torch)";
  ASSERT_EQ(rc, 0) << "reference_consumer.py says above what is wrong";
  const TensorMap loaded = load_feature_file(copy);
  for (const auto& [name, tensor] : sample_tensors()) {
    const Tensor* found = find_tensor(loaded, name);
    ASSERT_NE(found, nullptr) << name;
    expect_same({{name, *found}}, {{name, tensor}});
  }
  EXPECT_THROW(store->read(ref), NotFound);
  expect_same(store->read(other), small_tensors());
}

TEST_F(SpecforgeLayout, TheFolderReadsAsOneOfTheReferences) {
  const auto store = create();
  SampleRef ref = put(*store, "a", 7);
  EXPECT_THAT(flat_names(), ElementsAre("a.g" + std::to_string(ref.generation) + ".ckpt"));
  ReferenceStore reference(Folder::open(root()), StoreId("st"));
  ref.incarnation.clear();
  expect_same(reference.read(ref, {}), small_tensors(7));
  EXPECT_EQ(reference.find(SampleId("a"), {}).generation, ref.generation);
}

TEST_F(SpecforgeLayout, WhatTheReferenceFreedIsGoneAtOnceAndFromDiskWithGc) {
  const auto store = create();
  const SampleRef ref = put(*store, "a"), other = put(*store, "b");
  std::filesystem::remove(flat(ref));
  EXPECT_THROW(store->read(ref), NotFound);
  EXPECT_THROW(store->get(ref), NotFound);
  EXPECT_THAT(walked(*store), ElementsAre("b"));
  const GcReport report = store->gc();
  EXPECT_EQ(report.generations_removed, 1u);
  EXPECT_EQ(report.bytes_removed, ref.estimated_bytes);
  EXPECT_EQ(generation_files(root()).size(), 1u);
  EXPECT_EQ(store->health().resident_samples, 1u);
  EXPECT_EQ(store->health().resident_bytes, other.estimated_bytes);
  EXPECT_EQ(store->gc().generations_removed, 0u);
  const SampleRef again = put(*store, "a", 2);
  EXPECT_GT(again.generation, ref.generation);
  expect_same(store->read(again), small_tensors(2));
}

TEST_F(SpecforgeLayout, ALeaseKeepsItsBytesWhenTheReferenceFrees) {
  const auto store = create(StoreKind::kConsumeOnce);
  const SampleRef ref = put(*store, "a");
  const Fetched first = store->get(ref, {.zero_copy = true}), second = store->get(ref);
  EXPECT_EQ(store->resident(ref).leases, 2u);
  std::filesystem::remove(flat(ref));
  store->gc();
  EXPECT_EQ(store->health().resident_samples, 1u) << "leased";
  expect_same(first.tensors, small_tensors());
  store->release(first.handle);
  store->release(second.handle);
  EXPECT_EQ(store->health().resident_samples, 0u);
  EXPECT_EQ(store->health().live_leases, 0u);
  EXPECT_THAT(generation_files(root()), IsEmpty());
}

TEST_F(SpecforgeLayout, EveryWayToFreeTakesTheFlatNameToo) {
  const auto store = create();
  const SampleRef superseded = put(*store, "a"), removed = put(*store, "a");
  EXPECT_EQ(flat_names(), std::vector{flat(removed).filename().string()}) << "superseded: " << flat(superseded);
  EXPECT_TRUE(store->remove(removed));
  EXPECT_FALSE(store->remove(removed));
  EXPECT_THAT(flat_names(), IsEmpty());
  put(*store, "a");
  EXPECT_EQ(store->abort(SampleId("a")), 1u);
  EXPECT_THAT(flat_names(), IsEmpty());
  EXPECT_EQ(store->health().resident_bytes, 0u);
}

TEST_F(SpecforgeLayout, TheLastReleaseOfAConsumedSampleTakesTheFlatNameToo) {
  const auto store = create(StoreKind::kConsumeOnce);
  const SampleRef ref = put(*store, "a");
  const Fetched first = store->get(ref), second = store->get(ref);
  store->release(first.handle);
  EXPECT_EQ(flat_names().size(), 1u) << "another lease is left";
  store->release(second.handle);
  EXPECT_THAT(flat_names(), IsEmpty());
  EXPECT_THAT(generation_files(root()), IsEmpty());
}

TEST_F(SpecforgeLayout, GcLeavesWhatIsNotTheStores) {
  const auto store = create();
  const SampleRef ref = put(*store, "a"), orphan = put(*store, "dead");
  const SamplePlace place = sample_place(orphan.sample_id);
  std::filesystem::remove_all(root() / "samples" / place.fan_out / place.folder);  // as a put that died left it
  const std::string theirs = (root() / "theirs.g1.ckpt").string();
  write_torch_zip(open_file(theirs, O_WRONLY | O_CREAT | O_EXCL).get(), theirs, small_tensors());
  std::filesystem::copy_file(flat(orphan), root() / "backup.g1.ckpt");
  std::filesystem::create_symlink("/etc/passwd", root() / "link.g1.ckpt");
  std::filesystem::create_directory(root() / "folder.g1.ckpt");
  std::ofstream(root() / "junk.g1.ckpt") << "PK\x03\x04";
  EXPECT_EQ(store->gc().temporaries_removed, 1u);
  EXPECT_FALSE(std::filesystem::exists(flat(orphan)));
  EXPECT_THAT(flat_names(), ::testing::UnorderedElementsAre("theirs.g1.ckpt", "backup.g1.ckpt", "link.g1.ckpt",
                                                            "folder.g1.ckpt", "junk.g1.ckpt", flat(ref).filename().string()));
  expect_same(store->read(ref), small_tensors());
}

// What another put under a flat name is never taken away: not by gc, a put or a remove.
TEST_F(SpecforgeLayout, AnothersFileUnderAFlatNameStays) {
  const auto store = create();
  const SampleRef a = put(*store, "a"), b = put(*store, "b");
  for (const SampleRef& ref : {a, b}) std::filesystem::remove(flat(ref));
  std::ofstream(flat(a)) << "a user's own";
  std::filesystem::create_directory(flat(b));
  EXPECT_EQ(store->gc().generations_removed, 0u);
  EXPECT_THROW(store->read(a), Corrupt);
  const SampleRef next_a = put(*store, "a", 2), next_b = put(*store, "b", 2);
  expect_same(store->read(next_a), small_tensors(2));
  expect_same(store->read(next_b), small_tensors(2));
  SampleRef theirs = next_a;
  theirs.generation = 1;
  write_torch_zip(open_file(flat(theirs), O_WRONLY | O_CREAT | O_EXCL).get(), flat(theirs), small_tensors());
  EXPECT_FALSE(store->remove(theirs));
  store->gc();
  EXPECT_EQ(read_text_file(flat(a)), "a user's own");
  EXPECT_TRUE(std::filesystem::is_directory(flat(b)));
  EXPECT_TRUE(std::filesystem::exists(flat(theirs)));
  EXPECT_EQ(generation_files(root()).size(), 2u);
}

// As `cp -r` or a backup leaves it: the two names of a generation are two files.
TEST_F(SpecforgeLayout, ACopiedStoreKeepsItsSamplesAndGcJoinsTheirNames) {
  const SampleRef a = put(*create(), "a", 1), b = put(*create(), "b", 2);
  std::filesystem::rename(root(), temp_.path() / "original");
  std::filesystem::copy(temp_.path() / "original", root(), std::filesystem::copy_options::recursive);
  const auto store = create(StoreKind::kLedgered);
  EXPECT_EQ(std::filesystem::hard_link_count(flat(a)), 1u);
  expect_same(store->read(a), small_tensors(1));
  EXPECT_EQ(store->gc().generations_removed, 0u);
  EXPECT_EQ(std::filesystem::hard_link_count(flat(a)), 2u);
  expect_same(store->read(a), small_tensors(1));
  expect_same(store->read(b), small_tensors(2));
  EXPECT_EQ(store->gc().temporaries_removed, 0u);
  EXPECT_TRUE(store->remove(a));
  EXPECT_THROW(store->read(a), NotFound);
  EXPECT_EQ(flat_names(), std::vector{flat(b).filename().string()});
}

// The generation that a put retires stays until that is done, whoever makes the put wait, and gc does not take it for freed.
TEST_F(SpecforgeLayout, ANameIsTakenAwayUnderTheLockOfItsFile) {
  const auto store = create(), other = create();
  const SampleRef old = put(*store, "a", 1);
  UniqueFd lock = open_file(generation_files(root())[0], O_RDONLY);
  ASSERT_EQ(::flock(lock.get(), LOCK_SH), 0);
  std::optional<SampleRef> made;
  std::thread writer([&] { made = put(*store, "a", 2); });
  const auto both_there = [&] { return flat_names().size() == 2; };
  for (int i = 0; i < 500 && !both_there(); ++i) ::usleep(10'000);
  ::usleep(100'000);
  EXPECT_TRUE(both_there());
  EXPECT_NO_THROW(expect_same(other->read(old), small_tensors(1)));
  std::thread collector([&] { other->gc(); });
  ::usleep(100'000);
  lock.reset();
  writer.join();
  collector.join();
  expect_same(other->read(*made), small_tensors(2));
  EXPECT_THROW(other->read(old), NotFound);
  EXPECT_EQ(flat_names().size(), 1u);
  EXPECT_EQ(store->health().resident_samples, 1u);
}

TEST_F(SpecforgeLayout, AGenerationThatHasOnlyItsFlatNameIsRemoved) {
  const auto store = create();
  const SampleRef ref = put(*store, "a");
  const SamplePlace place = sample_place(ref.sample_id);
  std::filesystem::remove_all(root() / "samples" / place.fan_out / place.folder);
  expect_same(store->read(ref), small_tensors());
  EXPECT_TRUE(store->remove(ref));
  EXPECT_THROW(store->read(ref), NotFound);
  EXPECT_FALSE(store->remove(ref));
}

TEST_F(SpecforgeLayout, ANoteThatLiesAboutItsBytesIsCorruptAndCountsForNothing) {
  const auto store = create();
  const SampleRef ref = put(*store, "a");
  const std::string bytes = read_text_file(flat(ref));
  for (const std::string claim : {"9223372036854775807", "18446744073709551615", "1"}) {
    std::string note = *read_torch_note(open_file(flat(ref), O_RDONLY).get(), flat(ref));
    note.replace(note.find("\"tensor_bytes\":") + 15, std::to_string(ref.estimated_bytes).size(), claim);
    const UniqueFd fd = open_file(flat(ref), O_WRONLY | O_TRUNC);
    write_torch_zip(fd.get(), flat(ref), small_tensors(), note);
    EXPECT_THROW(store->read(ref), Corrupt) << claim;
    store->gc();
    EXPECT_LT(store->health().resident_bytes, 10'000u) << claim;
    write_all(open_file(flat(ref), O_WRONLY | O_TRUNC).get(), std::as_bytes(std::span(bytes)), flat(ref));
  }
  expect_same(store->read(ref), small_tensors());
}

TEST_F(SpecforgeLayout, ANameThatIsTakenFailsThePutAndStaysAsItIs) {
  const auto store = create();
  const SampleRef first = put(*store, "a");
  const auto taken = root() / *reference_name(SampleId("a"), first.generation + 1);
  std::ofstream(taken) << "somebody's";
  EXPECT_THROW(put(*store, "a"), Corrupt);
  EXPECT_EQ(read_text_file(taken), "somebody's");
  expect_same(store->read(first), small_tensors());
  EXPECT_EQ(generation_files(root()).size(), 1u);
  EXPECT_TRUE(std::filesystem::is_empty(root() / "tmp"));
}

TEST_F(SpecforgeLayout, DamageAndAnothersFileAreCorrupt) {
  const auto store = create();
  const SampleRef a = put(*store, "a", 1), b = put(*store, "b", 2);
  const std::string bytes = read_text_file(flat(a));
  int corrupt = 0, harmless = 0;
  for (std::size_t at = 0; at < bytes.size(); ++at) {
    std::string flipped = bytes;
    flipped[at] = static_cast<char>(flipped[at] ^ 0x10);
    replace_file(flat(a), flipped);
    try {
      expect_same(store->read(a), small_tensors(1));  // padding, and what torch leaves unread
      ++harmless;
    } catch (const Corrupt&) {
      ++corrupt;
    }
  }
  EXPECT_GT(corrupt, 1000);
  EXPECT_GT(harmless, 100);
  for (std::size_t size = 0; size < bytes.size(); size += 7) {
    replace_file(flat(a), bytes.substr(0, size));
    EXPECT_THROW(store->read(a), Corrupt) << size;
  }
  const SampleRef large = store->put(sample_tensors(), SampleId("large"), run_metadata());
  const std::string whole = read_text_file(flat(large));
  for (std::size_t size = 0; size < whole.size(); size += size < 8000 || size + 8000 > whole.size() ? 37 : 100'003) {
    replace_file(flat(large), whole.substr(0, size));
    EXPECT_THROW(store->read(large), Corrupt) << size;
  }
  replace_file(flat(a), read_text_file(flat(b)));
  EXPECT_THAT(message_of<Corrupt>([&] { store->read(a); }),
              HasSubstr("the file says it is sample 'b' generation " + std::to_string(b.generation)));
  write_torch_zip(open_file(flat(a), O_WRONLY | O_TRUNC).get(), flat(a), small_tensors(1));
  EXPECT_THAT(message_of<Corrupt>([&] { store->read(a); }), HasSubstr("no note of draftflow's"));
}

// Both kinds of files: the bytes of a tensor that nobody asked for are damaged, and nobody notices.
TEST_F(SpecforgeLayout, OnlyTheNamedTensorsAreRead) {
  for (const StoreLayout layout : {StoreLayout::kSpecforge, StoreLayout::kDraftflow}) {
    const StoreId id(layout == StoreLayout::kSpecforge ? "st" : "own");
    const auto store = create_shared_dir_store(temp_.path(), id, {.layout = layout});
    const TensorMap tensors = sample_tensors();
    const SampleRef ref = store->put(tensors, SampleId("a"), run_metadata());
    const auto file = layout == StoreLayout::kSpecforge ? flat(ref) : generation_files(temp_.path() / "own").at(0);
    std::string bytes = read_text_file(file);
    const std::size_t at = bytes.find(std::string(1000, '\7'));  // "even"
    ASSERT_NE(at, std::string::npos);
    bytes[at + 600'000] = 8;
    replace_file(file, bytes);
    for (const bool zero_copy : {false, true}) {
      const Fetched some = store->get(ref, {.names = {"scalar", "large"}, .zero_copy = zero_copy});
      expect_same(some.tensors, {tensors[11], tensors[13]});
      store->release(some.handle);
      EXPECT_THROW(store->get(ref, {.names = {"even"}, .zero_copy = zero_copy}), Corrupt);
    }
    EXPECT_EQ(store->find(SampleId("a"), {}).feature_specs.size(), tensors.size()) << "no tensor is read for it";
    EXPECT_THROW(store->read(ref), Corrupt);
  }
}

TEST_F(SpecforgeLayout, WhatTheReferenceCannotHaveIsRefused) {
  const auto message = [&](const SharedDirOptions& options, const std::string& id = "st") {
    return message_of<InvalidArgument>([&] { create_shared_dir_store(temp_.path(), StoreId(id), options); });
  };
  EXPECT_THAT(message({.codec = Codec::kZstd, .layout = StoreLayout::kSpecforge}), HasSubstr("cannot have a codec"));
  EXPECT_THAT(message({.layout = StoreLayout::kSpecforge, .secret = std::make_shared<Secret>(Secret::from_bytes("s"))}),
              HasSubstr("cannot have a secret"));
  EXPECT_THAT(message({.layout = StoreLayout::kSpecforge}, "a/b"), HasSubstr("cannot be called 'a/b'"));
  const auto store = create();
  EXPECT_THAT(message({}), HasSubstr("made with layout 'specforge', but 'draftflow' is asked for"));
  EXPECT_NO_THROW(open_shared_dir_store(temp_.path(), StoreId("st"), {}));
  EXPECT_THAT(message_of<InvalidArgument>([&] { put(*store, "a/b"); }), HasSubstr("no file name for an id that holds '/'"));
  const TensorMap slash = {{"a/b", small_tensors()[0].second}};
  EXPECT_THAT(message_of<InvalidArgument>([&] { store->put(slash, SampleId("a"), run_metadata()); }),
              HasSubstr("whose name holds '/', as 'a/b'"));
  EXPECT_THAT(read_text_file(root() / "store.json"), HasSubstr(R"("layout": "specforge")"));
  EXPECT_THAT(flat_names(), IsEmpty());
}

// Or a producer that waits for room would wait in vain.
TEST_F(SpecforgeLayout, WhatTorchCannotHoldIsRefusedBeforeRoomIsAskedFor) {
  const auto store =
      create_shared_dir_store(temp_.path(), StoreId("st"),
                              {.kind = StoreKind::kConsumeOnce, .max_resident_bytes = 4096, .layout = StoreLayout::kSpecforge});
  const SampleRef first = put(*store, "a");
  const TensorMap deep{{"deep", Tensor::allocate(DType::kUInt8, std::vector<std::int64_t>(65, 1)).first},
                       {"large", Tensor::allocate(DType::kUInt8, {8192}).first}};
  for (int i = 0; i < 3; ++i) {
    EXPECT_THAT(message_of<InvalidArgument>([&] { store->put(deep, SampleId("b"), run_metadata()); }),
                HasSubstr("tensor 'deep' has 65 dimensions"));
  }
  EXPECT_EQ(put(*store, "c").generation, first.generation + 1) << "no number went to what was refused";
  EXPECT_EQ(flat_names().size(), 2U);
}

}  // namespace
}  // namespace draftflow::store
