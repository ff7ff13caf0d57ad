// SPDX-License-Identifier: Apache-2.0
#include "draftflow/capture/worker.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>

#include "draftflow/base/error.h"
#include "draftflow/base/interrupt.h"
#include "draftflow/base/random.h"
#include "draftflow/base/text.h"
#include "draftflow/flow/backpressure.h"
#include "draftflow/flow/cross_check.h"
#include "draftflow/ledger/ledger.h"
#include "draftflow/model/bridge.h"
#include "draftflow/model/capture_layers.h"
#include "draftflow/model/compute.h"
#include "draftflow/model/llama.h"
#include "draftflow/model/prompts.h"
#include "draftflow/store/feature_store.h"

namespace draftflow {
namespace {

using Clock = std::chrono::steady_clock;
using Json = nlohmann::json;
constexpr std::size_t kIngestBatch = 256;  // prompts a transaction
constexpr auto kPutAgain = std::chrono::milliseconds(50);
constexpr double kFullDiskSeconds = 60;  // how long a put waits for room before the worker gives up
constexpr double kGcSeconds = 10;        // between two looks for what can be freed meanwhile

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

std::vector<TokenCount> count_tokens(const Prompt& prompt) {
  std::map<std::int64_t, std::int64_t> counts;
  for (std::size_t i = 0; i < prompt.input_ids.size(); ++i) {
    if (prompt.loss_mask[i] == 1) ++counts[prompt.input_ids[i]];
  }
  std::vector<TokenCount> list;
  for (const auto& [token, count] : counts) list.push_back({token, count, 0});  // the ledger knows the row
  return list;
}

PromptTask make_task(const Prompt& prompt, std::size_t index, const CaptureOptions& options) {
  PromptTask task{.task_id = TaskId(fmt::format("{}:{:08}", options.run_id, index)), .run_id = RunId(options.run_id)};
  task.source_id = fmt::format("{}:{}", printable(options.prompts.filename().string()), prompt.line);
  Json payload = Json::object();
  if (prompt.error) {
    payload["error"] = *prompt.error;
  } else {
    payload["input_ids"] = prompt.input_ids;
    payload["loss_mask"] = prompt.loss_mask;
  }
  task.payload = payload.dump(-1, ' ', false, Json::error_handler_t::replace);  // a reason may quote a strange file name
  task.max_length = options.max_length;
  return task;
}

struct Tokens {
  std::vector<std::int64_t> ids, mask;
};

// Payloads come out of the ledger, where any program may have put them.
Tokens parse_payload(const std::string& text) {
  try {
    const Json payload = Json::parse(text);
    if (!payload.is_object()) throw InvalidArgument("its payload is no JSON object");
    if (payload.contains("error")) throw InvalidArgument(payload["error"].get<std::string>());
    if (!payload.contains("input_ids")) throw InvalidArgument("its payload has no input_ids");
    Tokens tokens{.ids = payload["input_ids"].get<std::vector<std::int64_t>>(), .mask = {}};
    tokens.mask = payload.value("loss_mask", std::vector<std::int64_t>(tokens.ids.size(), 1));
    if (tokens.mask.size() != tokens.ids.size()) {
      throw InvalidArgument(
          fmt::format("its payload has {} loss_mask entries for {} input_ids", tokens.mask.size(), tokens.ids.size()));
    }
    return tokens;
  } catch (const Json::exception& error) {
    throw InvalidArgument(fmt::format("its payload cannot be read: {}", error.what()));
  }
}

c10::ScalarType stored_dtype(const std::string& name) {
  const auto dtype = to_torch_dtype(dtype_from_name(name));
  if (!c10::isFloatingType(dtype)) {
    throw InvalidArgument(
        fmt::format("features cannot be stored as {}: bfloat16, float16, float32 and float64 are allowed", name));
  }
  return dtype;
}

std::vector<int> chosen_layers(const std::vector<int>& asked, int num_layers) {
  std::vector<int> layers = asked.empty() ? default_capture_layers(num_layers) : asked;
  check_capture_layers(layers, num_layers);
  return layers;
}

class Worker {
 public:
  Worker(const CaptureOptions& options, const CaptureCallback& on_progress, const std::atomic<bool>& stop)
      : options_(options),
        on_progress_(on_progress),
        stop_(stop),
        stored_(stored_dtype(options.dtype)),
        holder_(random_hex128()),
        folder_(options.target),
        config_(parse_llama_config(folder_.config_json(), (options.target / "config.json").string())),
        layers_(chosen_layers(options.layers, static_cast<int>(config_.num_hidden_layers))),
        target_(options.ingest_only ? std::nullopt : std::optional(Llama::load(folder_, at::kFloat))),
        ledger_(open_ledger(options.ledger.string())) {
    ledger_->declare("kind", "stream");
    ledger_->declare("capture_layers", Json(layers_).dump());
  }

  CaptureProgress run() {
    if (!options_.prompts.empty()) ingest();
    if (!options_.ingest_only) capture_all();
    report(false);
    return progress_;
  }

 private:
  void ingest() {
    const std::int64_t context = config_.max_position_embeddings;
    const std::int64_t longest = options_.max_length > 0 ? std::min(options_.max_length, context) : context;
    const Tokenizer tokenizer(options_.tokenizer.empty() ? options_.target / "tokenizer.model" : options_.tokenizer);
    const std::vector<Prompt> prompts = read_prompts(options_.prompts, tokenizer, longest, config_.vocab_size);
    for (std::size_t begin = 0; begin < prompts.size(); begin += kIngestBatch) {
      std::vector<PromptTask> tasks;
      std::vector<std::vector<TokenCount>> counts;
      for (std::size_t i = begin; i < std::min(prompts.size(), begin + kIngestBatch); ++i) {
        tasks.push_back(make_task(prompts[i], i, options_));
        counts.push_back(prompts[i].error ? std::vector<TokenCount>{} : count_tokens(prompts[i]));
      }
      ledger_->ingest_prompts(tasks, counts);
    }
    if (!options_.keep_open) ledger_->close_prompts();
  }

  // A store made beforehand keeps its own options, such as a codec or a cap.
  std::unique_ptr<FeatureStore> open_or_create_store() const {
    const std::filesystem::path root = options_.store.parent_path();
    const StoreId id(options_.store.filename().string());
    const SharedDirOptions options{.durability = options_.durable ? Durability::kFull : Durability::kNone,
                                   .secret = find_secret(options_.secret_file, options_.secret)};
    std::unique_ptr<FeatureStore> store;
    try {
      store = open_shared_dir_store(root, id, options);
    } catch (const NotFound&) {
      store = create_shared_dir_store(root, id, options);
    }
    if (store->health().backend == "reference") {
      throw InvalidArgument(
          fmt::format("store {} is a folder that the reference runtime wrote, and is only read: capture into another",
                      options_.store.string()));
    }
    if (store->kind() == StoreKind::kLedgered) return store;
    throw InvalidArgument(
        fmt::format("store {} is consume_once: a read would free what a checkpoint may still need; capture into "
                    "a ledgered store",
                    options_.store.string()));
  }

  void capture_all() {
    store_ = open_or_create_store();
    declare_store(*ledger_, *store_);
    store_->gc();  // what writers that died left behind
    Backpressure backpressure({.high_bytes = options_.high_watermark_bytes, .low_bytes = options_.low_watermark_bytes});
    while (!stop_.load()) {
      const LedgerStatus status = ledger_->status();
      if (status.prompts_closed && status.prompts_pending + status.prompts_leased == 0) break;  // done, however full
      if (backpressure.update(status.resident_bytes)) {
        refuse_endless_pause(status);
        pause(fmt::format("{} are resident, the high watermark is {}", human_bytes(status.resident_bytes),
                          human_bytes(options_.high_watermark_bytes)),
              [this] { wait(); });
        continue;
      }
      const PromptAnswer answer = ledger_->lease_prompts(holder_, options_.lease_tasks, options_.lease_ms);
      if (answer.finished) break;
      leased_at_ = Clock::now();
      if (answer.leases.empty()) wait();
      for (const PromptLease& lease : answer.leases) {
        if (stop_.load()) break;
        const auto start = Clock::now();
        capture_one(*target_, lease);
        progress_.busy_seconds += seconds_since(start);
        report(false);
      }
    }
    ledger_->return_leases(holder_);
  }

  // A group that trains its samples several times frees nothing before the stream has ended, and a paused stream does not end.
  // With no prompt waiting it may end all the same: whoever ingests them closes the list.
  void refuse_endless_pause(const LedgerStatus& status) const {
    if (status.prompts_pending == 0) return;
    for (const GroupStatus& group : status.groups) {
      if (!group.open || group.passes == 1 || status.committed == 0) continue;
      const std::uint64_t each = status.resident_bytes / static_cast<std::uint64_t>(status.committed);
      throw Exhausted(fmt::format(
          "group '{}' trains each sample {} times, so none is freed before the stream has ended: {} of {} prompts make {} "
          "resident, and the high watermark is {}; raise it to {} or more, or train one epoch",
          printable(group.group), group.passes, status.committed, status.prompts, human_bytes(status.resident_bytes),
          human_bytes(options_.high_watermark_bytes), human_bytes(each * static_cast<std::uint64_t>(status.prompts + 1))));
    }
  }

  void wait() {
    wait_for_change(*ledger_, [this] { return stop_.load(); });
  }

  void pause(const std::string& reason, const std::function<void()>& wait) {
    progress_.pause_reason = reason;
    const auto start = Clock::now();
    wait();
    progress_.paused_seconds += seconds_since(start);
    report(true);
  }

  // One prompt: whatever goes wrong with it is written beside its name, and the next one is taken.
  void capture_one(const Llama& target, const PromptLease& lease) {
    const std::string& name = lease.task.task_id.str();
    try {
      keep_leases();
      const TensorMap features = prefill(target, lease);
      keep_leases();
      if (ledger_->is_committed(SampleId(name))) return;
      put_and_commit(lease, features);
      ++progress_.captured;
      progress_.tokens += features[0].second.shape[0];
    } catch (const Error& error) {
      if (error.kind() == ErrorKind::kConflict) return;  // the lease was lost: the prompt is another worker's now
      if (error.kind() == ErrorKind::kExhausted && stop_.load()) return;  // stopped while waiting for room
      if (error.kind() != ErrorKind::kInvalidArgument && error.kind() != ErrorKind::kCorrupt) {
        ledger_->return_leases(holder_);  // the machine's trouble, not the prompt's
        throw;
      }
      fail(lease, fmt::format("prompt {}: {}", name, error.what()));
    }
  }

  void fail(const PromptLease& lease, const std::string& reason) {
    try {
      ledger_->fail_prompt(lease, reason, /*retryable=*/false, options_.max_attempts);
      ++progress_.failed;
    } catch (const Conflict&) {  // the lease was lost: whoever has the prompt now will find the same
    }
  }

  // A slow target must not lose the prompts that wait behind the one at work.
  void keep_leases() {
    if (seconds_since(leased_at_) * 3000 < static_cast<double>(options_.lease_ms)) return;
    ledger_->extend_leases(holder_, options_.lease_ms);
    leased_at_ = Clock::now();
  }

  TensorMap prefill(const Llama& target, const PromptLease& lease) const {
    const at::NoGradGuard no_grad;
    const auto [ids, mask] = parse_payload(lease.task.payload);
    const at::Tensor tokens = at::tensor(at::ArrayRef<std::int64_t>(ids), at::kLong);
    const Llama::Output out = target.forward(tokens.unsqueeze(0), layers_);
    const at::Tensor aux = at::cat(out.captured, -1).to(stored_), hidden = out.last_hidden.to(stored_);
    check_finite("aux_hidden_state", aux);
    check_finite("hidden_state", hidden);
    return {{"input_ids", from_torch(tokens)},
            {"loss_mask", from_torch(at::tensor(at::ArrayRef<std::int64_t>(mask), at::kLong))},
            {"hidden_state", from_torch(hidden)},
            {"aux_hidden_state", from_torch(aux)}};
  }

  static void check_finite(const char* name, const at::Tensor& tensor) {
    const at::Tensor bad = at::isfinite(tensor).logical_not().flatten().nonzero();
    if (bad.size(0) > 0) {
      throw Corrupt(fmt::format("{} holds NaN or infinity in {} of {} elements, first at element {}", name, bad.size(0),
                                tensor.numel(), bad[0][0].item<std::int64_t>()));
    }
  }

  void put_and_commit(const PromptLease& lease, const TensorMap& features) {
    PutMetadata metadata{.run_id = lease.task.run_id};
    metadata.source_task_id = lease.task.task_id.str();
    metadata.num_tokens = features[0].second.shape[0];
    metadata.metadata = {{"format", "\"online_eagle3\""},
                         {"target_repr", "\"hidden_state\""},
                         {"aux_hidden_state_layer_ids", Json(layers_).dump()},
                         {"source", Json(lease.task.source_id).dump()}};
    const SampleRef ref = put_when_there_is_room(features, lease, metadata);
    try {
      ledger_->commit_sample(ref, lease);
    } catch (const Error& error) {
      if (error.kind() == ErrorKind::kConflict) store_->remove(ref);
      throw;
    }
    progress_.bytes += ref.estimated_bytes;
  }

  SampleRef put_when_there_is_room(const TensorMap& features, const PromptLease& lease, const PutMetadata& metadata) {
    const auto start = Clock::now();
    // A put retires the generations before it: never what another worker has put since it took the prompt over.
    const PutFence fence{.still_mine = [&] { return ledger_->extend_lease(lease, options_.lease_ms); },
                         .taken_over = lease.taken_over};
    for (;;) {
      try {
        return store_->put(features, SampleId(lease.task.task_id.str()), metadata, fence);
      } catch (const Error& error) {
        if (error.kind() != ErrorKind::kExhausted || stop_.load() || seconds_since(start) > kFullDiskSeconds) throw;
        ledger_->extend_leases(holder_, options_.lease_ms);
        collect();
        pause(error.what(), [] { std::this_thread::sleep_for(kPutAgain); });  // who makes room may not tell the ledger
      }
    }
  }

  // What others left or, in layout specforge, freed. An attach that was made while the disk was full cannot put, and is made
  // again.
  void collect() {
    if (collected_ && seconds_since(*collected_) < kGcSeconds) return;
    collected_ = Clock::now();
    try {
      store_ = open_or_create_store();
      store_->gc();
    } catch (const Error&) {  // that the store is full is what there is to tell
    }
  }

  void report(bool paused) {
    const LedgerStatus status = ledger_->status();
    progress_.total = status.prompts;
    progress_.done = status.prompts_done + status.prompts_failed;
    progress_.paused = paused;
    if (on_progress_) on_progress_(progress_);
  }

  const CaptureOptions options_;
  const CaptureCallback& on_progress_;
  const std::atomic<bool>& stop_;
  const c10::ScalarType stored_;
  const HolderId holder_;
  const ModelFolder folder_;
  const LlamaConfig config_;
  const std::vector<int> layers_;
  const std::optional<Llama> target_;     // none if it only ingests
  std::unique_ptr<FeatureStore> store_;   // from capture_all() on
  const std::unique_ptr<Ledger> ledger_;  // last: a wrong configuration leaves no ledger
  CaptureProgress progress_;
  std::optional<Clock::time_point> collected_;
  Clock::time_point leased_at_;  // or last extended
};

}  // namespace

CaptureProgress run_capture(const CaptureOptions& options, const CaptureCallback& on_progress, const std::atomic<bool>& stop) {
  if (options.lease_tasks < 1 || options.lease_ms < 1 || options.threads < 1 || options.max_attempts < 1) {
    throw InvalidArgument("lease_tasks, lease_ms, threads and max_attempts must be 1 or more");
  }
  set_up_compute(options.threads);
  std::optional<Worker> worker;
  if (!complete_unless(stop, [&] { worker.emplace(options, on_progress, stop); })) return {};
  return worker->run();
}

}  // namespace draftflow
