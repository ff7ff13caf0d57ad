// SPDX-License-Identifier: Apache-2.0
//
// Every system call of every operation fails once, or is the last one of its process; then the contract is checked. A new
// operation is a new line of kOperations, a new way to fail one of kFaults. A program of its own, since it takes libc's names.
#include <fcntl.h>
#include <fmt/format.h>
#include <fnmatch.h>
#include <gtest/gtest-spi.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/vfs.h>

#include <array>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <set>

#include "draftflow/base/file.h"
#include "store/shared_dir/shared_dir_store.h"
#include "store/store_testing.h"
#include "store/testing_faults.h"
#include "testing/temp_folder.h"

namespace draftflow::store {
namespace {

using namespace store_testing;

constexpr std::uint64_t kMostCalls = 2000;  // an operation that makes more does not end
enum Seed : std::uint64_t { kOld = 10, kNew = 20, kBystander = 30, kLater = 40, kDebris = 50 };
constexpr std::array kSeeds = {kOld, kNew, kBystander, kLater, kDebris};

// A store with sample "a" (kOld) and a bystander, and what the operation made.
class Scene {
 public:
  explicit Scene(bool with_store, StoreLayout layout = StoreLayout::kDraftflow, StoreKind kind = StoreKind::kLedgered)
      : layout_(layout), kind_(kind) {
    if (!with_store) return;
    create();
    old = put("a", kOld);
    bystander = put("bystander", kBystander);
    attach();
  }

  void create(bool durable = false) {
    store = create_shared_dir_store(
        temp_.path(), StoreId("st"),
        {.kind = kind_, .durability = durable ? Durability::kFull : Durability::kNone, .layout = layout_});
  }
  void attach(bool durable = false) {
    store = open_shared_dir_store(temp_.path(), StoreId("st"), {.durability = durable ? Durability::kFull : Durability::kNone});
  }
  SampleRef put(const char* sample, Seed seed) { return store->put(small_tensors(seed), SampleId(sample), run_metadata()); }
  std::filesystem::path root() const { return temp_.path() / "st"; }

  // Files below the store, without what every writer leaves: markers of epochs, the host's account, the files of holders.
  std::vector<std::string> files() const {
    std::vector<std::string> found;
    if (!std::filesystem::exists(root())) return found;
    for (const std::string& file : files_below(root())) {
      if (!file.starts_with("epochs/") && !file.starts_with("accounts/") && !file.ends_with(".holder")) found.push_back(file);
    }
    return found;
  }
  // What can be got by a ref: in a store of layout specforge that is what has its flat name.
  std::vector<std::pair<std::uint64_t, std::filesystem::path>> generations(const std::string& sample) const {
    std::vector<std::pair<std::uint64_t, std::filesystem::path>> found;
    const SamplePlace place = sample_place(SampleId(sample));
    for (const std::string& file : files()) {
      const std::filesystem::path path = root() / file;
      if (layout_ == StoreLayout::kSpecforge) {
        const auto name = parse_reference_name(file);
        if (name && name->sample_id == sample) found.emplace_back(name->generation, path);
      } else if (path.parent_path().filename() == place.folder) {
        const auto generation = parse_generation_name(place, path.filename().string());
        EXPECT_TRUE(generation) << path << " is not the name of a generation";
        if (generation) found.emplace_back(*generation, path);
      }
    }
    return found;
  }
  std::vector<std::string> temporaries() const {
    std::vector<std::string> found = files();
    std::erase_if(found, [](const std::string& file) { return !file.starts_with("tmp/"); });
    return found;
  }

  // Attached processes that have put or leased.
  std::size_t holders() const {
    if (!std::filesystem::exists(root())) return 0;
    const std::vector<std::string> all = files_below(root());
    return static_cast<std::size_t>(
        std::count_if(all.begin(), all.end(), [](const std::string& file) { return file.ends_with(".holder"); }));
  }

  std::unique_ptr<FeatureStore> store;
  std::optional<SampleRef> old, bystander, made;

 private:
  const StoreLayout layout_;
  const StoreKind kind_;
  testing_support::TempFolder temp_;
};

// Leaves what killed writers leave: two generations of "a" and a half-written temporary.
void leave_debris(Scene& scene) {
  const auto first = generation_files(scene.root()).front();
  const std::string bytes = read_text_file(first);
  scene.put("a", kDebris);
  open_file(scene.root() / "tmp" / (std::string(32, 'd') + ".tmp"), O_WRONLY | O_CREAT);
  replace_file(first, bytes);
  ASSERT_EQ(generation_files(scene.root()).size(), 3u);
}

// What is left in a store of layout specforge: by the reference's consumer, which freed "b", and by a put that died between
// its two names.
void leave_flat_debris(Scene& scene) {
  const SampleRef freed = scene.put("b", kDebris), cut = scene.put("c", kDebris);
  std::filesystem::remove(scene.root() / *reference_name(freed.sample_id, freed.generation));
  const SamplePlace place = sample_place(cut.sample_id);
  std::filesystem::remove_all(scene.root() / "samples" / place.fan_out / place.folder);
}

// What an operation may do to the generations of its sample.
enum class Effect {
  kKeeps,    // nothing at all
  kPuts,     // a new one instead of the earlier ones: fails without a trace
  kRemoves,  // takes away the old one
  kCollects  // takes away what is superseded
};

struct Operation {
  const char* name;
  Effect effect;
  const char* sample;                         // that it works on
  std::function<void(Scene&)> prepare;        // without faults
  std::function<void(Scene&)> run;            // with
  std::vector<Unsupported> unsupported = {};  // by the file system
  StoreLayout layout = StoreLayout::kDraftflow;
  StoreKind kind = StoreKind::kLedgered;
};

void PrintTo(const Operation& operation, std::ostream* out) {
  *out << operation.name;
}

void nothing(Scene&) {}
void durable(Scene& scene) {
  scene.attach(true);
}

constexpr StoreLayout kFlat = StoreLayout::kSpecforge;
const std::vector<Unsupported> kNoRename = {{"renameat2", EINVAL}};

const Operation kOperations[] = {
    {"PutNew", Effect::kPuts, "n", nothing, [](Scene& s) { s.made = s.put("n", kNew); }},
    {"PutNewDurable", Effect::kPuts, "n", durable, [](Scene& s) { s.made = s.put("n", kNew); }},
    {"PutNewByLink", Effect::kPuts, "n", nothing, [](Scene& s) { s.made = s.put("n", kNew); }, kNoRename},
    {"PutAgain", Effect::kPuts, "a", nothing, [](Scene& s) { s.made = s.put("a", kNew); }},
    {"PutAgainDurable", Effect::kPuts, "a", durable, [](Scene& s) { s.made = s.put("a", kNew); }},
    {"PutAgainByLink", Effect::kPuts, "a", nothing, [](Scene& s) { s.made = s.put("a", kNew); }, kNoRename},
    {"Read", Effect::kKeeps, "a", nothing, [](Scene& s) { expect_same(s.store->read(*s.old), small_tensors(kOld)); }},
    {"Get", Effect::kKeeps, "a", nothing, [](Scene& s) { expect_same(s.store->get(*s.old).tensors, small_tensors(kOld)); }},
    {"ZeroCopy", Effect::kKeeps, "a", nothing,
     [](Scene& s) { expect_same(s.store->get(*s.old, {.zero_copy = true}).tensors, small_tensors(kOld)); }},
    {"GetAndRelease", Effect::kKeeps, "a", nothing, [](Scene& s) { s.store->release(s.store->get(*s.old).handle); }},
    {"Abort", Effect::kRemoves, "a", nothing, [](Scene& s) { EXPECT_EQ(s.store->abort(SampleId("a")), 1u); }},
    {"Remove", Effect::kRemoves, "a", nothing, [](Scene& s) { EXPECT_TRUE(s.store->remove(*s.old)); }},
    {"Gc", Effect::kCollects, "a", leave_debris, [](Scene& s) { s.store->gc(); }},
    {"Health", Effect::kKeeps, "a", nothing, [](Scene& s) { s.store->health(); }},
    {"Attach", Effect::kKeeps, "a", nothing, [](Scene& s) { s.attach(); }},
    {"Create", Effect::kKeeps, nullptr, nothing, [](Scene& s) { s.create(); }},
    {"CreateAgain", Effect::kKeeps, "a", nothing, [](Scene& s) { s.create(); }},
    {"FlatPutNew", Effect::kPuts, "n", nothing, [](Scene& s) { s.made = s.put("n", kNew); }, {}, kFlat},
    {"FlatPutAgain", Effect::kPuts, "a", durable, [](Scene& s) { s.made = s.put("a", kNew); }, {}, kFlat},
    {"FlatPutByLink", Effect::kPuts, "a", nothing, [](Scene& s) { s.made = s.put("a", kNew); }, kNoRename, kFlat},
    {"FlatGet", Effect::kKeeps, "a", nothing, [](Scene& s) { s.store->release(s.store->get(*s.old).handle); }, {}, kFlat},
    {"FlatRemove", Effect::kRemoves, "a", nothing, [](Scene& s) { EXPECT_TRUE(s.store->remove(*s.old)); }, {}, kFlat},
    {"FlatAbort", Effect::kRemoves, "a", nothing, [](Scene& s) { EXPECT_EQ(s.store->abort(SampleId("a")), 1u); }, {}, kFlat},
    {"FlatConsume",
     Effect::kRemoves,
     "a",
     nothing,
     [](Scene& s) { s.store->release(s.store->get(*s.old).handle); },
     {},
     kFlat,
     StoreKind::kConsumeOnce},
    {"FlatGc", Effect::kCollects, "a", leave_flat_debris, [](Scene& s) { s.store->gc(); }, {}, kFlat},
};

struct Way {
  const char* name;
  Fault fault;
  bool from_then_on = false;
  bool sanitized = false;  // run it under sanitizers, too
};

void PrintTo(const Way& way, std::ostream* out) {
  *out << way.name;
}

const Way kFaults[] = {{"EIO", fail(EIO), false, true},
                       {"ENOSPC", fail(ENOSPC)},
                       {"EINTR", fail(EINTR)},
                       {"ESTALE", fail(ESTALE)},
                       {"ShortTransfer", short_transfer(), false, true},
                       {"EIOFromThenOn", fail(EIO), true},
                       {"SIGKILL", kill_process()}};

// What the store does against the contract and is known for, by patterns of fnmatch: such a case is not red, and a line here
// that no case needs any more is. Take a line out with the fix.
struct Known {
  const char* operation;
  const char* way;
  const char* call;
  const char* what;
};

const std::vector<Known> kKnown = {};

enum class Outcome { kDone, kFailed, kCut };  // cut: killed, or unable to clear up after itself

std::map<std::uint64_t, Seed> whole_generations(Scene& scene, const std::string& sample) {
  std::map<std::uint64_t, Seed> found;
  const auto file = find_store_file(Folder::open(scene.root()), StoreId("st"));
  for (const auto& [generation, path] : scene.generations(sample)) {
    SampleRef ref{.sample_id = SampleId(sample), .run_id = RunId("run"), .feature_store_uri = "disagg://st/" + sample};
    ref.generation = generation;
    ref.incarnation = file->incarnation;
    for (const auto& [name, tensor] : small_tensors()) ref.feature_specs.push_back(spec_from_tensor(name, tensor));
    try {
      const TensorMap tensors = scene.store->read(ref);
      const auto seed = std::find_if(kSeeds.begin(), kSeeds.end(), [&](Seed candidate) {
        const TensorMap wanted = small_tensors(candidate);
        return std::equal(tensors.begin(), tensors.end(), wanted.begin(), wanted.end(), [](const auto& a, const auto& b) {
          return std::equal(a.second.bytes.begin(), a.second.bytes.end(), b.second.bytes.begin(), b.second.bytes.end());
        });
      });
      EXPECT_NE(seed, kSeeds.end()) << path << " holds nothing that was put";
      if (seed != kSeeds.end()) found[generation] = *seed;
    } catch (const Error& error) {
      ADD_FAILURE() << path << " is visible, but cannot be read: " << error.what();
    }
  }
  return found;
}

// As a front door would be asked: true if it gives these bytes, false for NotFound.
bool readable(Scene& scene, const SampleRef& ref, Seed seed) {
  try {
    expect_same(scene.store->read(ref), small_tensors(seed));
    return true;
  } catch (const NotFound&) {
    return false;
  } catch (const Error& error) {
    ADD_FAILURE() << "sample " << ref.sample_id.str() << " generation " << ref.generation << ": " << error.what();
    return false;
  }
}

void check_effect(Scene& scene, const Operation& operation, Outcome outcome) {
  if (operation.sample == nullptr) return;
  const auto visible = whole_generations(scene, operation.sample);
  const bool has_old = scene.old && operation.sample == scene.old->sample_id.str();
  const bool old_readable = has_old && readable(scene, *scene.old, kOld);
  const std::uint64_t old = has_old ? scene.old->generation : 0;
  switch (operation.effect) {
    case Effect::kKeeps:
      EXPECT_TRUE(old_readable) << "the sample is gone";
      EXPECT_EQ(visible.size(), 1u);
      break;
    case Effect::kPuts:
      if (outcome == Outcome::kDone) {
        EXPECT_FALSE(old_readable) << "put returned, and the earlier generation can still be had";
        EXPECT_TRUE(readable(scene, *scene.made, kNew)) << "put returned, and its ref cannot be read";
        EXPECT_EQ(visible.size(), 1u);
      } else if (outcome == Outcome::kFailed) {
        EXPECT_EQ(old_readable, has_old) << "put failed, and took the earlier generation with it";
        EXPECT_EQ(visible.size(), has_old ? 1u : 0u) << "put failed, and left a generation";
      } else if (has_old) {
        EXPECT_FALSE(visible.empty()) << "neither the old nor the new generation is there";
        EXPECT_GE(visible.empty() ? 0 : visible.rbegin()->first, old);
      }
      break;
    case Effect::kRemoves:
      if (outcome == Outcome::kDone) {
        EXPECT_FALSE(old_readable) << "remove returned, and the generation can still be had";
      }
      if (!old_readable) {
        EXPECT_TRUE(visible.empty());
      }
      break;
    case Effect::kCollects: EXPECT_FALSE(visible.empty()) << "gc took the last generation"; break;
  }
}

// Makes the store good again, as whoever comes next would: attach or create, gc, put, remove. Nothing may be left at the end.
void check_heals(Scene& scene, const Operation& operation, Outcome outcome) {
  const char* sample = operation.sample != nullptr ? operation.sample : "a";
  std::uint64_t greatest = scene.old ? scene.old->generation : 0;
  if (scene.made) greatest = std::max(greatest, scene.made->generation);
  for (const auto& [generation, seed] : whole_generations(scene, sample)) greatest = std::max(greatest, generation);

  scene.store->gc();
  EXPECT_THAT(scene.temporaries(), ::testing::IsEmpty()) << "gc leaves temporaries";
  EXPECT_LE(whole_generations(scene, sample).size(), 1u) << "gc leaves superseded generations";
  check_effect(scene, operation, outcome);

  const SampleRef later = scene.put(sample, kLater);
  EXPECT_GT(later.generation, greatest);
  EXPECT_TRUE(readable(scene, later, kLater));
  EXPECT_EQ(whole_generations(scene, sample).size(), 1u) << "the next put leaves earlier generations";
  scene.store->remove(later);
  for (const auto& ref : {scene.old, scene.bystander}) {
    if (ref) scene.store->remove(*ref);
  }
  scene.store->gc();
  EXPECT_THAT(scene.files(), ::testing::ElementsAre("store.json"));
  for (const auto& fan_out : std::filesystem::directory_iterator(scene.root() / "samples")) {
    EXPECT_TRUE(std::filesystem::is_empty(fan_out)) << fan_out;
  }
}

void check_promises(Scene& scene, const Operation& operation, Outcome outcome, const std::vector<std::string>& before) {
  if (operation.sample == nullptr) {
    if (outcome != Outcome::kCut) {
      EXPECT_THAT(scene.temporaries(), ::testing::IsEmpty());
    }
    scene.create();  // what is half made must not stand in the way
  } else {
    if (outcome == Outcome::kFailed && operation.effect == Effect::kPuts) {
      EXPECT_EQ(scene.files(), before) << "a failed put left something behind";
    }
    if (outcome != Outcome::kCut) {
      EXPECT_THAT(before, ::testing::IsSupersetOf(scene.temporaries()));
    }
    scene.attach();
    check_effect(scene, operation, outcome);
    EXPECT_TRUE(readable(scene, *scene.bystander, kBystander)) << "another sample is hurt";
  }
  check_heals(scene, operation, outcome);
}

std::size_t open_descriptors() {
  std::size_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) ++count;
  return count;
}

// An error tells what the disk said, and no other story.
void check_error(const Error& error, const Fault& fault) {
  const ErrorKind kind = fault.error == ENOSPC ? ErrorKind::kExhausted : ErrorKind::kUnavailable;
  EXPECT_EQ(error_kind_name(error.kind()), std::string(error_kind_name(kind))) << error.what();
  EXPECT_THAT(error.what(), ::testing::HasSubstr(std::strerror(fault.error)));
}

class EveryCall : public ::testing::TestWithParam<std::tuple<Operation, Way>> {
 protected:
  // One case, reported in one piece. False if the operation made fewer calls.
  bool try_call(std::uint64_t at) {
    ::testing::TestPartResultArray problems;
    bool reached = false;
    {
      using Reporter = ::testing::ScopedFakeTestPartResultReporter;
      const Reporter reporter(Reporter::INTERCEPT_ONLY_CURRENT_THREAD, &problems);
      case_ = {std::to_string(at), "the process ends there"};
      reached = run_case(at);
    }
    if (problems.size() == 0) return reached;
    for (const Known& known : kKnown) {
      if (is_of_this_test(known) && case_.call.ends_with(fmt::format(" {}", known.call))) {
        needed_.insert(&known);
        return reached;
      }
    }
    std::string text = fmt::format("fault at call {} ({})", case_.call, case_.end);
    for (int i = 0; i < problems.size(); ++i) text += fmt::format("\n  {}", problems.GetTestPartResult(i).message());
    ADD_FAILURE() << text;
    return reached;
  }

  bool is_of_this_test(const Known& known) const {
    const auto& [operation, way] = GetParam();
    return ::fnmatch(known.operation, operation.name, FNM_EXTMATCH) == 0 && ::fnmatch(known.way, way.name, FNM_EXTMATCH) == 0;
  }

  // One operation with its call `at` at fault, then the checks.
  bool run_case(std::uint64_t at) {
    const auto& [operation, way] = GetParam();
    Scene scene(operation.sample != nullptr, operation.layout, operation.kind);
    operation.prepare(scene);
    const FaultPlan plan{.at = at, .action = way.fault, .from_then_on = way.from_then_on, .unsupported = operation.unsupported};
    const std::vector<std::string> before = scene.files();
    return way.fault.kind == Fault::Kind::kKill ? kill_at(scene, plan, before) : fail_at(scene, plan, before);
  }

  bool fail_at(Scene& scene, const FaultPlan& plan, const std::vector<std::string>& before) {
    const auto& [operation, way] = GetParam();
    const std::size_t descriptors = open_descriptors() - 2 * scene.holders();  // a holder keeps its file and its folder open
    std::optional<std::string> failed;
    bool hit = false, reached = false;
    {
      const ScopedFaults faults(plan);
      try {
        operation.run(scene);
      } catch (const Error& error) {
        failed = error.what();
        check_error(error, way.fault);
      }
      hit = faults.hit();
      reached = faults.calls_made() >= plan.at;
      case_ = {faults.last_call(), failed.value_or("it was done all the same")};
    }
    EXPECT_TRUE(hit || !failed) << "failed without a fault";
    if (way.fault.kind == Fault::Kind::kShort) {
      EXPECT_FALSE(failed) << "a short transfer is no failure";
    }
    if (way.fault.error == EINTR && hit && (case_.call.ends_with("read") || case_.call.ends_with("write"))) {
      EXPECT_FALSE(failed) << "an interrupted transfer is asked for again";
    }
    if (operation.sample != nullptr) {
      EXPECT_LE(open_descriptors() - 2 * scene.holders(), descriptors) << "a descriptor leaks";
    }
    if (hit) {
      ++hits_;
      const Outcome outcome = !failed ? Outcome::kDone : way.from_then_on ? Outcome::kCut : Outcome::kFailed;
      check_promises(scene, operation, outcome, before);
    }
    return reached;
  }

  bool kill_at(Scene& scene, const FaultPlan& plan, const std::vector<std::string>& before) {
    const auto& [operation, way] = GetParam();
    const int status = wait_for(fork_child([&, &run = operation.run] {
      const ScopedFaults faults(plan);
      run(scene);
    }));
    const bool killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
    EXPECT_TRUE(killed || status == 0) << "the child ended with status " << status;
    if (!killed) return false;
    ++hits_;
    check_promises(scene, operation, Outcome::kCut, before);
    return true;
  }

  struct Case {
    std::string call, end;
  };

  Case case_;
  std::uint64_t hits_ = 0;
  std::set<const Known*> needed_;
};

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#elif defined(__has_feature)
constexpr bool kSanitized = __has_feature(address_sanitizer) || __has_feature(thread_sanitizer);
#else
constexpr bool kSanitized = false;
#endif

TEST_P(EveryCall, KeepsThePromises) {
  const Way& way = std::get<1>(GetParam());
  if (kSanitized && !way.sanitized)
    GTEST_SKIP() << "a sanitizer makes it take minutes, and would see nothing new: plain builds";
  std::uint64_t at = 1;
  while (at < kMostCalls) {
    if (!try_call(at)) break;
    ++at;
  }
  EXPECT_LT(at, kMostCalls);
  for (const Known& known : kKnown) {
    EXPECT_TRUE(!is_of_this_test(known) || needed_.contains(&known))
        << "no longer so: " << known.what << "; take it out of kKnown";
  }
  const bool asks_for_no_space = std::string_view(std::get<0>(GetParam()).name) == "Health";
  EXPECT_TRUE(asks_for_no_space || hits_ > 0) << "no call can fail so: this proves nothing";
}

INSTANTIATE_TEST_SUITE_P(Faults, EveryCall, ::testing::Combine(::testing::ValuesIn(kOperations), ::testing::ValuesIn(kFaults)),
                         [](const auto& test) {
                           return std::string(std::get<0>(test.param).name) + "_" + std::get<1>(test.param).name;
                         });

TEST(Faults, ARecountThatCannotSeeAFileDoesNotMakeTheFiguresTooLow) {
  for (std::uint64_t at = 1;; ++at) {
    Scene scene(true);
    bool hit = false;
    {
      const ScopedFaults faults({.at = at, .action = fail(EIO)});
      try {
        scene.store->gc();
      } catch (const Error&) {
      }
      hit = faults.hit();
    }
    EXPECT_GE(scene.store->health().resident_samples, 2u) << "call " << at;
    if (!hit) break;
  }
}

TEST(Faults, CountAndNameTheCallsOfTheStore) {
  Scene scene(true);
  const ScopedFaults faults({});
  scene.put("a", kNew);
  EXPECT_FALSE(faults.hit());
  EXPECT_EQ(faults.calls_made(), faults.calls().size());
  const std::vector<std::string> calls(faults.calls().begin(), faults.calls().end());
  for (const char* call : {"fstatvfs", "openat", "getdents64", "flock", "writev", "renameat2", "unlinkat", "close"}) {
    EXPECT_THAT(calls, ::testing::Contains(call));
  }
}

// Thousands of stores are made: in memory, where there is such a place.
class InMemory : public ::testing::Environment {
 public:
  void SetUp() override {
    constexpr unsigned kTmpfs = 0x01021994;
    struct statfs status {};
    if (::statfs("/dev/shm", &status) == 0 && static_cast<unsigned>(status.f_type) == kTmpfs &&
        ::access("/dev/shm", W_OK) == 0) {
      ::setenv("TMPDIR", "/dev/shm", 1);
    }
  }
};

const ::testing::Environment* const in_memory = ::testing::AddGlobalTestEnvironment(new InMemory);

}  // namespace
}  // namespace draftflow::store
