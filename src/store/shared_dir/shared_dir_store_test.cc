// SPDX-License-Identifier: Apache-2.0
//
// What is true of the shared directory beyond what every backend promises (conformance_test.cc).
#include "store/shared_dir/shared_dir_store.h"

#include <fcntl.h>
#include <grp.h>

#include <atomic>
#include <fstream>
#include <functional>
#include <map>
#include <sstream>
#include <thread>

#include "store/store_testing.h"
#include "testing/temp_folder.h"

namespace draftflow::store {
namespace {

using store_testing::expect_same;
using store_testing::files_below;
using store_testing::generation_files;
using store_testing::message_of;
using store_testing::run_metadata;
using store_testing::small_tensors;
using ::testing::HasSubstr;

class SharedDir : public ::testing::Test {
 protected:
  std::unique_ptr<FeatureStore> attach(const SharedDirOptions& options = {}) {
    return create_shared_dir_store(temp_.path(), StoreId("st"), options);
  }
  std::filesystem::path root() const { return temp_.path() / "st"; }
  SampleRef put(FeatureStore& store, const std::string& id = "a", std::uint64_t seed = 1) {
    return store.put(small_tensors(seed), SampleId(id), run_metadata());
  }

  testing_support::TempFolder temp_;
};

TEST_F(SharedDir, OpenNeedsAStoreAndLeavesNoTrace) {
  EXPECT_THAT(message_of<NotFound>([&] { open_shared_dir_store(temp_.path() / "no", StoreId("st"), {}); }),
              HasSubstr("there is no store 'st'"));
  EXPECT_THROW(open_shared_dir_store(temp_.path(), StoreId("st"), {}), NotFound);
  EXPECT_TRUE(temp_.list().empty());
  const SampleRef ref = put(*attach());
  const auto files = files_below(root());
  expect_same(open_shared_dir_store(temp_.path(), StoreId("st"), {})->read(ref), small_tensors());
  EXPECT_EQ(files_below(root()), files);
}

TEST_F(SharedDir, ARootThatTheSystemWouldCutOffIsRefused) {
  attach();
  const std::filesystem::path cut = temp_.path().native() + std::string("\0more", 5);
  EXPECT_THAT(message_of<InvalidArgument>([&] { open_shared_dir_store(cut, StoreId("st"), {}); }), HasSubstr("U+0000"));
  EXPECT_THROW(create_shared_dir_store(cut, StoreId("st"), {}), InvalidArgument);
  EXPECT_THROW(create_shared_dir_store(cut, StoreId("new"), {}), InvalidArgument);
  EXPECT_FALSE(std::filesystem::exists(temp_.path() / "new"));
}

TEST_F(SharedDir, ALinkInPlaceOfTheStoresFolderIsNamedWithItsTarget) {
  const SampleRef ref = put(*attach());
  std::filesystem::create_directory(temp_.path() / "other");
  std::filesystem::create_directory_symlink(root(), temp_.path() / "other" / "st");
  EXPECT_THAT(message_of<InvalidArgument>([&] { open_shared_dir_store(temp_.path() / "other", StoreId("st"), {}); }),
              HasSubstr("other/st is a symbolic link to " + root().string()));
  EXPECT_THROW(create_shared_dir_store(temp_.path() / "other", StoreId("st"), {}), InvalidArgument);
  std::filesystem::create_directory_symlink(temp_.path(), temp_.path() / "above");  // the user's own, followed
  expect_same(open_shared_dir_store(temp_.path() / "above", StoreId("st"), {})->read(ref), small_tensors());
}

TEST_F(SharedDir, OneFileAGenerationThatAPersonRecognises) {
  const auto store = attach();
  put(*store, "run:7");
  const SampleRef ref = put(*store, "run:7");
  ASSERT_EQ(generation_files(root()).size(), 1u);
  EXPECT_EQ(generation_files(root())[0].filename(), "run_7.g" + std::to_string(ref.generation) + ".safetensors");
  EXPECT_EQ(files_below(root()).size(), 5u);  // and store.json, one epoch marker, this host's account and this process's holder
  EXPECT_TRUE(store->remove(ref));
  EXPECT_EQ(files_below(root()).size(), 4u);
  for (const auto& fan_out : std::filesystem::directory_iterator(root() / "samples"))
    EXPECT_TRUE(std::filesystem::is_empty(fan_out));
}

TEST_F(SharedDir, AStoreDeletedAndMadeAgainIsAnother) {
  auto store = attach();
  const SampleRef old = put(*store);
  std::filesystem::remove_all(root());
  auto again = attach();
  EXPECT_THAT(message_of<NotFound>([&] { again->read(old); }), HasSubstr("deleted and made again"));
  EXPECT_FALSE(again->remove(old));
  // The attach to the deleted one cannot write into the new one.
  EXPECT_THAT(message_of<NotFound>([&] { put(*store, "b"); }), HasSubstr("was deleted while attached"));
  EXPECT_THROW(store->read(old), NotFound);
  EXPECT_TRUE(generation_files(root()).empty());
}

TEST_F(SharedDir, AnotherFormatVersionIsRefused) {
  put(*attach());
  const auto path = root() / "store.json";
  std::string text = read_text_file(path);
  text.replace(text.find("\"format_version\": 2"), 19, "\"format_version\": 9");
  replace_file(path, text);
  EXPECT_THAT(message_of<InvalidArgument>([&] { attach(); }), HasSubstr("format version 9: this program knows 2"));
  EXPECT_THROW(open_shared_dir_store(temp_.path(), StoreId("st"), {}), InvalidArgument);
}

TEST_F(SharedDir, PlantedLinksAreNotFollowed) {
  const auto store = attach();
  const SampleRef ref = put(*store);
  const auto file = generation_files(root())[0];
  const auto outside = temp_.path() / "outside";
  std::filesystem::rename(file, outside);
  std::filesystem::create_symlink(outside, file);
  EXPECT_THAT(message_of<Corrupt>([&] { store->read(ref); }), HasSubstr("symbolic link"));
  put(*store);  // retires the link, not what it points at
  EXPECT_TRUE(std::filesystem::exists(outside));

  const auto folder = file.parent_path();
  std::filesystem::remove_all(folder);
  std::filesystem::create_directory(temp_.path() / "elsewhere");
  std::filesystem::create_directory_symlink(temp_.path() / "elsewhere", folder);
  EXPECT_THROW(put(*store), Corrupt);
  EXPECT_TRUE(std::filesystem::is_empty(temp_.path() / "elsewhere"));
  EXPECT_TRUE(std::filesystem::is_empty(root() / "tmp"));
}

TEST_F(SharedDir, AnothersFileUnderThisNameIsCorrupt) {
  const auto store = attach();
  const SampleRef a = put(*store, "a"), b = put(*store, "b", 2);
  const auto files = generation_files(root());
  ASSERT_EQ(files.size(), 2u);
  const auto& file_a = files[0].filename().string().starts_with("a.") ? files[0] : files[1];
  const auto& file_b = &file_a == &files[0] ? files[1] : files[0];
  std::filesystem::copy_file(file_a, file_b, std::filesystem::copy_options::overwrite_existing);
  const std::string message = message_of<Corrupt>([&] { store->read(b); });
  EXPECT_THAT(message, HasSubstr("sample 'b' generation"));
  EXPECT_THAT(message, HasSubstr("the file says sample_id 'a'"));
  expect_same(store->read(a), small_tensors());
}

// What somebody put under a greater generation's name does not supersede the sample, and stays.
TEST_F(SharedDir, AStrayNameSupersedesNothing) {
  const auto store = attach();
  const SampleRef other = put(*store, "b", 2);
  const auto others_file = generation_files(root())[0];
  SampleRef ref = put(*store, "a");
  const auto folder = root() / "samples" / sample_place(ref.sample_id).fan_out / sample_place(ref.sample_id).folder;
  const auto stray = folder / "a.g999999999.safetensors";
  const std::pair<const char*, std::function<void()>> ways[] = {
      {"empty", [&] { std::ofstream(stray, std::ios::out); }},
      {"link", [&] { std::filesystem::create_symlink(others_file, stray); }},
      {"folder", [&] { std::filesystem::create_directory(stray); }},
      {"another's", [&] { std::filesystem::copy_file(others_file, stray); }}};
  std::uint64_t seed = 1;
  for (const auto& [name, plant] : ways) {
    SCOPED_TRACE(name);
    plant();
    EXPECT_EQ(store->gc().generations_removed, 0u);
    expect_same(store->read(ref), small_tensors(seed));
    EXPECT_EQ(store->find(SampleId("a")).generation, ref.generation);
    EXPECT_EQ(store->health().resident_samples, 2u);
    const SampleRef next = store->put(small_tensors(++seed), SampleId("a"), run_metadata());
    EXPECT_GT(next.generation, ref.generation);
    EXPECT_THROW(store->read(ref), NotFound);
    ref = next;
    EXPECT_TRUE(std::filesystem::exists(std::filesystem::symlink_status(stray)));
    std::filesystem::remove(stray);
  }
  EXPECT_EQ(store->health().resident_samples, 2u);
}

// Nor does the same sample's of another store, whatever its number, or what is all there is.
TEST_F(SharedDir, AnotherStoresFileSupersedesNothing) {
  const auto store = attach();
  const SampleRef ref = put(*store, "a");
  SampleRef theirs = ref;
  while (theirs.generation <= ref.generation + (1 << 24)) {  // each attach begins another epoch
    theirs = create_shared_dir_store(temp_.path(), StoreId("other"), {})->put(small_tensors(9), SampleId("a"), run_metadata());
  }
  const auto from = generation_files(temp_.path() / "other")[0];
  const auto stray = generation_files(root())[0].parent_path() / from.filename();
  std::filesystem::copy_file(from, stray);
  EXPECT_EQ(store->gc().generations_removed, 0u);
  expect_same(store->read(ref), small_tensors());
  EXPECT_EQ(store->find(SampleId("a")).generation, ref.generation);
  EXPECT_TRUE(store->remove(ref));
  const SampleRef again = put(*store, "a", 2);
  expect_same(store->read(again), small_tensors(2));
  EXPECT_TRUE(std::filesystem::exists(stray));
}

TEST_F(SharedDir, AStoreThatLostItsFileIsNotMadeAnew) {
  const SampleRef ref = put(*attach());
  std::filesystem::rename(root() / "store.json", temp_.path() / "kept");
  for (const auto& call : {std::function<void()>([&] { attach(); }),
                           std::function<void()>([&] { open_shared_dir_store(temp_.path(), StoreId("st"), {}); })}) {
    EXPECT_THAT(message_of<Corrupt>(call), HasSubstr("was a store: its folder 'samples' is not empty, but store.json is gone"));
    EXPECT_FALSE(std::filesystem::exists(root() / "store.json"));
  }
  std::filesystem::rename(temp_.path() / "kept", root() / "store.json");
  expect_same(attach()->read(ref), small_tensors());
}

TEST_F(SharedDir, HealthCountsTheCallsThatFailedInAnyAttach) {
  const auto store = attach();
  SampleRef ref = put(*store);
  EXPECT_THROW(store->put({}, SampleId("a"), run_metadata()), InvalidArgument);
  ++ref.generation;
  EXPECT_THROW(store->read(ref), NotFound);
  --ref.generation;
  EXPECT_EQ(store->health().errors_total, 0u) << "asked wrongly, or gone";
  std::string bytes = read_text_file(generation_files(root())[0]);
  bytes.back() = static_cast<char>(bytes.back() ^ 1);
  replace_file(generation_files(root())[0], bytes);
  EXPECT_THROW(store->read(ref), Corrupt);
  EXPECT_THROW(attach()->get(ref), Corrupt);
  EXPECT_EQ(attach()->health().errors_total, 2u);
}

TEST_F(SharedDir, ResidentTellsWhatTheWalkTells) {
  const auto store = attach();
  const SampleRef ref = put(*store, "a"), other = put(*store, "b", 2);
  const Fetched leased = store->get(ref);
  const ResidentSample direct = store->resident(ref), walked = store->FeatureStore::resident(ref);
  EXPECT_EQ(direct.sample_id, walked.sample_id);
  EXPECT_EQ(direct.generation, walked.generation);
  EXPECT_EQ(direct.bytes, walked.bytes);
  EXPECT_EQ(direct.leases, 1u);
  EXPECT_EQ(walked.leases, 1u);
  EXPECT_EQ(direct.path, walked.path);
  store->remove(other);
  EXPECT_THROW(store->resident(other), NotFound);
  EXPECT_THROW(store->FeatureStore::resident(other), NotFound);
}

TEST_F(SharedDir, TheWalkGivesNoFileOfAnotherSample) {
  const auto store = attach();
  put(*store, "a");
  put(*store, "b", 2);
  const auto files = generation_files(root());
  std::filesystem::copy_file(files[0], files[1], std::filesystem::copy_options::overwrite_existing);
  std::size_t visited = 0;
  std::string damage;
  store->for_each([&](const ResidentSample&) { return ++visited > 0; },
                  [&](const std::filesystem::path& path, const std::string& why) { damage = path.string() + why; });
  EXPECT_EQ(visited, 1u);
  EXPECT_THAT(damage, HasSubstr(files[1].string()));
  EXPECT_THAT(damage, HasSubstr("it is another one's file"));
}

TEST_F(SharedDir, AFlippedByteNeverComesOut) {
  const auto store = attach();
  const SampleRef ref = put(*store);
  const auto file = generation_files(root())[0];
  const std::string good = read_text_file(file);
  for (std::size_t i = 0; i < good.size(); i += 7) {
    std::string bad = good;
    bad[i] ^= 0x20;
    replace_file(file, bad);
    EXPECT_THROW(store->read(ref), Corrupt) << "byte " << i;
  }
  replace_file(file, good);
  expect_same(store->read(ref), small_tensors());
}

TEST_F(SharedDir, TheFloorIsKeptBeforeAnythingIsWritten) {
  const auto store = attach({.free_space_floor_bytes = 1ULL << 62});
  const std::string message = message_of<Exhausted>([&] { put(*store, "a"); });
  EXPECT_THAT(message, HasSubstr("sample 'a' asks for 384 bytes"));
  EXPECT_THAT(message, HasSubstr("keeps a floor of 4611686018427387904"));
  EXPECT_TRUE(std::filesystem::is_empty(root() / "samples"));
  EXPECT_TRUE(std::filesystem::is_empty(root() / "tmp"));
}

// By another user, who may read: as on a disk that was mounted read-only.
TEST_F(SharedDir, WhoMayOnlyReadReads) {
  if (::geteuid() != 0) GTEST_SKIP() << "another user can only be tried as root";
  const auto store = attach();
  const SampleRef ref = put(*store, "a"), hidden = put(*store, "b");
  ::chmod(temp_.path().c_str(), 0755);
  for (const auto& entry : std::filesystem::recursive_directory_iterator(temp_.path())) {
    ::chmod(entry.path().c_str(), entry.is_directory() ? 0755 : 0644);
  }
  const SamplePlace place = sample_place(hidden.sample_id);
  ASSERT_NE(place.fan_out, sample_place(ref.sample_id).fan_out);
  ::chmod((root() / "samples" / place.fan_out).c_str(), 0);
  const pid_t child = store_testing::fork_child([&] {
    if (::setgroups(0, nullptr) != 0 || ::setgid(65534) != 0 || ::setuid(65534) != 0) ::_exit(2);
    const auto theirs = open_shared_dir_store(temp_.path(), StoreId("st"), {});
    expect_same(theirs->read(ref), small_tensors());
    if (theirs->health().resident_samples != 2 || !theirs->health().read_only) ::_exit(3);
    if (theirs->find(ref.sample_id, {}).generation != ref.generation) ::_exit(4);
    int seen = 0, told = 0;
    theirs->for_each([&](const ResidentSample&) { return ++seen > 0; },
                     [&](const std::filesystem::path&, const std::string& why) {
                       told += why.find("Permission denied") != std::string::npos ? 1 : 100;
                     });
    if (seen != 1 || told != 1) ::_exit(5);
    const std::vector<std::function<void()>> writes = {[&] { theirs->put(small_tensors(), SampleId("c"), run_metadata()); },
                                                       [&] { theirs->get(ref); }, [&] { theirs->remove(ref); },
                                                       [&] { theirs->abort(ref.sample_id); }, [&] { theirs->gc(); }};
    for (const auto& write : writes) {
      try {
        write();
        ::_exit(6);
      } catch (const PermissionDenied& error) {
        if (std::string(error.what()).find("can only be read by this process") == std::string::npos) ::_exit(7);
      }
    }
  });
  EXPECT_EQ(store_testing::wait_for(child), 0);
  expect_same(store->read(ref), small_tensors());
}

TEST_F(SharedDir, GcRetiresWhatACrashLeft) {
  const auto store = attach();
  const SampleRef old = put(*store, "a", 1);
  const auto file = generation_files(root())[0];
  const std::string bytes = read_text_file(file);
  const SampleRef current = put(*store, "a", 2);
  replace_file(file, bytes);  // as if the writer had died between publishing and retiring
  expect_same(store->read(old), small_tensors(1));
  const GcReport report = store->gc();
  EXPECT_EQ(report.generations_removed, 1u);
  EXPECT_EQ(report.bytes_removed, old.estimated_bytes);
  EXPECT_THROW(store->read(old), NotFound);
  expect_same(store->read(current), small_tensors(2));
  EXPECT_EQ(store->gc().generations_removed, 0u);
}

TEST_F(SharedDir, ThePutAfterACrashRetiresToo) {
  const auto store = attach();
  const SampleRef old = put(*store, "a", 1);
  const auto file = generation_files(root())[0];
  const std::string bytes = read_text_file(file);
  put(*store, "a", 2);
  replace_file(file, bytes);
  put(*store, "a", 3);
  EXPECT_EQ(generation_files(root()).size(), 1u);
}

TEST_F(SharedDir, APutThatCannotRetireTheOlderIsUndone) {
  const auto store = attach();
  const SampleRef ref = put(*store, "a");
  const auto file = generation_files(root())[0];
  std::filesystem::create_directory(file.parent_path() / "a.g1.safetensors");  // unlink(2) cannot remove it
  EXPECT_THROW(put(*store, "a", 2), Error);
  EXPECT_EQ(generation_files(root()), std::vector<std::filesystem::path>{file});
  expect_same(store->read(ref), small_tensors());
  EXPECT_TRUE(std::filesystem::is_empty(root() / "tmp"));
}

TEST_F(SharedDir, AForkedChildPutsUnderItsOwnGenerations) {
  const auto store = attach();
  const SampleRef before = put(*store, "a");
  const auto out = temp_.path() / "ref";
  const pid_t child = store_testing::fork_child([&] { replace_file(out, sample_ref_to_json(put(*store, "b", 2))); });
  ASSERT_EQ(store_testing::wait_for(child), 0);
  const SampleRef theirs = sample_ref_from_json(read_text_file(out));
  const SampleRef ours = put(*store, "b", 3);
  EXPECT_NE(theirs.generation, ours.generation);
  EXPECT_THROW(store->read(theirs), NotFound);
  expect_same(store->read(ours), small_tensors(3));
}

// Takes away what a put has just made: its empty folder and, if it looked unlocked, its temporary.
TEST_F(SharedDir, PutsSucceedWhileOthersCollectAndRemove) {
  const auto store = attach();
  const Folder temporaries = Folder::open(root() / "tmp");
  std::atomic<int> writing = 2, failures = 0;
  const auto write = [&] {
    for (int i = 0; i < 1500; ++i) {
      try {
        store->remove(put(*store, "a", i));
      } catch (const Error& error) {
        if (failures.fetch_add(1) == 0) ADD_FAILURE() << error.what();
      }
    }
    writing.fetch_sub(1);
  };
  std::thread first(write), second(write);
  while (writing.load() > 0) clear_orphans(temporaries);
  first.join();
  second.join();
  EXPECT_EQ(failures.load(), 0);
  EXPECT_TRUE(generation_files(root()).empty());
  EXPECT_TRUE(std::filesystem::is_empty(root() / "tmp"));
}

TEST_F(SharedDir, ProcessesThatRaceOnOneSampleNeverShareAGeneration) {
  const testing_support::TempFolder results;
  std::vector<pid_t> children;
  for (int i = 0; i < 4; ++i) {
    children.push_back(store_testing::fork_child([&] {
      const auto store = attach();  // attaching races too
      std::ostringstream refs;
      for (int j = 0; j < 25; ++j) {
        const SampleRef ref = put(*store, "a", 100 * i + j);
        refs << sample_ref_to_json(ref) << '\n';
        if (j % 5 == 4) store->remove(ref);
      }
      replace_file(results.path() / std::to_string(i), refs.str());
    }));
  }
  for (const pid_t child : children) ASSERT_EQ(store_testing::wait_for(child), 0);
  std::map<std::uint64_t, std::pair<SampleRef, std::uint64_t>> all;
  for (int i = 0; i < 4; ++i) {
    std::istringstream lines(read_text_file(results.path() / std::to_string(i)));
    std::uint64_t j = 0;
    for (std::string line; std::getline(lines, line); ++j) {
      const SampleRef ref = sample_ref_from_json(line);
      EXPECT_TRUE(all.emplace(ref.generation, std::make_pair(ref, 100 * i + j)).second) << ref.generation;
    }
  }
  EXPECT_EQ(all.size(), 100u);
  const auto store = attach();
  std::size_t gettable = 0;
  for (const auto& [generation, put] : all) {
    try {
      expect_same(store->read(put.first), small_tensors(put.second));
      ++gettable;
    } catch (const NotFound&) {
    }
  }
  EXPECT_LE(gettable, 1u);
  EXPECT_EQ(generation_files(root()).size(), gettable);
  EXPECT_TRUE(std::filesystem::is_empty(root() / "tmp"));
}

}  // namespace
}  // namespace draftflow::store
