// SPDX-License-Identifier: Apache-2.0
#include "draftflow/train/trainer.h"

#include <ATen/ATen.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>

#include "draftflow/base/error.h"
#include "draftflow/base/file.h"
#include "draftflow/base/interrupt.h"
#include "draftflow/flow/cross_check.h"
#include "draftflow/loader/prefetcher.h"
#include "draftflow/model/compute.h"
#include "train/checkpoint.h"
#include "train/eagle3_step.h"
#include "train/target_head.h"

namespace draftflow {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::int64_t kUnknownTokensOneIn = 100;  // a larger share of unknown tokens is refused
constexpr int kStarvedMs = 2000;                   // waiting this long with undurable steps, a checkpoint lets their bytes go

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

c10::ScalarType compute_dtype(const std::string& name) {
  if (name == "float32") return at::kFloat;
  if (name == "bfloat16") return at::kBFloat16;
  if (name == "float64") return at::kDouble;
  throw InvalidArgument(fmt::format("dtype '{}' cannot be trained in: float32, bfloat16 and float64 can", name));
}

void check_options(const TrainOptions& options) {
  const auto positive = [](const char* name, double value) {
    if (!(value > 0)) throw InvalidArgument(fmt::format("{} is {}: more than 0 is allowed", name, value));
  };
  positive("window", options.window);
  positive("batch", options.batch);
  positive("ttt_length", options.ttt_length);
  positive("max_length", static_cast<double>(options.max_length));
  positive("learning_rate", options.learning_rate);
  positive("max_grad_norm", options.max_grad_norm);
  positive("epochs", options.epochs);
  positive("checkpoint_every", options.checkpoint_every);
  positive("resumable_checkpoints", options.resumable_checkpoints);
  positive("prefetch", options.prefetch);
  positive("threads", options.threads);
  if (options.ranks < 1 || options.rank < 0 || options.rank >= options.ranks) {
    throw InvalidArgument(
        fmt::format("rank {} of {} ranks: 0 to ranks - 1 are allowed, and at least one rank", options.rank, options.ranks));
  }
  if (options.window % (options.ranks * options.batch) != 0) {
    throw InvalidArgument(
        fmt::format("a window of {} over {} ranks in batches of {}: ranks x batch ({}) has to divide the window",
                    options.window, options.ranks, options.batch, options.ranks * options.batch));
  }
  if (!(options.warmup_ratio >= 0 && options.warmup_ratio < 1)) {
    throw InvalidArgument(fmt::format("warmup_ratio is {}: 0 to under 1 is allowed", options.warmup_ratio));
  }
  if (options.max_window_tokens < 0) {
    throw InvalidArgument(fmt::format("max_window_tokens is {}: 0 (no cap) or more is allowed", options.max_window_tokens));
  }
  if (options.max_window_tokens > 0 && options.total_steps == 0) {
    throw InvalidArgument(
        fmt::format("max_window_tokens is {}: how many steps the samples make depends on their lengths, so the schedule's "
                    "total_steps has to be given",
                    options.max_window_tokens));
  }
}

// The options that change the numbers: a checkpoint goes on only under the same ones.
std::map<std::string, std::string> numeric_options(const TrainOptions& o) {
  // How a window is cut into batches changes the loss under "reference" alone.
  const int batch = o.loss_normalization == "reference" ? o.batch : 0;
  return {{"window", std::to_string(o.window)},
          {"batch", std::to_string(batch)},
          {"total_steps", std::to_string(o.total_steps)},
          {"init_draft", o.init_draft.string()},
          {"ttt_length", std::to_string(o.ttt_length)},
          {"max_length", std::to_string(o.max_length)},
          {"learning_rate", fmt::format("{}", o.learning_rate)},
          {"warmup_ratio", fmt::format("{}", o.warmup_ratio)},
          {"max_grad_norm", fmt::format("{}", o.max_grad_norm)},
          {"loss_decay", fmt::format("{}", o.loss_decay)},
          {"loss", o.loss},
          {"kl_scale", fmt::format("{}", o.kl_scale)},
          {"kl_decay", fmt::format("{}", o.kl_decay)},
          {"loss_normalization", o.loss_normalization},
          {"dtype", o.dtype},
          {"draft_vocab", std::to_string(o.draft_vocab)},
          {"heads", std::to_string(o.heads)},
          {"kv_heads", std::to_string(o.kv_heads)},
          {"head_dim", std::to_string(o.head_dim)},
          {"intermediate", std::to_string(o.intermediate)},
          {"seed", std::to_string(o.seed)},
          {"epochs", std::to_string(o.epochs)}};
}

DraftConfig make_draft_config(const TrainOptions& options, const LlamaConfig& target, const VocabMap& map, Ledger& ledger) {
  const auto chosen = [](std::int64_t given, std::int64_t fallback) { return given > 0 ? given : fallback; };
  DraftConfig config;
  config.hidden_size = config.target_hidden_size = target.hidden_size;
  config.intermediate_size = chosen(options.intermediate, target.intermediate_size);
  config.num_attention_heads = chosen(options.heads, target.num_attention_heads);
  config.num_key_value_heads = chosen(options.kv_heads, options.heads > 0 ? options.heads : target.num_key_value_heads);
  config.head_dim = chosen(options.head_dim, target.head_dim);
  if (config.num_attention_heads % config.num_key_value_heads != 0 || config.head_dim % 2 != 0) {
    throw InvalidArgument(
        fmt::format("the draft cannot have {} heads over {} kv heads of {}: heads must be a multiple of kv heads, "
                    "and the head's width even",
                    config.num_attention_heads, config.num_key_value_heads, config.head_dim));
  }
  config.vocab_size = target.vocab_size;
  config.draft_vocab_size = static_cast<std::int64_t>(map.used.size());
  config.max_position_embeddings = target.max_position_embeddings;
  config.rms_norm_eps = target.rms_norm_eps;
  config.rope = target.rope;
  config.rope.head_dim = config.head_dim;
  config.rope_json = target.rope_json;
  config.bos_token_id = target.bos_token_id;
  config.eos_token_ids = target.eos_token_ids;
  if (const auto layers = ledger.declared("capture_layers")) {
    config.capture_layers = nlohmann::json::parse(*layers).get<std::vector<int>>();
  }
  return config;
}

// One trainer a folder: two would clear each other's checkpoints. Free again as soon as its holder has ended.
UniqueFd take_folder(const std::filesystem::path& out) {
  make_folders(out);
  const std::filesystem::path file = out / "train.lock";
  UniqueFd fd = open_file(file, O_RDWR | O_CREAT);
  if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) throw_errno(errno, "locking " + file.string());
    throw Unavailable(
        fmt::format("another trainer works in {}: wait for it or end it, or train into another folder", out.string()));
  }
  return fd;
}

// Tokens that the target does not have make their samples fail one by one; many of them mean another tokenizer, which
// make_vocab_map refuses.
std::vector<TokenCount> known_tokens(std::vector<TokenCount> counts, std::int64_t vocab) {
  std::int64_t all = 0, unknown = 0;
  for (const TokenCount& entry : counts) {
    all += entry.count;
    if (entry.token < 0 || entry.token >= vocab) unknown += entry.count;
  }
  if (unknown * kUnknownTokensOneIn > all) return counts;
  std::erase_if(counts, [&](const TokenCount& entry) { return entry.token < 0 || entry.token >= vocab; });
  return counts;
}

// Tells two targets of the same shape apart.
std::string fingerprint(const TargetHead& target) {
  const at::Tensor head = target.head.to(at::kDouble);
  return fmt::format("{} x {}, sum {:.9e}, norm {:.9e}", head.size(0), head.size(1), head.sum().item<double>(),
                     head.norm().item<double>());
}

class TrainRun {
 public:
  TrainRun(const TrainOptions& options, const TrainCallback& on_step, const std::atomic<bool>& stop)
      : options_(options),
        on_step_(on_step),
        stop_(stop),
        group_(options.group),
        dtype_(compute_dtype(options.dtype)),
        ranks_({.rank = options.rank, .width = options.ranks, .rendezvous = options.rendezvous}),
        lock_(ranks_.first() ? take_folder(options.out) : UniqueFd()),
        ledger_(open_ledger(options.ledger.string())),
        fetch_ledger_(open_ledger(options.ledger.string())),
        offline_(ledger_->declared("kind") == "offline"),
        checkpoints_(options.out / "checkpoints"),
        target_(load_target_head(options.target, dtype_)) {}

  TrainProgress run() {
    if (offline_ && options_.max_window_tokens > 0) {
      throw InvalidArgument(
          fmt::format("max_window_tokens is {}, and ledger {} has an offline set, whose windows are found by counting samples: "
                      "0 (no cap) is allowed; choose a smaller window",
                      options_.max_window_tokens, options_.ledger.string()));
    }
    if (!wait_for_samples()) return progress_;
    state_.total_steps = total_steps();
    start_or_resume();
    open_store();
    open_timeline();
    LoaderOptions loader{
        .windows_ahead = options_.prefetch, .hidden_size = target_.config.hidden_size, .vocab_size = target_.config.vocab_size};
    Prefetcher prefetcher(*source_, *store_, loader);
    const bool ended = train(prefetcher);
    checkpoint();
    if (ended && ranks_.first()) draft_->save(options_.out / "draft");
    ranks_.barrier();  // whoever leaves first would look dead to the others
    return progress_;
  }

 private:
  // True once training may start; false if stop was set before, in any rank.
  bool wait_for_samples() {
    while (!offline_ && !stop_.load()) {
      const LedgerStatus status = ledger_->status();
      const std::int64_t wanted = std::max<std::int64_t>(options_.ahead_samples, 1);
      const bool all = status.prompts_pending + status.prompts_leased == 0;
      if (status.prompts_closed && (status.committed >= wanted || all)) break;
      wait_for_change(*ledger_, [this] { return stop_.load(); });
    }
    std::array<double, 1> stopped{stop_.load() ? 1.0 : 0.0};
    ranks_.sum(stopped);
    return stopped[0] == 0;
  }

  std::int64_t total_steps() {
    if (options_.total_steps > 0) return options_.total_steps;
    const LedgerStatus status = ledger_->status();
    if (offline_) return offline_windows_per_epoch(status.committed, options_.window) * options_.epochs;
    if (status.prompts < options_.window) {
      throw InvalidArgument(fmt::format("{} prompts make no window of {}: add prompts or choose a smaller window",
                                        status.prompts, options_.window));
    }
    return status.prompts / options_.window * options_.epochs;
  }

  OptimizerOptions optimizer_options() const {
    return {.learning_rate = options_.learning_rate,
            .warmup_ratio = options_.warmup_ratio,
            .total_steps = state_.total_steps,
            .max_grad_norm = options_.max_grad_norm};
  }

  void start_or_resume() {
    state_.options = numeric_options(options_);
    state_.options["group"] = options_.group;
    state_.options["target"] = fingerprint(target_);
    if (ranks_.first()) checkpoints_.clear_unfinished();
    const auto found = checkpoints_.newest();
    if (found) {
      check_same_options(found->state, state_.options, found->folder);
      state_ = found->state;
      resume_ = found->state.mark;
      draft_ = Eagle3Draft::load(found->folder / "draft", target_.embedding, dtype_);
    } else if (!options_.init_draft.empty()) {
      draft_ = Eagle3Draft::load(options_.init_draft, target_.embedding, dtype_);
    } else {
      const VocabMap map = make_vocab_map(known_tokens(ledger_->token_counts(), target_.config.vocab_size),
                                          options_.draft_vocab, target_.config.vocab_size);
      const DraftConfig config = make_draft_config(options_, target_.config, map, *ledger_);
      draft_ = Eagle3Draft::random(config, map, target_.embedding, target_.head, dtype_, options_.seed);
    }
    NamedTensors parameters = draft_->parameters();
    for (auto& [name, parameter] : parameters) parameter.requires_grad_(true);
    optimizer_ = std::make_unique<Optimizer>(parameters, optimizer_options());
    if (found) checkpoints_.restore(*found, *optimizer_);
    if (!found && ranks_.first()) draft_->save(options_.out / "draft-untrained");
    saved_step_ = found ? state_.mark.step : -1;
  }

  void open_store() {
    if (offline_) {
      store_ = open_files_store();
      return;
    }
    if (options_.store.empty()) throw InvalidArgument("the ledger's samples are in a store: name it with --store ROOT/ID");
    store_ = open_shared_dir_store(options_.store.parent_path(), StoreId(options_.store.filename().string()),
                                   {.secret = find_secret(options_.secret_file, options_.secret)});
    if (store_->kind() != StoreKind::kLedgered) {
      throw InvalidArgument(
          fmt::format("store {} is consume_once: a read would free what a checkpoint may still need; train from a "
                      "ledgered store",
                      options_.store.string()));
    }
    check_store(*ledger_, *store_);
  }

  void open_timeline() {
    state_.mark.ledger_id = ledger_->id();
    state_.mark.group = group_;
    if (offline_) {
      if (resume_ && resume_->ledger_id != ledger_->id()) {
        throw Conflict(fmt::format("the checkpoint in {} is of ledger {}, not of {} ({}): use its ledger or another folder",
                                   options_.out.string(), resume_->ledger_id, options_.ledger.string(), ledger_->id()));
      }
      source_ = make_offline_source(*fetch_ledger_, {.window = options_.window,
                                                     .epochs = options_.epochs,
                                                     .seed = options_.seed,
                                                     .position = state_.windows,
                                                     .share = share()});
      return;
    }
    ledger_->declare_group({.group = group_,
                            .window = options_.window,
                            .resumable_checkpoints = options_.resumable_checkpoints,
                            .passes = options_.epochs,
                            .max_window_tokens = options_.max_window_tokens});
    const TimelineInfo timeline = ledger_->open_timeline({.group = group_,
                                                          .resume = resume_,
                                                          .width = options_.ranks,
                                                          .rank = options_.rank,
                                                          .launch = options_.launch,
                                                          .accept_loss = options_.accept_loss});
    progress_.lost = timeline.lost;
    state_.mark.timeline = timeline.number;
    source_ = make_stream_source(*fetch_ledger_, group_, timeline, share());
    free_bytes();  // what a trainer that died had made durable and not yet freed
  }

  WindowShare share() const { return {.rank = options_.rank, .width = options_.ranks}; }

  // What the ranks do next, once all of them say what they have: a rank may wait for data that another has already.
  enum class Next { kTrain, kWait, kEnd, kStop };
  Next agree(WindowState mine) {
    std::array<double, 3> counts{stop_.load() ? 1.0 : 0.0, mine == WindowState::kWindow ? 1.0 : 0.0,
                                 mine == WindowState::kEndOfStream ? 1.0 : 0.0};
    ranks_.sum(counts);
    if (counts[0] > 0) return Next::kStop;
    if (counts[1] == ranks_.width()) return Next::kTrain;
    return counts[2] == ranks_.width() ? Next::kEnd : Next::kWait;
  }

  // True at the end of the data, false if stop was set, in any rank.
  bool train(Prefetcher& prefetcher) {
    double waited = 0;
    progress_.resumed = resume_.has_value();
    for (;;) {
      const auto start = Clock::now();
      LoadedAnswer answer = prefetcher.next(stop_, kStarvedMs);
      Next next = agree(answer.state);
      while (next == Next::kWait) {
        if (options_.checkpoint_on_pressure) checkpoint();
        if (answer.state == WindowState::kWaiting) answer = prefetcher.next(stop_, kStarvedMs);
        next = agree(answer.state);
      }
      if (next == Next::kStop) return false;
      if (next == Next::kEnd) return true;
      progress_.wait_seconds = prefetcher.wait_seconds() - waited;
      waited = prefetcher.wait_seconds();
      train_one(*answer.window);
      if (state_.mark.step % options_.checkpoint_every == 0) checkpoint();
      report(start);
    }
  }

  void train_one(const LoadedWindow& window) {
    std::vector<Eagle3Batch> batches;
    std::vector<FailedSample> failed;
    for (std::size_t begin = 0; begin < window.samples.size(); begin += static_cast<std::size_t>(options_.batch)) {
      std::vector<const LoadedSample*> samples;
      const std::size_t end = std::min(window.samples.size(), begin + static_cast<std::size_t>(options_.batch));
      for (std::size_t i = begin; i < end; ++i) samples.push_back(&window.samples[i]);
      batches.push_back(make_eagle3_batch(samples, options_.max_length, dtype_));
    }
    for (const LoadedSample& sample : window.samples) {
      if (sample.failure) failed.push_back({sample.ref.sample_id, *sample.failure});
    }
    if (!offline_ && !failed.empty()) ledger_->report_failed(group_, state_.mark.timeline, window.number, failed);
    const UnrollOptions unroll{.steps = options_.ttt_length,
                               .decay = options_.loss_decay,
                               .loss = loss_kind_from_name(options_.loss),
                               .kl_scale = options_.kl_scale,
                               .kl_decay = options_.kl_decay};
    const WindowResult result = train_window(*draft_, *optimizer_, target_.head, batches, unroll,
                                             loss_normalization_from_name(options_.loss_normalization),
                                             fmt::format("window {}", window.number), &ranks_);
    ++state_.mark.step;
    ++state_.windows;
    std::array<double, 3> counts{static_cast<double>(failed.size()), 0, 0};
    for (const Eagle3Batch& batch : batches) {
      counts[1] += static_cast<double>(batch.samples);
      counts[2] += static_cast<double>(batch.tokens);
    }
    ranks_.sum(counts);
    state_.failed += static_cast<std::int64_t>(counts[0]);
    state_.samples += static_cast<std::int64_t>(counts[1]);
    state_.tokens += static_cast<std::int64_t>(counts[2]);
    if (!offline_) ledger_->trained(group_, state_.mark.timeline, window.number, state_.mark.step, {});
    fill(result);
  }

  void fill(const WindowResult& result) {
    progress_.step = state_.mark.step;
    progress_.total_steps = state_.total_steps;
    progress_.samples = state_.samples;
    progress_.tokens = state_.tokens;
    progress_.failed = state_.failed;
    progress_.loss_total = result.total;
    progress_.grad_norm = result.optimizer.grad_norm;
    progress_.learning_rate = result.optimizer.learning_rate;
    progress_.loss = result.loss;
    progress_.accuracy = result.accuracy;
    progress_.acceptance = result.acceptance;
  }

  // The first step waits for the pipeline to fill; what the trainer waits for data is counted from its end.
  void report(Clock::time_point step_start) {
    progress_.step_seconds = seconds_since(step_start);
    if (!first_step_done_) {
      first_step_done_ = true;
      after_first_step_ = Clock::now();
    } else {
      progress_.total_wait_seconds += progress_.wait_seconds;
      progress_.total_seconds = seconds_since(after_first_step_);
    }
    if (on_step_) on_step_(progress_);
    progress_.resumed = false;
  }

  // The order that makes exactly-once hold: the file is down, then the ledger hears of it, then bytes go.
  void checkpoint() {
    if (saved_step_ == state_.mark.step) return;
    if (!ranks_.first()) {
      saved_step_ = state_.mark.step;
      return;
    }
    checkpoints_.save(state_, *draft_, *optimizer_);
    saved_step_ = state_.mark.step;
    if (!offline_) ledger_->checkpointed(group_, state_.mark.timeline, state_.mark.step);
    free_bytes();
    checkpoints_.prune(options_.resumable_checkpoints);
  }

  void free_bytes() {
    if (offline_ || !ranks_.first()) return;
    for (;;) {
      const std::vector<SampleRef> refs = ledger_->freeable(256);
      if (refs.empty()) return;
      std::vector<SampleId> ids;
      for (const SampleRef& ref : refs) {
        store_->remove(ref);
        ids.push_back(ref.sample_id);
      }
      ledger_->freed(ids);
    }
  }

  const TrainOptions options_;
  const TrainCallback& on_step_;
  const std::atomic<bool>& stop_;
  const GroupId group_;
  const c10::ScalarType dtype_;
  Ranks ranks_;
  const UniqueFd lock_;
  const std::unique_ptr<Ledger> ledger_, fetch_ledger_;  // fetch_ledger_ belongs to the prefetcher's thread
  const bool offline_;
  const CheckpointFolder checkpoints_;
  const TargetHead target_;

  TrainerState state_;
  std::optional<CheckpointMark> resume_;
  std::int64_t saved_step_ = -1;
  std::optional<Eagle3Draft> draft_;
  std::unique_ptr<Optimizer> optimizer_;
  std::unique_ptr<FeatureStore> store_;
  std::unique_ptr<WindowSource> source_;
  TrainProgress progress_;
  bool first_step_done_ = false;
  Clock::time_point after_first_step_;
};

}  // namespace

TrainProgress run_train(const TrainOptions& options, const TrainCallback& on_step, const std::atomic<bool>& stop) {
  check_options(options);
  loss_kind_from_name(options.loss);
  loss_normalization_from_name(options.loss_normalization);
  set_up_compute(options.threads);
  // The ranks meet, and ledgers are opened: nothing was begun that must be ended in order.
  std::optional<TrainRun> run;
  if (!complete_unless(stop, [&] { run.emplace(options, on_step, stop); })) return {};
  return run->run();
}

}  // namespace draftflow
