// SPDX-License-Identifier: Apache-2.0
#include "draftflow/ledger/ledger.h"

#include <fmt/format.h>
#include <pybind11/stl/filesystem.h>

#include <algorithm>

#include "draftflow/base/error.h"
#include "draftflow/base/text.h"
#include "draftflow/ledger/ledger_file.h"
#include "python/handles.h"
#include "python/json.h"

namespace draftflow::python {
namespace {

using Self = const std::shared_ptr<LedgerHandle>&;

std::shared_ptr<LedgerHandle> make_handle(std::string url, bool read_only, std::function<std::unique_ptr<Ledger>()> open) {
  const Unlocked unlocked;
  auto opened = [open] { return std::shared_ptr<OpenLedger>(new OpenLedger{.ledger = open(), .mutex = {}}); };
  const std::string what = fmt::format("ledger '{}'", url);
  return std::shared_ptr<LedgerHandle>(new LedgerHandle{.url = std::move(url),
                                                        .read_only = read_only,
                                                        .open = std::move(open),
                                                        .opened = PerProcess<OpenLedger>(what, std::move(opened))});
}

std::shared_ptr<LedgerHandle> open_handle(const py::object& place, bool read_only) {
  const std::string url = place_from(place);
  if (url == "mem://") {
    return make_handle(url, false, [books = make_memory_ledger(), maker = ::getpid()] {
      if (maker != ::getpid()) {
        throw InvalidArgument(
            fmt::format("ledger 'mem://' lies in the memory of process {}, and this is a child of it: use a "
                        "SQLite file for processes to share",
                        maker));
      }
      return open_memory_ledger(books);
    });
  }
  return make_handle(url, read_only, [url, read_only] { return read_only ? open_ledger_read_only(url) : open_ledger(url); });
}

TailPolicy tail_from(const std::string& name) {
  if (name == "drop") return TailPolicy::kDrop;
  if (name == "carry") return TailPolicy::kCarry;
  throw InvalidArgument(fmt::format("tail is '{}': 'drop' and 'carry' are allowed", printable(name, 80)));
}

std::vector<TokenCount> counts_from(const py::handle& counts) {
  std::vector<TokenCount> made;
  for (const auto& [token, count] : counts.cast<py::dict>()) {
    made.push_back({.token = token.cast<std::int64_t>(), .count = count.cast<std::int64_t>()});
  }
  return made;
}

// None: no counts; else a {token: count} for each record.
std::vector<std::vector<TokenCount>> all_counts_from(const std::optional<py::list>& counts, std::size_t records) {
  std::vector<std::vector<TokenCount>> made(records);
  if (!counts) return made;
  if (counts->size() != records) {
    throw InvalidArgument(
        fmt::format("token_counts has {} entries for {} records: one for each is allowed", counts->size(), records));
  }
  for (std::size_t i = 0; i < records; ++i) made[i] = counts_from((*counts)[i]);
  return made;
}

std::vector<SampleId> ids_from(const std::vector<std::string>& ids) {
  return {ids.begin(), ids.end()};
}
std::vector<TaskId> task_ids_from(const std::vector<std::string>& ids) {
  return {ids.begin(), ids.end()};
}

std::vector<FailedSample> failed_from(const py::dict& failed) {
  std::vector<FailedSample> made;
  for (const auto& [id, reason] : failed) made.push_back({SampleId(id.cast<std::string>()), reason.cast<std::string>()});
  return made;
}

py::dict failed_to(const std::vector<FailedSample>& failed) {
  py::dict made;
  for (const auto& [id, reason] : failed) made[py::str(id.str())] = reason;
  return made;
}

py::dict group_to(const GroupStatus& group) {
  py::dict made;
  made["group"] = group.group;
  made["kind"] = group.kind == GroupKind::kQueue ? "queue" : "windows";
  made["window"] = group.window;
  made["passes"] = group.passes;
  made["max_window_tokens"] = group.max_window_tokens;
  made["open"] = group.open;
  made["available"] = group.available;
  made["leased"] = group.leased;
  made["windowed"] = group.windowed;
  made["trained"] = group.trained;
  made["durable"] = group.durable;
  made["dropped"] = group.dropped;
  made["failed"] = group.failed;
  made["timeline"] = group.timeline;
  made["width"] = group.width;
  made["trained_step"] = group.trained_step;
  made["durable_step"] = group.durable_step;
  made["pinned"] = group.pinned;
  return made;
}

py::dict status_to(const LedgerStatus& status) {
  py::dict made;
  made["ledger_id"] = status.ledger_id;
  made["run_id"] = status.run_id;
  made["prompts"] = status.prompts;
  made["prompts_pending"] = status.prompts_pending;
  made["prompts_leased"] = status.prompts_leased;
  made["prompts_done"] = status.prompts_done;
  made["prompts_failed"] = status.prompts_failed;
  made["prompts_closed"] = status.prompts_closed;
  made["committed"] = status.committed;
  made["freed"] = status.freed;
  made["resident_bytes"] = status.resident_bytes;
  made["committed_tokens"] = status.committed_tokens;
  py::dict groups;
  for (const GroupStatus& group : status.groups) groups[py::str(group.group)] = group_to(group);
  made["groups"] = groups;
  return made;
}

using LedgerClass = py::class_<LedgerHandle, std::shared_ptr<LedgerHandle>>;

void bind_prompt_verbs(LedgerClass& ledger) {
  ledger
      .def(
          "ingest_prompts",
          [](Self self, const std::vector<PromptTask>& tasks, const std::optional<py::list>& token_counts) {
            const auto counts = all_counts_from(token_counts, tasks.size());
            return self->with([&](Ledger& open) { return open.ingest_prompts(tasks, counts); });
          },
          py::arg("tasks"), py::arg("token_counts") = py::none(),
          "A batch is all or nothing; a task that is there is skipped (Conflict if its payload differs). How many were new. "
          "token_counts: a {token: count} for each task, for the draft's vocabulary map.")
      .def(
          "close_prompts", [](Self self) { self->with([](Ledger& open) { open.close_prompts(); }); },
          "No more prompts will come.")
      .def(
          "lease_prompts",
          [](Self self, const std::string& holder, int max_tasks, std::int64_t lease_ms) {
            const HolderId id(holder);
            PromptAnswer answer = self->with([&](Ledger& open) { return open.lease_prompts(id, max_tasks, lease_ms); });
            return std::make_pair(std::move(answer.leases), answer.finished);
          },
          py::arg("holder"), py::arg("max_tasks") = 1, py::arg("lease_ms") = 60'000,
          "(leases, finished): no leases and not finished means none just now.")
      .def(
          "extend_leases",
          [](Self self, const std::string& holder, std::int64_t lease_ms) {
            const HolderId id(holder);
            self->with([&](Ledger& open) { open.extend_leases(id, lease_ms); });
          },
          py::arg("holder"), py::arg("lease_ms") = 60'000)
      .def(
          "extend_lease",
          [](Self self, const PromptLease& lease, std::int64_t lease_ms) {
            return self->with([&](Ledger& open) { return open.extend_lease(lease, lease_ms); });
          },
          py::arg("lease"), py::arg("lease_ms") = 60'000, "Whether the lease still holds.")
      .def(
          "fence",
          [](Self self, const PromptLease& lease, std::int64_t lease_ms) {
            return std::make_shared<PyFence>(PyFence{.ledger = self, .lease = lease, .lease_ms = lease_ms});
          },
          py::arg("lease"), py::kw_only(), py::arg("lease_ms") = 60'000,
          "For Store.put: nothing appears once the lease is lost (Conflict), and nothing of a later holder's is retired.");
}

void bind_prompt_endings(LedgerClass& ledger) {
  ledger
      .def(
          "fail_prompt",
          [](Self self, const PromptLease& lease, const std::string& reason, bool retryable, int max_attempts) {
            self->with([&](Ledger& open) { open.fail_prompt(lease, reason, retryable, max_attempts); });
          },
          py::arg("lease"), py::arg("reason"), py::arg("retryable") = true, py::arg("max_attempts") = 3)
      .def(
          "return_leases",
          [](Self self, const std::string& holder) {
            const HolderId id(holder);
            self->with([&](Ledger& open) { open.return_leases(id); });
          },
          py::arg("holder"), "At a clean stop: its prompts are at once pending again.")
      .def(
          "failed_prompts",
          [](Self self, int limit) {
            const auto found = self->with([&](Ledger& open) { return open.failed_prompts(limit); });
            py::dict made;
            for (const auto& [id, reason] : found) made[py::str(id)] = reason;
            return made;
          },
          py::arg("limit") = 1'000, "{task id: reason}")
      .def(
          "retry_prompts",
          [](Self self, const std::vector<std::string>& ids) {
            return self->with([ids = task_ids_from(ids)](Ledger& open) { return open.retry_prompts(ids); });
          },
          py::arg("ids"), "Failed prompts are pending again; how many.")
      .def(
          "drop_prompts",
          [](Self self, const std::vector<std::string>& ids, const std::string& reason, bool dry_run) {
            return self->with([&, ids = task_ids_from(ids)](Ledger& open) { return open.drop_prompts(ids, reason, dry_run); });
          },
          py::arg("ids"), py::arg("reason"), py::arg("dry_run") = false);
}

void bind_sample_verbs(LedgerClass& ledger) {
  ledger
      .def(
          "commit_sample",
          [](Self self, const SampleRef& ref, const PromptLease& lease) {
            self->with([&](Ledger& open) { open.commit_sample(ref, lease); });
          },
          py::arg("ref"), py::arg("lease"),
          "Commits the sample and completes its prompt, of the same id. Conflict: the lease was lost.")
      .def(
          "commit_samples",
          [](Self self, const std::vector<SampleRef>& refs, const std::optional<py::list>& token_counts) {
            const auto counts = all_counts_from(token_counts, refs.size());
            return self->with([&](Ledger& open) { return open.commit_samples(refs, counts); });
          },
          py::arg("refs"), py::arg("token_counts") = py::none(),
          "Commits refs without prompts, in order; one that is there is skipped, a greater generation replaces it while no "
          "group has "
          "taken it, any other is Conflict. How many were new.")
      .def(
          "is_committed",
          [](Self self, const std::string& id) {
            return self->with([&](Ledger& open) { return open.is_committed(SampleId(id)); });
          },
          py::arg("sample_id"))
      .def(
          "get_committed",
          [](Self self, const std::string& id) {
            return self->with([&](Ledger& open) { return open.get_committed(SampleId(id)); });
          },
          py::arg("sample_id"), "Its ref, or None.")
      .def(
          "all_committed_ids", [](Self self) { return self->with([](Ledger& open) { return open.all_committed_ids(); }); },
          "In commit order.")
      .def(
          "trained_ids",
          [](Self self, const std::string& group) {
            return self->with([&](Ledger& open) { return open.trained_ids(GroupId(group)); });
          },
          py::arg("group") = "train", "Trained or durable, in training order; in a queue acked, in commit order.")
      .def(
          "token_counts",
          [](Self self) {
            const auto counts = self->with([](Ledger& open) { return open.token_counts(); });
            py::dict made;
            for (const TokenCount& count : counts) made[py::int_(count.token)] = count.count;
            return made;
          },
          "{token: how often under the loss mask}")
      .def(
          "freeable", [](Self self, int limit) { return self->with([&](Ledger& open) { return open.freeable(limit); }); },
          py::arg("limit") = 256, "Refs whose bytes may go; handed out until freed() says that they are gone.")
      .def(
          "freed",
          [](Self self, const std::vector<std::string>& ids) {
            self->with([ids = ids_from(ids)](Ledger& open) { open.freed(ids); });
          },
          py::arg("ids"));
}

void bind_window_verbs(LedgerClass& ledger) {
  ledger
      .def(
          "declare_group",
          [](Self self, const std::string& group, int window, const std::string& kind, int resumable_checkpoints,
             const std::string& tail, int max_attempts, int passes, std::int64_t max_window_tokens) {
            if (kind != "windows" && kind != "queue") {
              throw InvalidArgument(fmt::format("kind is '{}': 'windows' and 'queue' are allowed", printable(kind, 80)));
            }
            const GroupConfig config{.group = GroupId(group),
                                     .window = window,
                                     .resumable_checkpoints = resumable_checkpoints,
                                     .tail = tail_from(tail),
                                     .kind = kind == "queue" ? GroupKind::kQueue : GroupKind::kWindows,
                                     .max_attempts = max_attempts,
                                     .passes = passes,
                                     .max_window_tokens = max_window_tokens};
            self->with([&](Ledger& open) { open.declare_group(config); });
          },
          py::arg("group"), py::kw_only(), py::arg("window") = 0, py::arg("kind") = "windows",
          py::arg("resumable_checkpoints") = 1, py::arg("tail") = "drop", py::arg("max_attempts") = 3, py::arg("passes") = 1,
          py::arg("max_window_tokens") = 0,
          "Makes the group, or finds it. window: W, the refs of one optimizer step. InvalidArgument if it was made otherwise.")
      .def(
          "close_group",
          [](Self self, const std::string& group) { self->with([&](Ledger& open) { open.close_group(GroupId(group)); }); },
          py::arg("group"))
      .def(
          "failed_refs",
          [](Self self, const std::string& group, int limit) {
            return failed_to(self->with([&](Ledger& open) { return open.failed_refs(GroupId(group), limit); }));
          },
          py::arg("group") = "train", py::arg("limit") = 1'000, "{sample id: reason}");
}

void bind_training_verbs(LedgerClass& ledger) {
  ledger
      .def(
          "open_timeline",
          [](Self self, const std::string& group, const std::optional<CheckpointMark>& resume, int width, int rank,
             std::string launch, bool accept_loss) {
            const TimelineRequest request{.group = GroupId(group),
                                          .resume = resume,
                                          .width = width,
                                          .rank = rank,
                                          .launch = std::move(launch),
                                          .accept_loss = accept_loss};
            return self->with([&](Ledger& open) { return open.open_timeline(request); });
          },
          py::arg("group") = "train", py::kw_only(), py::arg("resume") = py::none(), py::arg("width") = 1, py::arg("rank") = 0,
          py::arg("launch") = "", py::arg("accept_loss") = false,
          "Opens the next timeline, or joins that of the launch. resume: the checkpoint that was loaded.")
      .def(
          "read_window",
          [](Self self, const std::string& group, std::int64_t timeline, std::int64_t number, int rank,
             int width) -> py::object {
            WindowAnswer answer = self->with([&](Ledger& open) {
              return open.read_window(GroupId(group), timeline, number, {.rank = rank, .width = width});
            });
            if (answer.state == WindowState::kWaiting) return py::none();
            if (answer.state == WindowState::kEndOfStream) return py::bool_(false);
            return py::cast(std::move(answer.window->refs));
          },
          py::arg("group"), py::arg("timeline"), py::arg("number"), py::kw_only(), py::arg("rank") = 0, py::arg("width") = 1,
          "A rank's refs of a window; None: not committed yet; False: the stream has ended.")
      .def(
          "report_failed",
          [](Self self, const std::string& group, std::int64_t timeline, std::int64_t window, const py::dict& failed) {
            self->with([&, failed = failed_from(failed)](Ledger& open) {
              open.report_failed(GroupId(group), timeline, window, failed);
            });
          },
          py::arg("group"), py::arg("timeline"), py::arg("window"), py::arg("failed"),
          "{sample id: reason} of refs that turned out unreadable, before the window's step.")
      .def(
          "trained",
          [](Self self, const std::string& group, std::int64_t timeline, std::int64_t window, std::int64_t step,
             const py::dict& failed) {
            self->with([&, failed = failed_from(failed)](Ledger& open) {
              open.trained(GroupId(group), timeline, window, step, failed);
            });
          },
          py::arg("group"), py::arg("timeline"), py::arg("window"), py::arg("step"), py::arg("failed") = py::dict(),
          "The whole window is in the weights since this optimizer step. Idempotent: every rank may call it.")
      .def(
          "checkpointed",
          [](Self self, const std::string& group, std::int64_t timeline, std::int64_t step) {
            self->with([&](Ledger& open) { open.checkpointed(GroupId(group), timeline, step); });
          },
          py::arg("group"), py::arg("timeline"), py::arg("step"), "After the checkpoint's file is down.");
}

void bind_queue_verbs(LedgerClass& ledger) {
  ledger
      .def(
          "lease_refs",
          [](Self self, const std::string& group, const std::string& holder, int max_refs, std::int64_t max_tokens,
             std::int64_t lease_ms, std::optional<std::pair<int, int>> partition) {
            RefRequest request{.group = GroupId(group),
                               .holder = HolderId(holder),
                               .max_refs = max_refs,
                               .max_tokens = max_tokens,
                               .lease_ms = lease_ms};
            if (partition) request.partition = Partition{.index = partition->first, .count = partition->second};
            QueueAnswer answer = self->with([&](Ledger& open) { return open.lease_refs(request); });
            return std::make_pair(std::move(answer.leases), answer.state == QueueState::kEndOfStream);
          },
          py::arg("group"), py::arg("holder"), py::arg("max_refs") = 1, py::kw_only(), py::arg("max_tokens") = 0,
          py::arg("lease_ms") = 60'000, py::arg("partition") = py::none(),
          "(leases, finished) in commit order; no leases and not finished means none just now. partition: (index, count).")
      .def(
          "ack_refs",
          [](Self self, const std::string& group, const std::vector<RefLease>& leases) {
            self->with([&](Ledger& open) { open.ack_refs(GroupId(group), leases); });
          },
          py::arg("group"), py::arg("leases"),
          "Done with them, all or nothing. Conflict, naming the sample, if a lease was lost.")
      .def(
          "fail_refs",
          [](Self self, const std::string& group, const std::vector<RefLease>& leases, const std::string& reason,
             bool retryable) { self->with([&](Ledger& open) { open.fail_refs(GroupId(group), leases, reason, retryable); }); },
          py::arg("group"), py::arg("leases"), py::arg("reason"), py::arg("retryable") = true)
      .def(
          "extend_refs",
          [](Self self, const std::string& group, const std::string& holder, std::int64_t lease_ms) {
            self->with([&](Ledger& open) { open.extend_refs(GroupId(group), HolderId(holder), lease_ms); });
          },
          py::arg("group"), py::arg("holder"), py::arg("lease_ms") = 60'000)
      .def(
          "return_refs",
          [](Self self, const std::string& group, const std::string& holder) {
            self->with([&](Ledger& open) { open.return_refs(GroupId(group), HolderId(holder)); });
          },
          py::arg("group"), py::arg("holder"), "At a clean stop: its refs are at once available again.")
      .def(
          "retry_failed",
          [](Self self, const std::string& group, const std::vector<std::string>& ids) {
            return self->with([&, ids = ids_from(ids)](Ledger& open) { return open.retry_failed(GroupId(group), ids); });
          },
          py::arg("group"), py::arg("ids"))
      .def(
          "drop_refs",
          [](Self self, const std::string& group, const std::vector<std::string>& ids, const std::string& reason,
             bool dry_run) {
            return self->with(
                [&, ids = ids_from(ids)](Ledger& open) { return open.drop_refs(GroupId(group), ids, reason, dry_run); });
          },
          py::arg("group"), py::arg("ids"), py::arg("reason"), py::arg("dry_run") = false);
}

void bind_file_verbs(LedgerClass& ledger) {
  ledger
      .def(
          "export",
          [](Self self, const std::filesystem::path& file) {
            self->opened.get();  // says so if it was closed, or cannot be opened here
            const Unlocked unlocked;
            export_ledger(*self->open(), file, PacedCheck());
          },
          py::arg("file"),
          "As JSON lines of one view, as `draftflow ledger export` writes them; the file appears whole or not at all. Leases "
          "end: what is leased is told as pending or available.")
      .def(
          "import_",
          [](Self self, const std::filesystem::path& file) {
            self->opened.get();
            const Unlocked unlocked;
            LedgerFile lines(file);
            lines.import_into(*self->open(), PacedCheck());
          },
          py::arg("file"),
          "Makes this ledger, which must be empty (Conflict), the exported one, its id included, so that checkpoints can be "
          "resumed; the old one must not be used again. Or takes over a ledger of the reference runtime's. All or nothing. "
          "Corrupt, naming the line: no whole export.");
}

void bind_values(py::module_& module) {
  py::class_<CheckpointMark>(module, "CheckpointMark",
                             "A checkpoint as the ledger knows it: put it into the checkpoint's file.")
      .def(py::init([](std::string ledger_id, const std::string& group, std::int64_t timeline, std::int64_t step) {
             return CheckpointMark{
                 .ledger_id = std::move(ledger_id), .group = GroupId(group), .timeline = timeline, .step = step};
           }),
           py::arg("ledger_id"), py::arg("group"), py::arg("timeline"), py::arg("step"))
      .def_readonly("ledger_id", &CheckpointMark::ledger_id)
      .def_property_readonly("group", [](const CheckpointMark& mark) { return mark.group.str(); })
      .def_readonly("timeline", &CheckpointMark::timeline)
      .def_readonly("step", &CheckpointMark::step);
  py::class_<TimelineInfo>(module, "Timeline", "The life of a group between two resumes.")
      .def_readonly("number", &TimelineInfo::number)
      .def_readonly("first_step", &TimelineInfo::first_step)
      .def_readonly("first_window", &TimelineInfo::first_window)
      .def_readonly("lost", &TimelineInfo::lost)
      .def_readonly("ledger_id", &TimelineInfo::ledger_id);
  py::class_<RefLease>(module, "RefLease", "A queue's ref, leased: the token names the lease.")
      .def_readonly("ref", &RefLease::ref)
      .def_readonly("token", &RefLease::token)
      .def_readonly("attempt", &RefLease::attempt);
  py::class_<PyFence, std::shared_ptr<PyFence>>(module, "Fence", "What Ledger.fence makes for Store.put.");
}

}  // namespace

void bind_ledger(py::module_& module) {
  bind_values(module);
  LedgerClass ledger(
      module, "Ledger",
      "The facts of one run: a SQLite file, a PostgreSQL schema ('postgresql://...'), or mem:// in this process. Any "
      "thread: they take turns; a forked child opens it anew.");
  ledger
      .def_static("open", &open_handle, py::arg("url"), py::kw_only(), py::arg("read_only") = false,
                  "Makes the file, or the tables, if they are not there. read_only: NotFound if they are not; changes nothing.")
      .def_property_readonly("id", [](Self self) { return self->with([](Ledger& open) { return open.id(); }); })
      .def(
          "declare",
          [](Self self, const std::string& key, const std::string& value) {
            self->with([&](Ledger& open) { open.declare(key, value); });
          },
          py::arg("key"), py::arg("value"), "A small fact of the run: set once, equal afterwards (Conflict, naming both).")
      .def(
          "declared",
          [](Self self, const std::string& key) { return self->with([&](Ledger& open) { return open.declared(key); }); },
          py::arg("key"))
      .def(
          "wait",
          [](Self self, double timeout_s) {
            if (!(timeout_s >= 0)) throw InvalidArgument(fmt::format("timeout_s is {}: 0 or more is allowed", timeout_s));
            const auto timeout_ms = static_cast<std::int64_t>(1000 * std::min(timeout_s, 1e9));
            return self->with([&](Ledger& open) { return open.wait(timeout_ms); });
          },
          py::arg("timeout_s"),
          "Sleeps until another process, thread or Ledger may have changed this ledger since the last wait; False: not in "
          "time. "
          "Time wakes nobody (a lease that ran out): ask again at least once a second. Other threads that use this Ledger wait "
          "for it: give a thread that waits one of its own.")
      .def(
          "status", [](Self self) { return status_to(self->with([](Ledger& open) { return open.status(); })); },
          "Kept counters, as a dict; groups by name.")
      .def(
          "check", [](Self self) { return self->with([](Ledger& open) { return open.check(); }); },
          "Counts every row anew and names what does not fit; nothing: all is well.")
      .def(
          "close", [](LedgerHandle& self) { self.opened.close(); }, "Idempotent.")
      .def_readonly("url", &LedgerHandle::url)
      .def("__reduce__",
           [](Self self) {
             if (self->url == "mem://")
               throw InvalidArgument("ledger 'mem://' lies in this process's memory: no other can open it");
             return py::make_tuple(py::module_::import("draftflow._reopen").attr("ledger"),
                                   py::make_tuple(self->url, self->read_only));
           })
      .def("__enter__", [](Self self) { return self; })
      .def("__exit__", [](LedgerHandle& self, const py::args&) { self.opened.close(); })
      .def("__repr__", [](const LedgerHandle& self) { return fmt::format("Ledger('{}')", self.url); });
  bind_prompt_verbs(ledger);
  bind_prompt_endings(ledger);
  bind_sample_verbs(ledger);
  bind_window_verbs(ledger);
  bind_training_verbs(ledger);
  bind_queue_verbs(ledger);
  bind_file_verbs(ledger);
}

}  // namespace draftflow::python
