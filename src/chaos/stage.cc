// SPDX-License-Identifier: Apache-2.0
#include "chaos/stage.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstring>
#include <fstream>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "draftflow/base/error.h"
#include "draftflow/base/file.h"
#include "draftflow/base/text.h"

namespace draftflow::chaos {
namespace {

using Json = nlohmann::json;
constexpr std::uint64_t kDeathsOneIn = 600;  // points that a process passes alive
constexpr auto kPatience = std::chrono::seconds(30);

std::uint64_t hash_of(std::uint64_t seed, const std::string& text) {
  std::uint64_t hash = 0xcbf29ce484222325ULL ^ seed;  // FNV-1a
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3ULL;
  return Random(hash).next();
}

}  // namespace

const char* bug_name(Bug bug) {
  switch (bug) {
    case Bug::kSkipTimelineCheck: return "SkipTimelineCheck";
    case Bug::kFreeAtFetch: return "FreeAtFetch";
    case Bug::kSplitCommit: return "SplitCommit";
    case Bug::kDurableBeforeFile: return "DurableBeforeFile";
    case Bug::kForgetfulResume: return "ForgetfulResume";
    case Bug::kStepBeforeTrained: return "StepBeforeTrained";
    case Bug::kAbortAfterConflict: return "AbortAfterConflict";
    case Bug::kForgottenFailure: return "ForgottenFailure";
    case Bug::kBlindPut: return "BlindPut";
    case Bug::kStaleNumber: return "StaleNumber";
    case Bug::kAckBeforeReading: return "AckBeforeReading";
    case Bug::kLostAckIsDone: return "LostAckIsDone";
    case Bug::kFreeAtLease: return "FreeAtLease";
    case Bug::kClosedAckIsDone: return "ClosedAckIsDone";
    case Bug::kNoteBeforeJoining: return "NoteBeforeJoining";
    case Bug::kFreeAfterPass: return "FreeAfterPass";
    case Bug::kOnePass: return "OnePass";
    default: return "None";
  }
}

const char* count_name(Count count) {
  static constexpr const char* kNames[] = {"commits",      "late commits",  "reads",         "unreadable",  "exhausted",
                                           "unavailable",  "stale calls",   "steps",         "checkpoints", "freed",
                                           "deaths",       "stalls",        "squeezed puts", "orphans",     "too old",
                                           "off the line", "older resumed", "rewound",       "acks",        "lost refs"};
  static_assert(std::size(kNames) == static_cast<std::size_t>(Count::kEnd));
  return kNames[static_cast<std::size_t>(count)];
}

std::int64_t steady_ms() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

GroupConfig config_of(const Plan& plan, const GroupPlan& group) {
  const GroupId name(group.name);
  if (group.queue) return {.group = name, .kind = GroupKind::kQueue, .max_attempts = kQueueAttempts};
  GroupConfig config{.group = name, .window = group.window, .resumable_checkpoints = group.resumable, .tail = group.tail};
  config.passes = plan.bug == Bug::kOnePass ? 1 : group.passes;
  return config;
}

void save_plan(const Plan& plan) {
  Json groups = Json::array();
  for (const GroupPlan& group : plan.groups) {
    groups.push_back({{"name", group.name},
                      {"window", group.window},
                      {"resumable", group.resumable},
                      {"max_width", group.max_width},
                      {"carry", group.tail == TailPolicy::kCarry},
                      {"late", group.late},
                      {"closed", group.closed},
                      {"queue", group.queue},
                      {"passes", group.passes}});
  }
  const Json json = {{"ledger", plan.ledger},
                     {"lossy", plan.lossy},
                     {"seed", plan.seed},
                     {"bug", static_cast<int>(plan.bug)},
                     {"started_ms", plan.started_ms},
                     {"lifetime_s", plan.lifetime_s},
                     {"groups", groups}};
  replace_file(plan.folder / "plan.json", json.dump(1) + "\n");
}

Plan load_plan(const std::filesystem::path& folder) {
  const Json json = Json::parse(read_text_file(folder / "plan.json"));
  Plan plan{.folder = folder, .ledger = json.at("ledger"), .seed = json.at("seed")};
  plan.lossy = json.at("lossy");
  plan.bug = static_cast<Bug>(json.at("bug").get<int>());
  plan.started_ms = json.at("started_ms");
  plan.lifetime_s = json.at("lifetime_s");
  for (const Json& group : json.at("groups")) {
    plan.groups.push_back({.name = group.at("name"),
                           .window = group.at("window"),
                           .resumable = group.at("resumable"),
                           .max_width = group.at("max_width"),
                           .tail = group.at("carry") ? TailPolicy::kCarry : TailPolicy::kDrop,
                           .late = group.at("late"),
                           .closed = group.at("closed"),
                           .queue = group.at("queue"),
                           .passes = group.at("passes")});
  }
  return plan;
}

// --- the board

Board::Board(const std::filesystem::path& folder) {
  const UniqueFd fd = open_file(folder / "board", O_RDWR | O_CREAT, 0600);
  if (file_size(fd.get(), folder / "board") < sizeof(Page) && ::ftruncate(fd.get(), sizeof(Page)) != 0) {
    throw_errno(errno, "making the board");
  }
  void* memory = ::mmap(nullptr, sizeof(Page), PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (memory == MAP_FAILED) throw_errno(errno, "mapping the board");
  page_ = static_cast<Page*>(memory);
}

Board::~Board() {
  ::munmap(page_, sizeof(Page));
}

void Board::note_timeline(std::size_t group, std::int64_t number) {
  std::atomic<std::int64_t>& newest = page_->newest_timeline[group];
  for (std::int64_t seen = newest; seen < number && !newest.compare_exchange_weak(seen, number);) {
  }
}

// --- the stage

Stage::Stage(const std::filesystem::path& folder, std::uint64_t ordinal)
    : plan(load_plan(folder)),
      board(folder),
      random(Random(plan.seed + 0x9e3779b97f4a7c15ULL * (ordinal + 1)).next()),
      violations_(folder / "violations.log") {}

void Stage::violation(const std::string& text) {
  append_line(violations_, printable(text, 4000));
  ++board.violations();
}

void Stage::point(Point point, std::optional<std::size_t> group) {
  if (group && point != Point::kNone) {
    std::int64_t wanted = static_cast<std::int64_t>(point);
    if (board.stall_at(*group).compare_exchange_strong(wanted, 0)) {
      board.add(Count::kStalls);
      ::raise(SIGSTOP);
    }
  }
  if (random.below(kDeathsOneIn) != 0) return;
  board.add(Count::kDeaths);
  ::raise(SIGKILL);
}

void append_line(const std::filesystem::path& file, const std::string& line) {
  const UniqueFd fd = open_file(file, O_WRONLY | O_CREAT | O_APPEND, 0600);
  const std::string whole = line + "\n";
  write_all(fd.get(), std::as_bytes(std::span(whole)), file);
}

std::vector<std::string> read_lines(const std::filesystem::path& file) {
  std::vector<std::string> lines;
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

// --- samples

std::string task_name(std::int64_t number) {
  return fmt::format("p{:07}", number);
}

Kind kind_of(const Plan& plan, const std::string& id) {
  const std::uint64_t draw = hash_of(plan.seed, id) % 200;
  if (draw < 6) return Kind::kPoisoned;
  if (draw < 14) return Kind::kFlaky;
  if (draw < 20) return Kind::kNotFinite;
  if (draw < 24) return Kind::kDeleted;
  if (draw < 28) return Kind::kDamaged;
  if (draw < 36) return Kind::kFitful;
  return Kind::kSound;
}

bool falters_in(const Plan& plan, const std::string& id, std::int64_t window) {
  return kind_of(plan, id) == Kind::kFitful && hash_of(plan.seed + static_cast<std::uint64_t>(window), id) % 2 == 0;
}

TensorMap tensors_of(const Plan& plan, const std::string& id) {
  Random random(hash_of(plan.seed + 1, id));
  const std::uint64_t longest = random.below(20) == 0 ? 12'000 : 900;
  std::vector<float> hidden(40 + random.below(longest));
  for (float& value : hidden) value = static_cast<float>(random.uniform());
  if (kind_of(plan, id) == Kind::kNotFinite) {
    hidden[random.below(hidden.size())] = std::numeric_limits<float>::quiet_NaN();
  }
  std::vector<std::int64_t> ids(1 + random.below(60));
  for (std::int64_t& value : ids) value = static_cast<std::int64_t>(random.below(32'000));
  const auto length = [](const auto& values) { return std::vector<std::int64_t>{static_cast<std::int64_t>(values.size())}; };
  return {{"input_ids", Tensor::copy_of(DType::kInt64, length(ids), std::as_bytes(std::span(ids)))},
          {"hidden_state", Tensor::copy_of(DType::kFloat32, length(hidden), std::as_bytes(std::span(hidden)))}};
}

std::optional<std::string> check_tensors(Stage& stage, const std::string& id, const TensorMap& tensors) {
  for (const auto& [name, wanted] : tensors_of(stage.plan, id)) {
    const Tensor* found = find_tensor(tensors, name);
    const bool same = found != nullptr && found->dtype == wanted.dtype && found->shape == wanted.shape &&
                      std::ranges::equal(found->bytes, wanted.bytes);
    if (!same) stage.violation(fmt::format("sample {}: the bytes of {} are not those that were put", id, name));
  }
  const Tensor* hidden = find_tensor(tensors, "hidden_state");
  if (hidden == nullptr) return "there is no hidden_state";
  for (const float value : hidden->as<float>()) {
    if (!std::isfinite(value)) return "hidden_state is not finite";
  }
  return std::nullopt;
}

std::unique_ptr<FeatureStore> make_store(const Plan& plan, std::uint64_t max_resident_bytes) {
  return create_shared_dir_store(plan.disk(), StoreId("features"),
                                 {.max_resident_bytes = max_resident_bytes, .free_space_floor_bytes = 0});
}

std::unique_ptr<FeatureStore> open_store(const Plan& plan, std::uint64_t free_space_floor) {
  return open_shared_dir_store(plan.disk(), StoreId("features"), {.free_space_floor_bytes = free_space_floor});
}

void log_put(const Plan& plan, const PutStep& step) {
  append_line(plan.folder / "puts.log",
              fmt::format("{} {} {} {} {}", step.what, step.id, step.token, step.generation, step.at_ms));
}

void with_patience(Stage& stage, const std::function<void()>& call) {
  const auto start = std::chrono::steady_clock::now();
  for (;;) {
    try {
      call();
      return;
    } catch (const Error& error) {
      const bool full = error.kind() == ErrorKind::kExhausted;
      const bool may_pass = full || error.kind() == ErrorKind::kUnavailable || error.kind() == ErrorKind::kInDoubt;
      if (!may_pass || std::chrono::steady_clock::now() - start > kPatience) throw;
      stage.board.add(full ? Count::kExhausted : Count::kUnavailable);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
}

}  // namespace draftflow::chaos
