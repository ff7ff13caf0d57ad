// SPDX-License-Identifier: Apache-2.0
//
// Many processes put, get, release, remove, abort and collect the same few samples at once, some of them killed; what each saw
// is checked against the contract. Every call is logged with its begin and end (of one clock for all processes), so that
//   - bytes read of a generation are exactly those that its put was given, and no two puts share a generation;
//   - a generation was not found only if something that ends it can be ordered before the look;
//   - a generation was found only if nothing that ends it was over before the look began.
#include <signal.h>
#include <sys/mman.h>
#include <time.h>

#include <atomic>
#include <cstring>
#include <map>
#include <memory>

#include "store/shared_dir/shared_dir_store.h"
#include "store/store_testing.h"
#include "testing/temp_folder.h"

namespace draftflow::store {
namespace {

using store_testing::run_metadata;

constexpr int kProcesses = 4, kSamples = 3, kRecent = 4;
constexpr std::size_t kMaxEvents = 40'000;  // of one process
constexpr std::int64_t kRunNs = 1'500'000'000, kLongestNs = 60'000'000'000;
constexpr std::int64_t kNever = INT64_MAX;

enum class Op : int { kPut, kGet, kRelease, kRemove, kAbort };

struct Event {
  Op op;
  int sample;
  std::uint64_t generation;  // of a put that did not end: unknown, 0
  std::uint64_t seed;        // kPut: of its bytes; kGet: of the bytes found
  std::int64_t begin, end;   // end: kNever if the process was killed in between
  bool found;                // kGet
};

struct Log {
  std::atomic<std::size_t> count;
  Event events[kMaxEvents];
};

// What the processes share beside the store: their logs, and generations to try.
struct Shared {
  std::atomic<std::uint64_t> recent[kSamples][kRecent];
  std::atomic<std::size_t> found, missed;  // gets so far
  Log logs[2 * kProcesses];
};

std::int64_t now_ns() {
  timespec time{};
  ::clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * 1'000'000'000 + time.tv_nsec;
}

TensorMap tensors_of(std::uint64_t seed) {
  auto [tensor, bytes] = Tensor::allocate(DType::kInt64, {64});
  for (std::size_t i = 0; i < 64; ++i) {
    const std::uint64_t word = seed * 1'000'003 + i;
    std::memcpy(bytes.data() + 8 * i, &word, 8);
  }
  return {{"x", tensor}};
}

// The seed of bytes that are one put's from first to last; 0 for any others.
std::uint64_t seed_of(const TensorMap& tensors) {
  const auto words = tensors.at(0).second.as<std::uint64_t>();
  const std::uint64_t seed = words[0] / 1'000'003;
  for (std::size_t i = 0; i < words.size(); ++i) {
    if (words[i] != seed * 1'000'003 + i) return 0;
  }
  return seed;
}

class Actor {
 public:
  // `flat`: the store's folder, if the reference's consumer takes part; else empty.
  Actor(FeatureStore& store, const SampleRef& like, Shared& shared, int number, std::uint64_t seed, std::filesystem::path flat)
      : store_(store),
        like_(like),
        shared_(shared),
        log_(shared.logs[number]),
        random_(seed),
        next_seed_(1 + number * 1'000'000ULL),
        flat_(std::move(flat)) {}

  void run(std::int64_t until) {
    // On a slow machine it goes on until there is something to check.
    const auto enough = [&] { return shared_.found.load() > 200 && shared_.missed.load() > 40; };
    for (std::int64_t now = now_ns(); now < until || (!enough() && now < until + kLongestNs); now = now_ns()) {
      if (log_.count.load() + 8 >= kMaxEvents) break;
      const int sample = static_cast<int>(random_.below(kSamples));
      switch (random_.below(20)) {
        case 0: abort(sample); break;
        case 1: store_.gc(); break;
        case 2:
          if (!flat_.empty()) {
            free_as_the_reference(sample);
            break;
          }
          [[fallthrough]];
        case 3:
        case 4: remove(sample); break;
        case 5:
        case 6:
        case 7:
        case 8:
        case 9: put(sample); break;
        default: get(sample); break;
      }
    }
    while (!held_.empty()) release(0);
  }

 private:
  std::size_t begin(Event event) {
    const std::size_t at = log_.count.load();
    event.end = kNever;
    event.begin = now_ns();
    log_.events[at] = event;
    log_.count.store(at + 1);
    return at;
  }

  SampleRef ref_of(int sample, std::uint64_t generation) const {
    SampleRef ref = like_;
    ref.sample_id = SampleId("s" + std::to_string(sample));
    ref.feature_store_uri = "disagg://st/" + ref.sample_id.str();
    ref.generation = generation;
    return ref;
  }

  std::uint64_t some_generation(int sample) { return shared_.recent[sample][random_.below(kRecent)].load(); }

  // Takes the flat name away, as the reference's consumer does.
  void free_as_the_reference(int sample) {
    const std::uint64_t generation = some_generation(sample);
    if (generation == 0) return;
    const std::size_t at = begin({.op = Op::kRemove, .sample = sample, .generation = generation});
    ::unlink((flat_ / *reference_name(SampleId("s" + std::to_string(sample)), generation)).c_str());
    log_.events[at].end = now_ns();
  }

  void put(int sample) {
    const std::uint64_t seed = next_seed_++;
    const std::size_t at = begin({.op = Op::kPut, .sample = sample, .seed = seed});
    const SampleRef ref = store_.put(tensors_of(seed), SampleId("s" + std::to_string(sample)), run_metadata());
    log_.events[at].generation = ref.generation;
    log_.events[at].end = now_ns();
    shared_.recent[sample][random_.below(kRecent)].store(ref.generation);
  }

  void get(int sample) {
    const std::uint64_t generation = some_generation(sample);
    if (generation == 0) return;
    if (held_.size() >= 4) release(random_.below(held_.size()));
    const std::size_t at = begin({.op = Op::kGet, .sample = sample, .generation = generation});
    try {
      Fetched fetched = store_.get(ref_of(sample, generation), {.zero_copy = random_.below(2) == 0});
      log_.events[at].end = now_ns();
      log_.events[at].seed = seed_of(fetched.tensors);
      log_.events[at].found = true;
      shared_.found.fetch_add(1);
      held_.emplace_back(sample, std::move(fetched));
    } catch (const NotFound&) {
      log_.events[at].end = now_ns();
      shared_.missed.fetch_add(1);
    }
  }

  void release(std::size_t which) {
    const auto [sample, fetched] = std::move(held_[which]);
    held_.erase(held_.begin() + static_cast<std::ptrdiff_t>(which));
    // A view must still hold the bytes it was given.
    if (seed_of(fetched.tensors) == 0) ::_exit(9);
    const std::size_t at = begin({.op = Op::kRelease, .sample = sample, .generation = fetched.handle.generation});
    store_.release(fetched.handle);
    log_.events[at].end = now_ns();
  }

  void remove(int sample) {
    const std::uint64_t generation = some_generation(sample);
    if (generation == 0) return;
    const std::size_t at = begin({.op = Op::kRemove, .sample = sample, .generation = generation});
    store_.remove(ref_of(sample, generation));
    log_.events[at].end = now_ns();
  }

  void abort(int sample) {
    const std::size_t at = begin({.op = Op::kAbort, .sample = sample});
    store_.abort(SampleId("s" + std::to_string(sample)));
    log_.events[at].end = now_ns();
  }

  FeatureStore& store_;
  const SampleRef& like_;
  Shared& shared_;
  Log& log_;
  Random random_;
  std::uint64_t next_seed_;
  const std::filesystem::path flat_;
  std::vector<std::pair<int, Fetched>> held_;
};

class Checker {
 public:
  Checker(const Shared& shared, StoreKind kind) : kind_(kind) {
    for (const Log& log : shared.logs) {
      for (std::size_t i = 0; i < log.count.load(); ++i) events_.push_back(log.events[i]);
    }
    for (const Event& event : events_) {
      if (event.op != Op::kPut || event.generation == 0) continue;
      EXPECT_TRUE(puts_.emplace(event.generation, event).second) << "generation " << event.generation << " was given twice";
    }
  }

  void check() {
    for (const Event& event : events_) {
      if (event.op != Op::kGet || event.end == kNever) continue;
      ++(event.found ? found_ : missed_);
      event.found ? check_found(event) : check_missed(event);
    }
    EXPECT_GT(found_, 100u) << "too few reads to prove anything";
    EXPECT_GT(missed_, 20u);
  }

 private:
  // Whether `other` ends `generation`, if it comes at all.
  bool ends(const Event& other, std::uint64_t generation) const {
    switch (other.op) {
      case Op::kPut: return other.generation == 0 || other.generation > generation;
      case Op::kRemove: return other.generation == generation;
      case Op::kRelease: return kind_ == StoreKind::kConsumeOnce && other.generation == generation;
      case Op::kAbort: return true;
      case Op::kGet: return false;
    }
    return false;
  }

  void check_missed(const Event& get) const {
    for (const Event& other : events_) {
      if (other.sample == get.sample && ends(other, get.generation) && other.begin < get.end) return;
    }
    ADD_FAILURE() << "s" << get.sample << " generation " << get.generation << " was not found, but nothing had ended it";
  }

  void check_found(const Event& get) const {
    const auto put = puts_.find(get.generation);
    ASSERT_NE(put, puts_.end());
    EXPECT_EQ(get.seed, put->second.seed) << "the bytes of another put, or torn ones";
    for (const Event& other : events_) {
      if (other.sample != get.sample || !ends(other, get.generation) || other.end >= get.begin) continue;
      if (other.op == Op::kRelease) continue;                                 // others may still lease it
      if (other.op == Op::kAbort && other.begin < put->second.end) continue;  // may have come before
      if (other.op == Op::kPut && may_follow(put->second, other, get)) continue;
      ADD_FAILURE() << "s" << get.sample << " generation " << get.generation << " was found although op "
                    << static_cast<int>(other.op) << " had ended it before";
    }
  }

  // Of two puts that overlap, the one with the lower number may appear after the other has gone again; and until it
  // returns it may be seen beside the other.
  bool may_follow(const Event& lower, const Event& greater, const Event& get) const {
    if (lower.end < greater.begin) return false;
    if (lower.end >= get.begin) return true;
    for (const Event& other : events_) {
      if (other.sample == lower.sample && ends(other, greater.generation) && other.begin < lower.end) return true;
    }
    return false;
  }

  const StoreKind kind_;
  std::vector<Event> events_;
  std::map<std::uint64_t, Event> puts_;
  std::size_t found_ = 0, missed_ = 0;
};

void race(StoreKind kind, bool with_kills, std::uint64_t seed, StoreLayout layout = StoreLayout::kDraftflow) {
  SCOPED_TRACE("seed " + std::to_string(seed));
  const testing_support::TempFolder temp;
  const SharedDirOptions options{.kind = kind, .layout = layout};
  const auto store = create_shared_dir_store(temp.path(), StoreId("st"), options);
  const SampleRef like = store->put(tensors_of(1), SampleId("like"), run_metadata());
  const auto unmap = [](Shared* shared) { ::munmap(shared, sizeof(Shared)); };
  const std::unique_ptr<Shared, decltype(unmap)> shared(
      static_cast<Shared*>(::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)), unmap);
  const std::int64_t until = now_ns() + kRunNs;
  std::vector<pid_t> children;
  const auto start = [&](int number) {
    children.push_back(store_testing::fork_child([&, number] {
      const auto mine = create_shared_dir_store(temp.path(), StoreId("st"), options);
      const auto flat = layout == StoreLayout::kSpecforge ? temp.path() / "st" : std::filesystem::path();
      Actor(*mine, like, *shared, number, seed + static_cast<std::uint64_t>(number), flat).run(until);
    }));
  };
  for (int i = 0; i < kProcesses; ++i) start(i);
  Random random(seed);
  int killed = 0;
  for (int i = 0; with_kills && i < kProcesses; ++i) {
    ::usleep(static_cast<useconds_t>(100'000 + random.below(200'000)));
    ::kill(children[static_cast<std::size_t>(i)], SIGKILL);
    const int status = store_testing::wait_for(children[static_cast<std::size_t>(i)]);
    killed += WIFSIGNALED(status) ? 1 : 0;
    EXPECT_TRUE(WIFSIGNALED(status) || status == 0) << "it ended with the status " << status;  // 0: its time was up already
    start(kProcesses + i);
  }
  EXPECT_TRUE(!with_kills || killed > 0) << "nobody was killed in time to prove anything";
  for (std::size_t i = with_kills ? kProcesses : 0; i < children.size(); ++i)
    EXPECT_EQ(store_testing::wait_for(children[i]), 0);
  Checker(*shared, kind).check();

  store->abort(SampleId("like"));
  for (int i = 0; i < kSamples; ++i) store->abort(SampleId("s" + std::to_string(i)));
  store->gc();
  EXPECT_TRUE(store_testing::generation_files(temp.path()).empty());
  EXPECT_TRUE(std::filesystem::is_empty(temp.path() / "st" / "tmp"));
  for (const auto& entry : std::filesystem::directory_iterator(temp.path() / "st")) {
    EXPECT_NE(entry.path().extension(), ".ckpt") << entry.path();
  }
  EXPECT_EQ(store_testing::files_below(temp.path() / "st" / "leases").size(), 1u) << "our own holder alone";
  if (with_kills) return;  // a recount waits for what was under way at a death
  EXPECT_EQ(store->health().resident_samples, 0u);
  EXPECT_EQ(store->health().resident_bytes, 0u);
  EXPECT_EQ(store->health().live_leases, 0u);
}

TEST(Race, LedgeredProcessesSeeWhatTheContractAllows) {
  race(StoreKind::kLedgered, false, 101);
}
TEST(Race, ConsumingProcessesSeeWhatTheContractAllows) {
  race(StoreKind::kConsumeOnce, false, 202);
}
TEST(Race, LedgeredProcessesThatAreKilled) {
  race(StoreKind::kLedgered, true, 303);
}
TEST(Race, ConsumingProcessesThatAreKilled) {
  race(StoreKind::kConsumeOnce, true, 404);
}
TEST(Race, ProcessesInAStoreThatTheReferenceReads) {
  race(StoreKind::kLedgered, false, 505, StoreLayout::kSpecforge);
}
TEST(Race, ConsumingProcessesThatAreKilledInAStoreThatTheReferenceReads) {
  race(StoreKind::kConsumeOnce, true, 606, StoreLayout::kSpecforge);
}

}  // namespace
}  // namespace draftflow::store
