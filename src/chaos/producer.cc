// SPDX-License-Identifier: Apache-2.0
//
// A producer, as src/capture/worker.cc is one: lease, make the tensors, put, commit.
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <thread>

#include "chaos/chaos_ledger.h"
#include "chaos/roles.h"
#include "draftflow/base/error.h"
#include "draftflow/base/file.h"

namespace draftflow::chaos {
namespace {

constexpr int kFlakyFailures = 2, kMaxAttempts = 5;

void pause_ms(std::uint64_t ms) {
  std::this_thread::sleep_for(std::chrono::milliseconds(ms));
}

// Extends the leases of a producer that is slow.
class Extender {
 public:
  Extender(Stage& stage, const HolderId& holder)
      : thread_([this, &stage, holder] {
          ChaosLedger ledger(stage);
          while (!stop_) {
            pause_ms(kLeaseMs / 4);
            ledger.extend_leases(holder, kLeaseMs);
          }
        }) {}
  Extender(const Extender&) = delete;
  Extender& operator=(const Extender&) = delete;
  ~Extender() {
    stop_ = true;
    thread_.join();
  }

 private:
  std::atomic<bool> stop_ = false;
  std::thread thread_;
};

class Producer {
 public:
  explicit Producer(Stage& stage)
      : stage_(stage),
        holder_(random_hex128()),
        ledger_(stage),
        extends_between_(stage.random.below(2) == 0),
        // Without a floor the disk gets full in the midst of a put.
        floor_(stage.random.below(2) == 0 ? 0 : 300'000) {
    with_patience(stage_, [this] { store_ = open_store(stage_.plan, floor_); });
    if (!extends_between_) extender_.emplace(stage_, holder_);
  }

  int run() {
    if (stage_.random.below(3) == 0) with_patience(stage_, [this] { store_->gc(); });  // what producers that died left behind
    for (;;) {
      const PromptAnswer answer = ledger_.lease_prompts(holder_, 1 + static_cast<int>(stage_.random.below(3)), kLeaseMs);
      if (answer.finished) return kFinished;
      if (answer.leases.empty()) ledger_.wait(kLeaseMs / 2);  // or a lease has run out
      for (const PromptLease& lease : answer.leases) {
        stage_.point(Point::kNone);
        if (extends_between_) ledger_.extend_leases(holder_, kLeaseMs);
        work(lease);
      }
    }
  }

 private:
  void work(const PromptLease& lease) {
    const std::string& id = lease.task.task_id.str();
    const Kind kind = kind_of(stage_.plan, id);
    try {
      if (kind == Kind::kPoisoned) {
        if (stage_.random.below(4) == 0) die_after_put(lease);
        return ledger_.fail_prompt(lease, "it is poisoned", false, kMaxAttempts);
      }
      if (kind == Kind::kFlaky && lease.task.attempt < kFlakyFailures) {
        return ledger_.fail_prompt(lease, "it is flaky", true, kMaxAttempts);
      }
      prefill();
      const TensorMap tensors = tensors_of(stage_.plan, id);
      const std::optional<SampleRef> ref = put(lease, tensors);
      if (!ref) return;  // another producer had it meanwhile
      stage_.point(Point::kNone);
      const std::uint64_t one_in = stage_.plan.bug == Bug::kAbortAfterConflict ? 6 : 25;  // which shows only then
      if (stage_.random.below(one_in) == 0) pause_ms(kLeaseMs / 2 + stage_.random.below(kLeaseMs));
      commit(*ref, lease);
      stage_.point(Point::kNone);
      sabotage(kind, *ref);
    } catch (const Conflict&) {  // the lease was lost
      stage_.board.add(Count::kCommitConflicts);
    }
  }

  // What nobody ever commits: the prompt's next holder fails it.
  void die_after_put(const PromptLease& lease) {
    put(lease, tensors_of(stage_.plan, lease.task.task_id.str()));
    stage_.board.add(Count::kDeaths);
    ::raise(SIGKILL);
  }

  // Sometimes longer than the lease.
  void prefill() {
    const std::uint64_t draw = stage_.random.below(100);
    pause_ms(draw < 3 ? stage_.random.below(2 * kLeaseMs) : stage_.random.below(3));
  }

  // A put retires the generations before it: never what another producer has put since, whenever this one goes on.
  std::optional<SampleRef> put(const PromptLease& lease, const TensorMap& tensors) {
    const std::string& id = lease.task.task_id.str();
    for (;;) {
      const bool blind = stage_.plan.bug == Bug::kBlindPut;
      if (!blind && ledger_.is_committed(SampleId(id))) return std::nullopt;
      PutFence fence{.taken_over = lease.taken_over && stage_.plan.bug != Bug::kStaleNumber};
      fence.still_mine = [&] {
        if (!blind && !ledger_.extend_lease(lease, kLeaseMs)) return false;
        stage_.point(Point::kNone);
        log_put(stage_.plan, {"holds", id, lease.token});
        if (stage_.random.below(50) == 0) pause_ms(stage_.random.below(3 * kLeaseMs));  // its answer is old by now
        return true;
      };
      try {
        PutMetadata metadata{.run_id = lease.task.run_id};
        metadata.num_tokens = tensors[0].second.shape[0];
        SampleRef ref = store_->put(tensors, SampleId(id), metadata, fence);
        log_put(stage_.plan, {"put", id, lease.token, ref.generation});
        return ref;
      } catch (const Exhausted& full) {
        stage_.board.add(Count::kSqueezedPuts);
        make_room(full.what());
      }
    }
  }

  void make_room(std::string_view why) {
    pause_ms(10 + stage_.random.below(20));
    ledger_.extend_leases(holder_, kLeaseMs);
    if (why.find("attach again") != std::string_view::npos) {
      with_patience(stage_, [this] { store_ = open_store(stage_.plan, floor_); });
    }
    if (stage_.random.below(8) == 0) with_patience(stage_, [this] { store_->gc(); });
  }

  void commit(const SampleRef& ref, const PromptLease& lease) {
    const std::string& id = ref.sample_id.str();
    try {
      ledger_.commit_sample(ref, lease);
    } catch (const Conflict&) {
      stage_.point(Point::kNone);
      if (stage_.plan.bug == Bug::kAbortAfterConflict) {
        store_->abort(ref.sample_id);
      } else {
        store_->remove(ref);
      }
      log_put(stage_.plan, {"removed", id, lease.token, ref.generation});
      throw;
    }
    log_put(stage_.plan, {"committed", id, lease.token, ref.generation});
    stage_.board.add(Count::kCommits);
  }

  void sabotage(Kind kind, const SampleRef& ref) {
    if (kind == Kind::kDeleted) store_->remove(ref);
    if (kind != Kind::kDamaged) return;
    try {
      const std::filesystem::path file = store_->resident(ref).path;
      const UniqueFd fd = open_file(file, O_RDWR);
      const auto last = static_cast<off_t>(file_size(fd.get(), file)) - 1;
      std::array<unsigned char, 1> byte{};
      if (::pread(fd.get(), byte.data(), 1, last) != 1) return;
      byte[0] ^= 0x10;
      if (::pwrite(fd.get(), byte.data(), 1, last) != 1) return;
    } catch (const NotFound&) {  // trained and freed already
    }
  }

  Stage& stage_;
  const HolderId holder_;
  ChaosLedger ledger_;
  const bool extends_between_;
  const std::uint64_t floor_;
  std::unique_ptr<FeatureStore> store_;
  std::optional<Extender> extender_;
};

}  // namespace

int run_producer(Stage& stage) {
  return Producer(stage).run();
}

}  // namespace draftflow::chaos
