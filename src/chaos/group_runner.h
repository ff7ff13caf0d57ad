// SPDX-License-Identifier: Apache-2.0
//
// GroupRunner: starts the trainer ranks of one group again and again, from the newest checkpoint or on purpose from an older
// one, and judges how each launch ended. Knows nothing of what the other groups do. Used by one thread, which calls tick()
// often.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "chaos/child.h"
#include "chaos/history.h"
#include "chaos/stage.h"
#include "chaos/tables.h"

namespace draftflow::chaos {

// From which checkpoint a launch starts. The last two are not on purpose in real life; the ledger has to know better.
enum class Intent { kNewest, kSecondNewest, kOlder, kOlderAcceptLoss };

class GroupRunner {
 public:
  using Clock = std::chrono::steady_clock;

  GroupRunner(Stage& stage, std::size_t index, std::function<void(const std::string&)> note);

  // What has ended is judged, what should run is started. With `may_start` false nothing is started: a process is stopped.
  void tick(bool may_start);
  void join() { joined_ = true; }   // from here on it is run
  void finish();                    // no more older checkpoints
  void leave() { closed_ = true; }  // the group is closed: whoever ends is not started again
  bool finished();                  // a launch came to the end of the stream, or the group is left
  bool anything_stopped();
  void kill_all();

  // Chaos. Each does nothing when there is nothing to do it to.
  void kill_rank();
  void kill_launch();
  void take_over();                 // another launch, while this one is alive
  void stop_for_takeover();         // the same, with this one stopped meanwhile
  void resume_from(Intent intent);  // and perhaps from its second newest one, as soon as there is another

 private:
  struct Launch {
    std::string name;
    int width = 1;
    std::vector<std::unique_ptr<Child>> ranks;
    std::optional<CheckpointFile> from;
    Intent intent = Intent::kNewest;
    bool guaranteed = true;        // that the ledger lets it resume
    bool on_line = true;           // so the tables said before
    std::int64_t lost_before = 0;  // the same
    std::optional<Clock::time_point> first_end;
  };

  // A takeover of stopped ranks: waits for one to meet its point, then for the other launch, then lets them go on.
  struct Stopping {
    enum class Phase { kWaitForStop, kWaitForTakeover, kLinger } phase = Phase::kWaitForStop;
    Clock::time_point until;
    std::int64_t timeline = 0;  // the newest one before
  };

  std::unique_ptr<Launch> prepare(Intent intent);
  void start(std::unique_ptr<Launch> launch);
  void choose(Tables& tables, Launch& launch);
  bool has_ended(Launch& launch) const;
  void judge(Launch& launch);
  bool accepts_loss(const Launch& launch) const;
  void judge_loss(const Launch& launch, std::int64_t refused);
  void judge_off_line(const Launch& launch);
  std::optional<std::int64_t> told(const Launch& launch, const std::string& what) const;
  void tick_stopping();
  void tick_chase();
  void go_on();
  void violation(const std::string& text);

  Stage& stage_;
  const std::size_t index_;
  const GroupPlan& plan_;
  const std::function<void(const std::string&)> note_;
  std::unique_ptr<Launch> current_;
  std::vector<std::unique_ptr<Launch>> old_;  // taken over, and not at their end yet
  Intent intent_ = Intent::kNewest;           // of the next launch
  std::optional<std::int64_t> chase_;         // when a later timeline than this has made a checkpoint, its launch is killed
  Clock::time_point next_start_ = Clock::now();
  bool joined_ = false, closed_ = false, ended_ = false;
  int launches_ = 0;
  std::optional<Stopping> stopping_;
};

}  // namespace draftflow::chaos
